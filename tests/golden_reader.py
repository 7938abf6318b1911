"""Golden numbers as values. Holds no formula: what is compared, and how, stands in test_golden.py.

FLOWRL_GOLDEN=FOLDER reads the sets found in that folder or below it instead of the reduced copies in tests/golden.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """Arguments and arrays of one call, arrays by their short names."""

    id: str
    args: dict[str, Any]
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


@dataclass(frozen=True)
class Golden:
    """cases: in the order of the file; shared: arrays that belong to all of them (schedules)."""

    cases: tuple[Case, ...]
    shared: dict[str, Tensor]


@cache
def load(name: str) -> Golden:
    """A set by its file name without suffix. A set without cases is one case with the id ""."""
    elsewhere = sorted(Path(os.environ["FLOWRL_GOLDEN"]).rglob(f"{name}.json")) if "FLOWRL_GOLDEN" in os.environ else []
    home = elsewhere[0].parent if elsewhere else HERE
    about = json.loads((home / f"{name}.json").read_text())
    with np.load(home / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    if "cases" not in about:
        return Golden((Case("", about.get("args", {}), arrays),), {})
    cases = [
        Case(c["id"], c["args"], {k.removeprefix(c["id"] + "/"): v for k, v in arrays.items() if k.startswith(c["id"] + "/")})
        for c in about["cases"]
    ]
    return Golden(tuple(cases), {k.removeprefix("sched/"): v for k, v in arrays.items() if k.startswith("sched/")})


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal as float32 values are: rtol 1e-5, atol 1e-6."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def close_gradient(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4 of the largest entry: a gradient's small entries are differences of large ones."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()), check_dtype=False)
