"""Fine-tuning on the policy's own images: on the best of each prompt, or on all, weighed by reward. The baselines of RL."""

from __future__ import annotations

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, chains, laws
from flowrl.types import Advantage, Method

from .flow_grpo import reference


def sft(group: int = 24, best: int | None = None, draws: int = 1, beta: float = 0.0, updates: int = 1) -> Method:
    """Supervised fine-tuning on the best of a group (best-of-n training, n = group): matching loss, logit-normal levels.

    best: how many of each prompt; None: all that equal the best.  draws: levels asked for each.  beta: distance to the reference.

    Source: Flow-GRPO (2505.05470), flow_grpo@ac4c86e scripts/train_sd3_sft.py.
    Differs: prompts of equal rewards are left out.
    """
    return _matching(group, advantage.Best(best), draws, beta, updates)


def rwr(group: int = 24, temperature: float | None = None, draws: int = 1, beta: float = 0.0, updates: int = 1) -> Method:
    """Reward-weighted regression: every image counts by its reward, as in Flow-GRPO's repository; with a temperature by the softmax
    of its group.

    Source: Flow-GRPO (2505.05470), flow_grpo@ac4c86e scripts/train_sd3_sft.py with "rwr".
    """
    return _matching(group, advantage.Rewarded(temperature), draws, beta, updates)


def _matching(group: int, credit: Advantage, draws: int, beta: float, updates: int) -> Method:
    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, laws.ode(), (), group)

    return Method(plan_at, credit, objectives.matching(draws, beta), reference(beta), updates=updates)
