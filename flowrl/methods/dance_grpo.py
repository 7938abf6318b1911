"""DanceGRPO (2505.07818): constant noise at every step but the last, and one initial noise for a whole group."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Plan, laws, tree
from flowrl.types import Method

from .flow_grpo import reference


def dance_grpo(
    group: int = 12,
    noise: float = 0.3,
    clip: float = 1e-4,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 4,
) -> Method:
    """DanceGRPO as published for FLUX: noise 0.3, groups of 12 from one initial noise, clip 1e-4, no KL. The image is the clean
    prediction of the last step: a quiet jump to 0.

    Source: DanceGRPO (2505.07818), DanceGRPO@15cc71d.
    Differs: every step is trained on, theirs a random 60 % of each sample's; the first step's state is shared and costs one call.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return tree(sigmas, laws.dance_sde(noise), range(len(sigmas) - 2), {0: group})

    return Method(
        plan_at,
        advantage.Group(ddof=1, eps=1e-8, std=std),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )
