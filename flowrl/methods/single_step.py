"""One stochastic step a rollout: E-GRPO (2601.00423) and Flash-GRPO (2605.15980)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl import advantage, objectives
from flowrl.objectives.scales import Steps
from flowrl.samplers import Plan, chains, join, laws, merged, paths, schedules, windows
from flowrl.types import Method

from .flow_grpo import reference


def e_grpo(
    group: int = 12,
    noise: float = 0.7,
    lengths: Sequence[int] = (1, 2),
    clip: float = 1e-4,
    beta: float = 0.0,
    updates: int = 4,
    seed: int = 0,
) -> Method:
    """E-GRPO: one stochastic step a rollout, over one or several steps of the schedule merged into one; images compete with
    those that took the same step. The step is drawn anew each iteration from the first half of the schedule.

    Raises: ValueError where the lengths do not divide the group.
    Source: E-GRPO (2601.00423), VisualGRPO@ae619bf (lengths 1 and 2, noise 0.7).
    Differs: the paper sets the length by a threshold on the step's entropy; here the lengths are given.
    """
    if group % len(lengths):
        raise ValueError(f"{group} images cannot be shared among {len(lengths)} lengths alike; make the group a multiple of it")
    law = laws.flow_sde(noise)

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        count = len(sigmas) - 1
        at = windows.jumping(iteration, 0, max(1, count // 2), 1, seed).start
        return join([merged(sigmas, law, at, min(k, count - 1 - at), group // len(lengths)) for k in lengths])

    return Method(plan_at, advantage.Group(ddof=1, eps=1e-8), objectives.clip(clip, beta=beta), reference(beta), updates=updates)


def flash_grpo(
    group: int = 4, low: int = 0, high: int = 10, clip: float = 1e-3, beta: float = 0.0, updates: int = 1, seed: int = 0
) -> Method:
    """Flash-GRPO: one stochastic step a prompt, drawn from [low, high) anew each iteration and the same for the prompt's images;
    Wan's law, and steps weighed by 1 / kappa so that none counts more than another.

    Source: Flash-GRPO (2605.15980), Flash-GRPO@4211013 (Wan2.1, 20 steps at shift 3: the mean of 1 / kappa is that schedule's).
    """
    grid = schedules.wan(20)
    at = torch.arange(10)
    _, b, s = paths.flow.coefficients(grid[at], grid[at + 1], *laws.wan_sde()(grid[at], grid[at + 1], float(grid[1])))
    typical = (1 / objectives.scales.kappa(b, s)).mean()

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        step = windows.jumping(iteration, low, min(high, len(sigmas) - 1), 1, seed, slot)
        return chains(sigmas, laws.wan_sde(), step, group)

    def scale(steps: Steps) -> Tensor:
        return 1 / objectives.scales.kappa(steps.b, steps.s) / typical

    return Method(plan_at, advantage.Group(), objectives.clip(clip, beta=beta, scale=scale), reference(beta), updates=updates)
