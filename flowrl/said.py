"""Pieces of the sentences that errors are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def near(name: str, known: Iterable[str]) -> str:
    """The words " (did you mean 'x'?)" for the closest of the known names, "" where none is close."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
