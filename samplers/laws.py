"""How noisy is a step? A law maps (sigma, sigma') to (c, s) of  x' = alpha' x0_hat + c x1_hat + s z.

sigma in (0, 1], sigma' in [0, sigma), float64, broadcastable. Factories take floats or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Law = Callable[..., tuple[Tensor, Tensor]]
"""(sigma, sigma_next, guard, alpha=...) -> (c, s). guard: the second sigma of the grid, used where a law is singular at sigma
= 1.
"""


def ode() -> Law:
    """The deterministic step: c = sigma', s = 0."""

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: object = None) -> tuple[Tensor, Tensor]:
        return sigma_next, torch.zeros_like(sigma_next)

    return law


def _euler_maruyama(sigma: Tensor, sigma_next: Tensor, g2: Tensor) -> tuple[Tensor, Tensor]:
    """c = sigma' - g^2 delta / 2 sigma,  s = g sqrt(delta): one step of the reverse SDE with diffusion coefficient g."""
    delta = sigma - sigma_next
    return sigma_next - g2 * delta / (2 * sigma), (g2 * delta).sqrt()


def flow_sde(level: float | Tensor) -> Law:
    """Reverse SDE of a flow with diffusion coefficient g = level sqrt(sigma / (1 - sigma)), one Euler-Maruyama step.

    c = sigma' - g^2 (sigma - sigma') / 2 sigma,  s = g sqrt(sigma - sigma').
    level >= 0, 0 is the ODE. At sigma = 1 the denominator takes `guard` for sigma.

    Source: Flow-GRPO (2505.05470) eq. 9; flow_grpo@9745241 `sde_step_with_logprob(sde_type="sde")`.
    Differs: the peer also returns g without sqrt(sigma - sigma') and divides its KL by that; here s is the full std of the step.
    """

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: object = None) -> tuple[Tensor, Tensor]:
        safe = torch.where(sigma >= 1, torch.as_tensor(guard, dtype=sigma.dtype), sigma)
        return _euler_maruyama(sigma, sigma_next, level**2 * sigma / (1 - safe))

    return law


def dance_sde(eta: float | Tensor) -> Law:
    """Reverse SDE with a constant diffusion coefficient eta: c = sigma' - eta^2 (sigma - sigma') / 2 sigma, s = eta sqrt(sigma
    - sigma').

    Regular at sigma = 1 and at sigma' = 0, where the last step still adds noise.

    Source: DanceGRPO (2505.07818); DanceGRPO@15cc71d `flux_step`.
    """

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: object = None) -> tuple[Tensor, Tensor]:
        return _euler_maruyama(sigma, sigma_next, torch.as_tensor(eta**2, dtype=sigma.dtype) * torch.ones_like(sigma))

    return law


def cps(level: float | Tensor) -> Law:
    """Coefficient-preserving sampling: c = sigma' cos(level pi / 2), s = sigma' sin(level pi / 2), so c^2 + s^2 = sigma'^2.

    level in [0, 1], 0 is the ODE. The last step (sigma' = 0) is noiseless. At a fixed level it does not converge as steps grow:
    Gaussian data keep 1 - (1 - cos(level pi / 2)) / 2 of their variance; with level falling as 1 / sqrt(steps) it does, to
    first order.

    Source: Flow-CPS (2509.05952); flow_grpo@9745241 `sde_step_with_logprob(sde_type="cps")`.
    Differs: the peer scores the step by -<(x' - mean)^2>; here the density is the Gaussian one (`log_prob(form="bare")` is theirs).
    """
    angle = torch.as_tensor(level, dtype=torch.float64) * (math.pi / 2)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: object = None) -> tuple[Tensor, Tensor]:
        return sigma_next * angle.cos().to(sigma), sigma_next * angle.sin().to(sigma)

    return law
