"""Diffusion-DPO (2311.12908) on images of the policy's own, ranked by the reward: no advantages, no likelihoods."""

from __future__ import annotations

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, chains, laws
from flowrl.types import Method, WeightSet

from .average import renewed


def online_dpo(
    group: int = 24,
    beta: float = 100.0,
    pairs: int = 1,
    every: int = 40,
    draws: int = 1,
    updates: int = 1,
) -> Method:
    """Online DPO as in Flow-GRPO's repository: the best against the worst image of each prompt, beta 100, and every 40 iterations
    the reference becomes the current policy.

    pairs: of the k-th best and k-th worst.  draws: levels asked for each pair. For an epsilon network Diffusion-DPO has beta 5000.

    Raises: ValueError for every < 1.
    Source: Flow-GRPO (2505.05470), flow_grpo@ac4c86e scripts/train_sd3_dpo.py.
    Differs: iterations are counted, theirs optimizer steps; a prompt of equal rewards is left out.
    """
    return _dpo(group, objectives.dpo(beta, draws), pairs, renewed(every), updates)


def diffusion_dpo(group: int = 24, beta: float = 100.0, pairs: int = 1, draws: int = 1, updates: int = 1) -> Method:
    """Diffusion-DPO against the frozen start, beta 100 on a flow; for an epsilon network give beta 5000.

    Source: Diffusion-DPO (2311.12908), DiffusionDPO@5233e75 train.py; flow_grpo@ac4c86e scripts/train_sd3_dpo.py, whose reference
    is never replaced by default.
    Differs: pairs are drawn from the policy as it is and ranked by the reward; theirs are a fixed set ranked by people.
    """
    return _dpo(group, objectives.dpo(beta, draws), pairs, WeightSet("frozen"), updates)


def _dpo(group: int, objective: objectives.DPO, pairs: int, kept: WeightSet, updates: int) -> Method:
    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.ode(), (), group)

    return Method(plan_at, advantage.Pairs(pairs), objective, {"reference": kept}, updates=updates)
