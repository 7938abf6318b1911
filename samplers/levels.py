"""Noise levels that change along a rollout, for `laws.decaying`: functions of sigma, the level a step starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

At = Callable[[Tensor], Tensor]


def constant(level: float) -> At:
    return lambda sigma: torch.full_like(sigma, level)


def linear(high: float, low: float = 0.0) -> At:
    """From `high` at sigma = 1 to `low` at sigma = 0."""
    return lambda sigma: low + (high - low) * sigma


def cosine(high: float, low: float = 0.0) -> At:
    """low + (high - low) (1 + cos(pi (1 - sigma))) / 2: most of the noise early.

    Source: HiCoGen (2511.19965), whose T counts down from T_max, with high = 1.
    """
    return lambda sigma: low + (high - low) * (1 + (math.pi * (1 - sigma)).cos()) / 2


def exponential(high: float, rate: float) -> At:
    """high e^(-rate (1 - sigma)); rate >= 0."""
    if not rate >= 0:
        raise ValueError(f"a level that decays at rate {rate:g} would grow; give at least 0")
    return lambda sigma: high * (-rate * (1 - sigma)).exp()


def by_step(sigmas: Tensor | Sequence[float], values: Sequence[float]) -> At:
    """values[i] for the step that starts at sigmas[i], the nearest of the grid.

    Raises: ValueError where there are more or fewer values than steps.
    """
    grid = torch.as_tensor(sigmas, dtype=torch.float64)[:-1]
    table = torch.as_tensor(values, dtype=torch.float64)
    if len(table) != len(grid):
        raise ValueError(f"{len(table)} levels for a schedule of {len(grid)} steps; give one a step")
    return lambda sigma: table[(sigma[..., None] - grid).abs().argmin(-1)].to(sigma)


def by_depth(sigmas: Tensor | Sequence[float], steps: range, high: float, low: float = 0.0) -> At:
    """Grows linearly with the depth inside the stochastic range: low + (high - low) k / d at its k-th of d steps, k from 1; `low`
    elsewhere.

    Source: Dynamic-TreeRPO (2509.23352) eq. 6, of which the text says only that the level increases linearly with k / d.
    """
    count = len(sigmas) - 1
    return by_step(sigmas, [low + (high - low) * (steps.index(i) + 1) / len(steps) if i in steps else low for i in range(count)])


def annealed(iteration: int, start: float, end: float, over: int) -> float:
    """A level that moves linearly from `start` to `end` in `over` iterations and stays: to build a plan's law with.

    Source: pi_RL (RLinf@a3816b5), 0.7 to 0.3 in 400.
    """
    return start + (end - start) * min(1.0, iteration / over)
