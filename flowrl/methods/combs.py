"""Combs: one quiet trajectory whose states branch, each child finished without noise, so that its reward is that of one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.objectives.scales import Steps
from flowrl.samplers import Plan, comb, laws
from flowrl.types import Method

from .flow_grpo import reference


def tempflow_grpo(
    group: int = 24,
    teeth: int = 6,
    noise: float = 0.7,
    constant: float = 2.25,
    clip: float = 1e-4,
    beta: float = 0.004,
    updates: int = 1,
) -> Method:
    """TempFlow-GRPO as published for SD3.5-M: `group` children at every step but the last, `teeth` on each of group / teeth quiet
    trajectories; gradients weighed by constant s (2.25 SD3, 1.73 FLUX, 1.53 Qwen-Image); clip 1e-4, KL 0.004.

    Children of one state share its prediction, so a trajectory of 10 steps trains on 9 states for 54 edges.

    Raises: ValueError where teeth do not divide the group.
    Source: TempFlow-GRPO (2508.04324), TempFlow-GRPO@e66824e.
    """
    if teeth < 1 or group % teeth:
        raise ValueError(f"{group} children a step do not make whole trajectories of {teeth}; make the group a multiple of {teeth}")

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return comb(sigmas, laws.flow_sde(noise), range(len(sigmas) - 2), teeth, spines=group // teeth)

    def scale(steps: Steps) -> Tensor:
        return objectives.scales.noise_aware(steps.s, constant)

    return Method(plan_at, advantage.Group(), objectives.clip(clip, beta=beta, scale=scale), reference(beta), updates=updates)


def g2rpo(
    group: int = 12,
    noise: float = 0.7,
    steps: int = 8,
    strides: Sequence[int] = (1, 2, 3),
    clip: float = 1e-4,
    beta: float = 0.0,
    updates: int = 1,
) -> Method:
    """G2RPO (Granular-GRPO) as published for FLUX: `group` children at each of the first `steps` of one quiet trajectory, each
    finished at several granularities; an edge's advantage is the sum of its z-scores at each. Clip 1e-4, no KL.

    Source: G2RPO (2510.01982), Granular-GRPO@04ee954 (the paper's strides; its script has 1 and 2).
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return comb(sigmas, laws.flow_sde(noise), range(min(steps, len(sigmas) - 2)), group, strides)

    return Method(plan_at, advantage.Granular(), objectives.clip(clip, beta=beta), reference(beta), updates=updates)
