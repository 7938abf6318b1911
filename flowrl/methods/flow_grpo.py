"""Flow-GRPO (2505.05470): every step but the last is a stochastic flow step, trained with a clipped ratio and a KL."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Law, Plan, chains, laws, windows
from flowrl.types import Method, WeightSet


def reference(beta: float) -> dict[str, WeightSet]:
    """The weight sets a KL of strength beta needs."""
    return {"reference": WeightSet("frozen")} if beta else {}


def flow_grpo(
    group: int = 24,
    noise: float = 0.7,
    clip: float = 1e-4,
    beta: float = 0.04,
    std: Literal["group", "global"] = "global",
    updates: int = 2,
    compat: str | None = None,
) -> Method:
    """Flow-GRPO as published for SD3.5-M on GenEval: noise 0.7, clip 1e-4, KL 0.04, groups of 24, global std, two updates a
    rollout.

    The last step of the schedule is quiet (their 0.99 of the steps).

    Source: Flow-GRPO (2505.05470), flow_grpo@9745241 config/grpo.py.
    Differs: the KL is the exact one of a step; compat="flow_grpo@9745241" multiplies it by sigma - sigma' as they do.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.flow_sde(noise), range(int((len(sigmas) - 1) * 0.99)), group)

    return Method(
        plan_at, advantage.Group(std=std), objectives.clip(clip, beta=beta, compat=compat), reference(beta), updates=updates
    )


def law_of(kind: Literal["flow_sde", "cps", "dance_sde"], noise: float) -> Law:
    kinds = {"flow_sde": laws.flow_sde, "cps": laws.cps, "dance_sde": laws.dance_sde}
    if kind not in kinds:
        raise ValueError(f"law {kind!r} is unknown; use one of {', '.join(kinds)}")
    return kinds[kind](noise)


def flow_grpo_fast(
    group: int = 24,
    law: Literal["flow_sde", "cps", "dance_sde"] = "cps",
    noise: float = 0.8,
    window: int = 3,
    low: int = 0,
    high: int = 5,
    clip: float = 1e-5,
    beta: float = 0.0,
    std: Literal["group", "global"] = "global",
    updates: int = 2,
    seed: int = 0,
) -> Method:
    """Flow-GRPO-Fast: only a window of `window` steps, placed anew each iteration in [low, high), is stochastic and trained.

    Source: Flow-GRPO repository, config/grpo.py@9745241 (SD3 fast without guidance: CPS 0.8, window 3 of [0, 5), clip 1e-5).
    Differs: the window is the same for all samples of an iteration (see `windows.jumping`).
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, law_of(law, noise), windows.jumping(iteration, low, high, window, seed), group)

    return Method(plan_at, advantage.Group(std=std), objectives.clip(clip, beta=beta), reference(beta), updates=updates)
