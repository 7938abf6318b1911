"""DiffusionNFT (2509.16117): forward-process contrast between an implicit positive and negative policy; samples by ODE."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.objectives.nft import Mode
from flowrl.samplers import Plan, chains, laws
from flowrl.types import Method, WeightSet

from .average import ramp, warming


def diffusion_nft(
    group: int = 24,
    beta: float = 1.0,
    kl: float = 1e-4,
    scale: float = 5.0,
    draws: int = 1,
    decay_rate: float = 1e-3,
    decay_max: float = 0.5,
    decay_start: int = 0,
    mode: Mode = "all",
    std: Literal["group", "global"] = "global",
    updates: int = 1,
    average: float = 0.9,
) -> Method:
    """DiffusionNFT: data from the "old" policy, which follows old <- d old + (1 - d) current once a rollout, d =
    min(decay_rate (it - decay_start), decay_max).

    Their decay types: 0 has decay_rate 0 (old is the current policy), 1 is the default, 2 has rate 0.0075 up to 0.999 from 75 on.
    mode: what the advantage says of an image, `objectives.probability`.

    draws: noise levels asked for each image;  average: the decay, once a rollout, of the moving average that is evaluated and
    saved, min((1 + it) / (10 + it), average); 0 saves the current weights.

    Source: DiffusionNFT (2509.16117), DiffusionNFT@24af555 (beta 1 for GenEval, PickScore and HPS; decay type 1;
    evaluation by the average).
    Differs: Euler instead of its second-order solver; levels are stratified draws from the grid, not all of it permuted;
    the average follows once a rollout, theirs every eight optimizer steps.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.ode(), (), group)

    weights = {"old": WeightSet("ema", decay=ramp(decay_rate, decay_max, decay_start))}
    if kl:
        weights["reference"] = WeightSet("frozen")
    if average:
        weights["average"] = WeightSet("ema", decay=warming(average))
    return Method(
        plan_at,
        advantage.Group(std=std),
        objectives.nft(beta, kl, scale, draws, mode),
        weights,
        sample_from="old",
        export="average" if average else "current",
        updates=updates,
    )
