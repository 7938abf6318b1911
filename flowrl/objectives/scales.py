"""How much a step counts: published weights of the policy loss by step, functions of the step's three numbers, [E] -> [E].

d log p / d u of a step is (x' - mean) b / s^2, so its size is kappa = |b| / s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The recorded steps of a plan, one entry an edge [e], float64: levels before and after, b and s of the step; guard: the
    second level of the grid.
    """

    sigma: Tensor
    sigma_next: Tensor
    b: Tensor
    s: Tensor
    guard: float


Scale = Callable[[Steps], Tensor]
"""How much each recorded step of a plan counts: [e]."""


def kappa(b: Tensor, s: Tensor) -> Tensor:
    """|b| / s."""
    return b.abs() / s


def noise_aware(s: Tensor, constant: float) -> Tensor:
    """constant s: gradients in proportion to sigma - sigma'.

    constant: 2.25 (SD3), 1.73 (FLUX), 1.53 (Qwen-Image), which make the mean weight about 1 on their schedules.

    Source: TempFlow-GRPO (2508.04324).
    """
    return constant * s


def equalised(b: Tensor, s: Tensor) -> Tensor:
    """median(kappa) / kappa: every step's gradient as large as the middle one's (the lower of two middle ones).

    Source: SAGE-GRPO (2603.21872) `compute_grad_balancing_factors`.
    """
    k = kappa(b, s)
    return k.median() / k


def rectified(b: Tensor, s: Tensor) -> Tensor:
    """(1 / kappa) / mean(1 / kappa).

    Source: Flash-GRPO (2605.15980).
    """
    inverse = 1 / kappa(b, s)
    return inverse / inverse.mean()


def undone(sigma: Tensor, sigma_next: Tensor, guard: float) -> Tensor:
    """sqrt(sigma / (1 - sigma)) / sqrt(sigma - sigma'): undoes how Flow-SDE's noise grows with the level. sigma = 1 is taken at
    the guard. Their KL is multiplied by its square.

    Source: LongCat-Video (2510.22200), GenRL@82a867e.
    """
    at = sigma.where(sigma < 1, guard)
    return (sigma / (1 - at) / (sigma - sigma_next)).sqrt()


def discounted(depth: Tensor, steps: int, rate: float) -> Tensor:
    """rate^(steps - 1 - depth): early steps, far from the image, count less. depth: 0 for the first step.

    Source: DPPO (2409.00588), dppo@cc7234a model/diffusion/diffusion_ppo.py (rate 0.99).
    """
    return rate ** (steps - 1 - depth.double())


def widening(depth: Tensor, steps: int, base: float, clip: float, rate: float = 3.0) -> Tensor:
    """Clip range base + (clip - base) (e^(rate t) - 1) / (e^rate - 1), t = depth / (steps - 1): tight at the first step, `clip` at
    the last.

    Raises: ValueError for a single step, where t has no meaning.
    Source: DPPO, dppo@cc7234a model/diffusion/diffusion_ppo.py.  Differs: with one step theirs is NaN.
    """
    if steps < 2:
        raise ValueError(f"a clip range that widens over {steps} step(s): it needs at least 2; give one range instead")
    t = depth.double() / (steps - 1)
    return base + (clip - base) * (rate * t).expm1() / math.expm1(rate)
