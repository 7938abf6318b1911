"""AWM (2509.25050): advantage-weighted matching on re-noised images; samples by ODE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.objectives.awm import Order, Weighting
from flowrl.samplers import Plan, chains, laws
from flowrl.types import Method, WeightSet

from .average import ramp, warming
from .flow_grpo import reference


def awm(
    group: int = 24,
    weighting: Weighting = "ghuber",
    order: Order = "exp_first",
    beta: float = 1e-3,
    pull: float = 1.0,
    draws: int = 6,
    std: Literal["group", "global"] = "global",
    updates: int = 1,
    average: float = 0.99,
) -> Method:
    """AWM as published for SD3.5-M on GenEval: six levels an image, weighting "ghuber" with power 0.25, a distance of 1e-3 to the
    reference (3e-3 for text rendering, 1e-4 for PickScore) and of `pull` to an average with decay min(0.001 (it + 1), 0.3).

    updates: with more than one the ratio is to a copy of the weights that sampled.  average: as in `diffusion_nft`.

    Source: AWM (2509.25050), advantage_weighted_matching@be51372 config/dgx_awm.py.
    Differs: Euler without noise; theirs a stochastic Adams solver of 14 steps at noise 0.4 (0 for PickScore).
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.ode(), (), group)

    weights = reference(beta)
    follow = ramp(1e-3, 0.3)
    if pull:
        weights["recent"] = WeightSet("ema", decay=lambda iteration: follow(iteration + 1))
    if updates > 1:
        weights["old"] = WeightSet("copy", when=lambda iteration, metrics: True)
    if average:
        weights["average"] = WeightSet("ema", decay=warming(average))
    return Method(
        plan_at,
        advantage.Group(std=std),
        objectives.awm(weighting, order, beta, pull, draws, old=updates > 1),
        weights,
        export="average" if average else "current",
        updates=updates,
    )
