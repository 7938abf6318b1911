"""DGPO (2510.08425): preferences between the good and the bad images of a group; samples by ODE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, chains, laws
from flowrl.types import Method, WeightSet

from .average import ramp, warming


def dgpo(
    group: int = 24,
    beta: float = 100.0,
    kl: float = 0.02,
    clip: float | None = 1e-3,
    draws: int = 4,
    std: Literal["group", "global"] = "group",
    updates: int = 1,
    average: float = 0.9,
) -> Method:
    """DGPO as published for SD3.5-M on GenEval: beta 100, four levels of the first half of the steps, clip 1e-3 against a close
    average of the weights, which also samples; a distance of 0.02 to the reference.

    clip None: samples by the current weights.  average: as in `diffusion_nft`.

    Source: DGPO (2510.08425), DGPO@4894284 config/dgpo_wocfg.py (group 24 "for better performance"; decay min(0.001 it, 0.3)).
    Differs: the average samples from the start, theirs from optimizer step 200 to 500 on; Euler instead of DPM-Solver.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.ode(), (), group)

    weights = {"reference": WeightSet("frozen")}
    if clip is not None:
        weights["old"] = WeightSet("ema", decay=ramp(1e-3, 0.3))
    if average:
        weights["average"] = WeightSet("ema", decay=warming(average))
    return Method(
        plan_at,
        advantage.Group(std=std),
        objectives.dgpo(beta, kl, clip, draws),
        weights,
        sample_from="current" if clip is None else "old",
        export="average" if average else "current",
        updates=updates,
    )
