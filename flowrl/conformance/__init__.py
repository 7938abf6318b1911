"""Whether a model is what flowrl takes it for: every family, and every model of a user's, against its own pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from flowrl.said import first_line

from .checks import CHECKS, Check, Finding
from .model import subject_of
from .subject import Subject
from .verify import verify

__all__ = ["CHECKS", "Check", "Finding", "Subject", "examine", "subject_of", "verify"]


def examine(subject: Subject) -> Iterator[Finding]:
    """All findings, one after the other as they come. A check that breaks has failed."""
    for name, check in CHECKS.items():
        try:
            yield from check(subject)
        except Exception as error:
            yield Finding(name, False, said=f"{type(error).__name__}: {first_line(error)}")
