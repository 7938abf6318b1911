"""Models without a family of their own are verified before they are used."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from flowrl.models.policy import DiffusersPolicy
from flowrl.said import first_line

from .checks import CHECKS, Finding
from .subject import Subject

PROMPTS = ("a photo of a red apple", "three small boats on a lake")
"""None of them was seen when the conventions were learned."""
SKIPPED = ("adapter",)
"""Needs a second copy of the model: `flowrl models check` does it."""

log = logging.getLogger("flowrl")


def verify(policy: DiffusersPolicy) -> None:
    """Compare with the policy's own pipeline, in this process: schedule, ODE path, decoding, exact replay, gradients.

    Raises: ValueError, naming the check that failed.
    """
    name = type(policy.pipe).__name__
    log.info("%s has no family of its own: what was learned of it is being verified", name)
    with tempfile.TemporaryDirectory() as work:
        subject = Subject(
            folder=Path(policy.spec.model),
            build=lambda spec: policy,
            spec=policy.spec,
            prompts=PROMPTS,
            images=[None] * len(PROMPTS),
            work=Path(work),
            full=False,
            here=True,
            saving=(policy.spec.checkpointing,),
        )
        for check in CHECKS:
            if check not in SKIPPED:
                _demand(name, check, subject)
    policy.store.forget()


def _demand(name: str, check: str, subject: Subject) -> None:
    said = f"{name} has no family of its own, and what was learned of it cannot be trusted: the check {check!r} failed"
    remedy = "write a family (flowrl/models/<family>.py), or train a model that has one"
    try:
        wrong = [f for f in CHECKS[check](subject) if not f.passed]
    except Exception as error:
        first = first_line(error)
        raise ValueError(f"{said} with {type(error).__name__}: {first}; {remedy}") from error
    if wrong:
        raise ValueError(f"{said} ({_told(wrong[0])}); {remedy}")


def _told(finding: Finding) -> str:
    measured = "" if finding.measured is None else f" differs by {finding.measured:.3g}"
    return f"{finding.check}{measured}" + (f": {finding.said}" if finding.said else "")
