"""MixGRPO (2507.21802): a window of stochastic steps slides along the schedule; the rest is an ODE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, chains, schedules, solvers, windows
from flowrl.types import Method

from .flow_grpo import Kind, law_of, reference


def mix_grpo(
    group: int = 12,
    law: Kind = "flow_sde",
    noise: float = 0.7,
    window: int = 4,
    every: int = 25,
    stride: int = 1,
    roll_back: bool = True,
    strategy: windows.Strategy = "progressive",
    skip_last: int = 2,
    clip: float = 1e-4,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 4,
) -> Method:
    """MixGRPO as published for FLUX: window 4, moved by 1 every 25 iterations over all but the last two steps, noise 0.7, clip
    1e-4,
    groups of 12, no KL, four updates a rollout.

    Source: MixGRPO (2507.21802), MixGRPO@e5cdd6a.
    Differs: unbiased std + 1e-8 there, population std + 1e-4 here (the window's end: see `windows.sliding`).
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        steps = windows.sliding(iteration, len(sigmas) - 1 - skip_last, window, every, stride, roll_back, strategy)
        return chains(sigmas, law_of(law, noise), steps, group)

    return Method(plan_at, advantage.Group(std=std), objectives.clip(clip, beta=beta), reference(beta), updates=updates)


def mix_grpo_flash(
    group: int = 12,
    law: Kind = "flow_sde",
    noise: float = 0.7,
    window: int = 4,
    every: int = 25,
    ratio: float = 0.4,
    frozen: bool = False,
    skip_last: int = 2,
    clip: float = 1e-4,
    beta: float = 0.0,
    updates: int = 4,
) -> Method:
    """MixGRPO-Flash: MixGRPO whose quiet tail, after the window, has `ratio` of its steps and is walked by DPM-Solver++ 2M.

    frozen: the window stays at the start (Flash*, ratio 0.2: fewest calls).

    Source: MixGRPO-Flash (2507.21802), MixGRPO@e5cdd6a; `schedules.flash_tail` for what differs.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        steps = range(window) if frozen else windows.sliding(iteration, len(sigmas) - 1 - skip_last, window, every)
        return chains(schedules.flash_tail(sigmas, steps[-1], ratio), law_of(law, noise), steps, group)

    return Method(
        plan_at,
        advantage.Group(),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
        solver=solvers.tail(solvers.dpm(2)),
    )
