"""How much a step counts: published weights of the policy loss by step, functions of the step's three numbers, [E] -> [E].

d log p / d u of a step is (x' - mean) b / s^2, so its size is kappa = |b| / s.
"""

from __future__ import annotations

from torch import Tensor


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
