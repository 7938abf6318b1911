"""Which samples or edges are trained on at all: masks, not numbers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowrl.samplers import Plan

from .trees import below


def extremes(score: Tensor, n: int) -> Tensor:
    """The best ceil(n / 2) and the worst floor(n / 2) of every row of score [P, L] -> bool [P, L]. NaN, which could not be
    scored, is neither; a row with fewer than n scores keeps them all.

    Raises: ValueError for n outside 1 to L.
    Source: DanceGRPO@15cc71d best-of-n (train_grpo_hunyuan.py l. 394-410), there over all samples of a process: one row.
    """
    if not 1 <= n <= score.shape[1]:
        raise ValueError(f"best of {n} in rows of {score.shape[1]}: give 1 to {score.shape[1]}")
    rank = score.argsort(1).argsort(1)  # NaN comes last
    known = (~score.isnan()).sum(1, keepdim=True)
    return (rank < known) & ((rank < n // 2) | (rank >= known - (n + 1) // 2))


def narrowed(plan: Plan, value: Tensor, ratio: float = 0.5, mode: Literal["best", "extremes"] = "best") -> Tensor:
    """Edges of a tree that width pruning keeps, bool [P, n], by the nodes' values [P, n]; only edges below the children of the
    last branching are ever dropped.

    best: of the children of each last branching the max(1, int(ratio children)) best keep their ways.  extremes: of all leaves the
    best and the worst, max(2, int(ratio leaves)) together, keep theirs. A NaN value is dropped first.

    Raises: ValueError for a ratio outside (0, 1], or an unknown mode.
    Source: BranchGRPO (2509.06040), width pruning: Parent-Top1 (best, ratio 0.5 of two children) and extreme selection.
    Differs: BranchGRPO@19fbb9f sorts single edges, whose advantages are equal along a way, and so keeps the first steps of all.
    """
    if not 0 < ratio <= 1 or mode not in ("best", "extremes"):
        raise ValueError(f'width pruning keeps a ratio in (0, 1] by mode "best" or "extremes", not {ratio:g} by {mode!r}')
    children = torch.bincount(plan.parent[plan.noisy], minlength=len(plan.parent))
    forks = (children > 1).nonzero().flatten()
    keep = torch.ones(value.shape, dtype=torch.bool)
    if not len(forks):
        return keep
    last = int(plan.depth[forks].max())
    late = plan.depth > last + 1
    if mode == "extremes":
        leaves = value[:, plan.leaves]
        return below(plan, extremes(leaves, max(min(2, leaves.shape[1]), int(ratio * leaves.shape[1])))) | ~late
    for fork in forks[plan.depth[forks] == last]:
        mine = (plan.noisy & (plan.parent == fork)).nonzero().flatten()
        rank = value[:, mine].nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
        keep[:, mine] = rank < max(1, int(ratio * len(mine)))
    for nodes in plan.waves[last + 1 :]:
        keep[:, nodes] = keep[:, plan.parent[nodes]]
    return keep | ~late


def top(score: Tensor, n: int) -> Tensor:
    """The n best of every row of score [P, L], the first of equal ones -> bool [P, L]. NaN is none.

    Raises: ValueError for n outside 1 to L.
    """
    if not 1 <= n <= score.shape[1]:
        raise ValueError(f"the {n} best in rows of {score.shape[1]}: give 1 to {score.shape[1]}")
    known = ~score.isnan()
    rank = torch.where(known, score, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return known & (rank < n)
