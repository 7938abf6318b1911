"""Stable Diffusion 3: static and dynamic shift, and the second attention of 3.5-medium."""

from __future__ import annotations

from tiny import sd3_pipeline, sd3_scheduler

from .case import Case

SPEC = {"guidance": 4.5, "max_sequence_length": 8}
CASES = [
    Case("sd3", sd3_pipeline, SPEC),
    Case("sd3.5-medium", lambda: sd3_pipeline(1, dual=True, scheduler=sd3_scheduler(True)), {**SPEC, "negative": "a blue square"}),
]
