"""Grids of noise levels: float64 [n + 1], from 1 down to 0. The one source of truth for rollout and replay."""

from __future__ import annotations

import torch
from torch import Tensor


def _steps(n: int) -> None:
    if n < 1:
        raise ValueError(f"a schedule of {n} steps: give at least 1")


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): 0 and 1 stay, a shift above 1 spends more steps at high noise."""
    return shift * t / (1 + (shift - 1) * t)


def linear_shift(n: int, shift: float = 1.0) -> Tensor:
    """n equal steps from 1 to 0, shifted.

    Source: DanceGRPO, MixGRPO, BranchGRPO, G2RPO `sd3_time_shift`.
    """
    _steps(n)
    return shifted(torch.linspace(1, 0, n + 1, dtype=torch.float64), shift)


def sd3(n: int, shift: float = 3.0, train_steps: int = 1000) -> Tensor:
    """diffusers' FlowMatchEulerDiscreteScheduler with a static shift.

    Its smallest level is shifted twice, once at construction and once when the steps are set, so that the last
    real step is tiny (n = 10, shift = 3: 0.0089 -> 0).

    Source: diffusers 0.42.1 `FlowMatchEulerDiscreteScheduler.set_timesteps`; Stable Diffusion 3 (2403.03206) eq. 23.
    """
    _steps(n)
    smallest = shifted(torch.tensor(1 / train_steps, dtype=torch.float64), shift)
    grid = shifted(torch.linspace(1, float(smallest), n, dtype=torch.float64), shift)
    return torch.cat([grid, grid.new_zeros(1)])
