"""Branching trees: BranchGRPO (2509.06040) and Dynamic-TreeRPO (2509.23352)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, laws, levels, own_share, tree, windows
from flowrl.types import Method

from .flow_grpo import reference


def fans(leaves: int, points: Sequence[int]) -> dict[int, int]:
    """Children at each branch point so that the tree has `leaves`: its prime factors, the largest first; what is left over goes to
    the last point. 16 at four points: two each; 12 at four: 3, 2, 2.
    """
    factors = sorted(_factors(leaves), reverse=True)
    head, rest = factors[: len(points)], factors[len(points) :]
    if head:
        head[-1] *= math.prod(rest)
    return dict(zip(points, head, strict=False))


def _factors(n: int) -> list[int]:
    for p in range(2, math.isqrt(n) + 1):
        if n % p == 0:
            return [p, *_factors(n // p)]
    return [n] if n > 1 else []


def branch_grpo(
    group: int = 16,
    noise: float = 0.3,
    points: Sequence[int] = (0, 3, 6, 9),
    strength: float | None = None,
    fusion: Literal["mean", "softmax"] = "mean",
    window: int | None = None,
    prune: Sequence[int] = (),
    every: int = 30,
    stop: int = 9,
    clip: float = 1e-3,
    beta: float = 0.0,
    updates: int = 4,
) -> Method:
    """BranchGRPO as published for FLUX: constant noise 0.3 at every step, branching at steps 0, 3, 6, 9 to 16 images, advantages by
    depth, clip 1e-3.

    strength: correlated noise of siblings, (shared + strength own) / sqrt(1 + strength^2), the paper's; None: independent.
    fusion: how children's rewards make a parent's.  window: the Mix variant, noise only at branch points and in the first `window`
    steps.  prune, every, stop: depths whose edges are not trained on, sliding (`windows.pruned`).

    Source: BranchGRPO (2509.06040), BranchGRPO@19fbb9f.
    Differs: the published code draws the children of a branch four times wider than the density they are scored with, and rounds
    states to bfloat16 after scoring; here noise has unit variance and states are scored as stored. The last step is the quiet jump
    to the clean prediction that they decode, so it is not trained on.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        steps = len(sigmas) - 2
        fan = fans(group, [p for p in points if p < steps])
        noisy = range(steps) if window is None else windows.recurring(steps, window, steps, list(fan))
        return tree(sigmas, laws.dance_sde(noise), noisy, fan, 1.0 if strength is None else own_share(strength))

    credit = advantage.Group(ddof=1, eps=1e-8, fusion=fusion)
    return Method(
        plan_at,
        advantage.Pruned(credit, lambda iteration: windows.pruned(iteration, prune, every, stop)) if prune else credit,
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def tree_rpo(
    group: int = 16,
    noise: float = 0.7,
    low: float = 0.3,
    depth: int = 4,
    every: int = 25,
    skip_last: int = 2,
    clip: float = 1e-4,
    beta: float = 0.0,
    updates: int = 4,
    sft: float = 0.0,
) -> Method:
    """Dynamic-TreeRPO: a window of `depth` stochastic steps, each of which branches, slides along the schedule; noise grows
    linearly with depth from `low` to `noise`.

    sft: LayerTuning-RL's share of a matching loss toward each prompt's best image (`objectives.mixed`), 0: without. Its constants
    are not published, so there is no default to trust; try 0.01 to 1. It excludes beta.

    Source: Dynamic-TreeRPO (2509.23352).
    Differs: inspired by the text alone, which does not give the levels in full; without its reward-conditioned clip.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        window = windows.sliding(iteration, len(sigmas) - 1 - skip_last, depth, every)
        law = laws.decaying(laws.flow_sde, levels.by_depth(sigmas, window, noise, low))
        return tree(sigmas, law, window, fans(group, window))

    ratio = objectives.clip(clip, beta=beta)
    objective = objectives.mixed(ratio, objectives.matching(), sft) if sft else ratio
    return Method(plan_at, advantage.Group(ddof=1, eps=1e-8), objective, reference(beta), updates=updates)
