"""What may be said of gains: intervals for new seeds and new captions, when one method reaches another, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from shootout_jobs import MARKS

Scores = NDArray[np.float64]
GRID = (0.0, *MARKS, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A mean gain and its 95 % interval."""

    score: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.score:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Claim:
    """`fast` needs `share` of the time of `slow`, as `source` says."""

    source: str
    fast: str
    slow: str
    share: float


CLAIMS = (
    Claim("MixGRPO (2507.21802): 50 % less time than DanceGRPO", "mix_grpo", "flow_grpo", 0.5),
    Claim("MixGRPO-Flash (2507.21802): 71 % less time than DanceGRPO", "mix_grpo_flash", "flow_grpo", 0.29),
    Claim("BranchGRPO (2509.06040): 55 % less time than DanceGRPO", "branch_grpo", "flow_grpo", 0.45),
    Claim("BranchGRPO-Mix (2509.06040): 4.7 times as fast as DanceGRPO", "branch_grpo", "flow_grpo", 1 / 4.7),
    Claim("Dynamic-TreeRPO (2509.23352): about 50 % less time", "tree_rpo", "flow_grpo", 0.5),
    Claim("DiffusionNFT (2509.16117): up to 25 times as fast as Flow-GRPO", "diffusion_nft", "flow_grpo", 1 / 25),
    Claim("AWM (2509.25050): up to 24 times as fast as Flow-GRPO", "awm", "flow_grpo", 1 / 24),
)


def gain(before: Scores, after: Scores) -> Estimate:
    """Mean of after [seeds, captions] - before [captions], paired by caption, for new seeds and new captions.

    Variance: that of the seeds' means over their number plus that of the captions' means over theirs; what varies with both is
    counted twice, so the interval is rather too wide. Student's t with Satterthwaite's degrees of freedom. One seed: captions only.
    """
    d = after - before
    seeds, captions = d.shape
    parts = [(d.mean(1).var(ddof=1) / seeds, seeds - 1)] if seeds > 1 else []
    parts.append((d.mean(0).var(ddof=1) / captions, captions - 1))
    variance = sum(v for v, _ in parts)
    if not variance:
        return Estimate(float(d.mean()), float(d.mean()), float(d.mean()), seeds)
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Estimate(float(d.mean()), float(d.mean()) - half, float(d.mean()) + half, seeds)


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The first x at which the line through the points is at the level or above; infinity where it never is."""
    for i in range(len(x)):
        if y[i] >= level:
            if i == 0:
                return x[0]
            return x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1])
    return math.inf


def reach(fast: Sequence[Estimate], slow: Estimate, grid: Sequence[float] = GRID) -> tuple[float, float, float]:
    """Share of the time at which `fast` has the end score of `slow`: (earliest, by the means, latest).

    Earliest: from there on their intervals overlap;  latest: from there on fast's is above.
    """
    return (
        crossing(grid, [e.high for e in fast], slow.low),
        crossing(grid, [e.score for e in fast], slow.score),
        crossing(grid, [e.low for e in fast], slow.high),
    )


def verdict(share: float, fast: Sequence[Estimate] | None, slow: Estimate | None, grid: Sequence[float] = GRID) -> tuple[str, str]:
    """(verdict, why). fast: the gains at `grid`;  slow: the gain at the end. Overlapping intervals decide nothing."""
    if fast is None or slow is None:
        return "not decided", "not measured"
    if min(slow.seeds, fast[-1].seeds) < 2:
        return "not decided", "one seed says nothing of others"
    if slow.low <= 0:
        return "not decided", f"the slower one's gain is not clear: {slow}"
    first, middle, last = reach(fast, slow, grid)
    why = f"reaches {slow.score:+.3f} at {percent(middle)} of the time (from {percent(first)} to {percent(last)})"
    if last <= share:
        return "reproduced", why
    return ("not reproduced" if first > share else "not decided"), why


def percent(x: float) -> str:
    return f"{100 * x:.0f} %" if math.isfinite(x) else "never"


def above(one: Estimate, other: Estimate) -> bool:
    """Whether a ranking may be stated: two seeds at least each, and no overlap."""
    return min(one.seeds, other.seeds) > 1 and one.low > other.high
