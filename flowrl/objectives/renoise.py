"""Clean leaves re-noised: the rows every objective on the forward process asks at, and the laws of their levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from flowrl.kernels import mean_each
from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Credit, Queries

Levels = Callable[[Tensor, float], float]
"""The level of a draw: (sigma [k] of the plan's steps, ascending; a place in [0, 1)) -> sigma. Places of a leaf's draws are
stratified, so its levels are too."""


@dataclass(frozen=True)
class Grid:
    """Levels of the plan's own grid: its first floor(fraction k) steps, without the first `skip` of them.

    Raises: ValueError for a grid of which nothing is left.
    Source: AWM (2509.25050), advantage_weighted_matching@be51372 scripts/train_sd3_awm.py: skip 1 and fraction 0.9 are its
    "discrete_wo_init".
    Differs: strata part the levels evenly; theirs begin and end at whole steps.
    """

    skip: int = 0
    fraction: float = 1.0

    def __call__(self, grid: Tensor, place: float) -> float:
        count = len(grid)
        left = grid[count - int(count * self.fraction) : count - self.skip]
        if not len(left):
            raise ValueError(
                f"no level is left of a grid of {count} steps without its first {self.skip} in its first "
                f"{self.fraction:g}; use more steps (policy.steps)"
            )
        return float(left[int(place * len(left))])


@dataclass(frozen=True)
class Band:
    """Uniform in [low, high), then shifted: sigma <- shift sigma / (1 + (shift - 1) sigma).

    Raises: ValueError for a band outside [0, 1] or without width, or a shift that is not positive.
    Source: AWM (2509.25050), advantage_weighted_matching@be51372 "uniform": [0.2, 1), shift 3.
    """

    low: float = 0.2
    high: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1 or self.shift <= 0:
            raise ValueError(
                f"levels in [{self.low:g}, {self.high:g}) with shift {self.shift:g}: give 0 <= low < high <= 1 and a positive shift"
            )

    def __call__(self, grid: Tensor, place: float) -> float:
        return shifted(self.low + (self.high - self.low) * place, self.shift)


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid of a normal draw, then shifted as in `Band`; never below `least`.

    Source: SD3 (2403.03206) section 3.1; AWM (2509.25050), advantage_weighted_matching@be51372 "logit_normal" (least 0.01).
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    least: float = 0.01

    def __call__(self, grid: Tensor, place: float) -> float:
        # NormalDist has no value at 0 itself
        z = NormalDist(self.mean, self.std).inv_cdf(max(place, 1e-7))
        return max(shifted(1 / (1 + math.exp(-z)), self.shift), self.least)


def shifted(sigma: float, shift: float) -> float:
    """shift sigma / (1 + (shift - 1) sigma): the schedule's shift of a level."""
    return shift * sigma / (1 + (shift - 1) * sigma)


LEVELS: dict[str, Levels] = {"grid": Grid(), "band": Band(), "logit_normal": LogitNormal()}
"""Laws of levels by name."""


def renoised(
    rollout: Rollout,
    credit: Credit,
    noise: Source,
    draws: int,
    levels: Levels = LEVELS["grid"],
    shared: bool = False,
    asked: Tensor | None = None,
) -> Queries:
    """`draws` rows a leaf, each with a level and a noise of its own, stratified over the law of levels. One edge a row.

    shared: the leaves of a prompt have level and noise of a draw in common.  asked: bool [P, n], the leaves that get rows; None:
    all of them. Levels are those the path was trained at (`Path.snap`).

    Raises: ValueError for draws < 1.
    """
    if draws < 1:
        raise ValueError(f"{draws} draws a leaf: give 1 or more")
    plan, slots = rollout.plan, rollout.slots
    grid = plan.sigma[plan.parent[plan.parent >= 0]].unique()
    kept = {int(n): i for i, n in enumerate(plan.kept)}
    rows: list[tuple[int, int, int, float]] = []
    slices: list[Tensor] = []
    owner: list[int] = []
    for index, block in enumerate(rollout.blocks):
        start = len(rows)
        for p, root in block.tolist():
            for leaf in plan.leaves[plan.root[plan.leaves] == root].tolist():
                if asked is None or asked[p, leaf]:
                    for j in range(draws):
                        key = j if shared else leaf * draws + j
                        place = (j + noise.uniform(int(slots[p]), key, "sigma")) / draws
                        rows.append((p, leaf, j, levels(grid, place)))
        if len(rows) > start:
            pieces = torch.arange(start, len(rows)).split(rollout.size or len(rows))
            slices += pieces
            owner += [index] * len(pieces)
    prompt, leaf, draw = (torch.tensor([r[i] for r in rows], dtype=torch.long) for i in range(3))
    one, none = torch.ones(len(rows)), torch.full_like(draw, -1)
    return Queries(
        row_prompt=prompt,
        kept=torch.tensor([kept[n] for n in leaf.tolist()], dtype=torch.long),
        sigma=rollout.path.snap(torch.tensor([r[3] for r in rows], dtype=torch.float64)),
        key=draw if shared else leaf * draws + draw,
        old=none,
        row=torch.arange(len(rows)),
        child=none,
        a=one,
        b=one,
        s=one,
        delta=one,
        advantage=credit.advantage[prompt, leaf],
        weight=credit.weight[prompt, leaf],
        kl_weight=credit.kl_weight[prompt, leaf],
        kl_scale=credit.kl_scale,
        group=slots[prompt],
        node=leaf,
        draw=draw,
        slices=slices,
        block=owner,
    )


def distance(u: Tensor, other: Tensor) -> Tensor:
    """<(u - other)^2> per row -> [N], float64."""
    return mean_each((u.double() - other.double()) ** 2)
