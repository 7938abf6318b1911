"""How data and noise mix at a level, and what the network's output means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor


class Path(Protocol):
    """x_sigma = alpha(sigma) x0 + sigma x1 with x1 ~ N(0, I), and the parametrisation of u."""

    def alpha(self, sigma: Tensor) -> Tensor: ...

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def x0(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor: ...

    def slope(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor: ...

    def target(self, x0: Tensor, x1: Tensor, sigma: Tensor) -> Tensor: ...

    def snap(self, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Flow:
    """x_sigma = (1 - sigma) x0 + sigma x1, u = x1 - x0: x0_hat = x - sigma u, x1_hat = x + (1 - sigma) u."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 - sigma

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c, s) of a law -> (a, b, s) of x' = a x + b u + s z."""
        return 1 - sigma_next + c, -sigma * (1 - sigma_next) + c * (1 - sigma), s

    def x0(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma * u

    def slope(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor:
        """dx / d sigma of the ODE."""
        return u

    def target(self, x0: Tensor, x1: Tensor, sigma: Tensor) -> Tensor:
        return x1 - x0

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest level the network was trained at: every level, on a continuous-time flow."""
        return sigma


flow = Flow()

Prediction = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True, eq=False)
class VP:
    """Variance-preserving diffusion: x_sigma = sqrt(1 - sigma^2) x0 + sigma x1, with sigma^2 = 1 - alpha_bar.

    prediction: u = x1 ("epsilon"), x0 ("sample") or alpha x1 - sigma x0 ("v_prediction").
    alphas_cumprod: float64 [T], alpha_bar of the discrete times the network was trained at; None: every level.

    Epsilon says nothing about the data at sigma = 1, and "sample" nothing about the noise at sigma = 0: start and end inside, as
    discrete schedules do (`schedules.vp`).

    Raises: ValueError for an unknown prediction, or a step of an epsilon network from sigma = 1.
    Source: DDPM (2006.11239); v-prediction: 2202.00512; names as in diffusers' schedulers.
    """

    prediction: Prediction = "epsilon"
    alphas_cumprod: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f'prediction {self.prediction!r} is unknown; use "epsilon", "sample" or "v_prediction"')

    def alpha(self, sigma: Tensor) -> Tensor:
        return (1 - sigma**2).sqrt()

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c, s) of a law -> (a, b, s) of x' = a x + b u + s z."""
        alpha, alpha_next = self.alpha(sigma), self.alpha(sigma_next)
        if self.prediction == "epsilon":
            if (sigma >= 1).any():
                raise ValueError(
                    "a step from sigma = 1 with an epsilon network: there its output says nothing about the data; "
                    "start at the highest level it was trained at (schedules.vp)"
                )
            return alpha_next / alpha, c - alpha_next * sigma / alpha, s
        if self.prediction == "sample":
            return c / sigma, alpha_next - c * alpha / sigma, s
        return alpha_next * alpha + c * sigma, c * alpha - alpha_next * sigma, s

    def x0(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return (x - sigma * u) / self.alpha(sigma)
        return u if self.prediction == "sample" else self.alpha(sigma) * x - sigma * u

    def slope(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor:
        """dx / d sigma of the ODE: (x1_hat alpha - x0_hat sigma) / alpha."""
        alpha, x0 = self.alpha(sigma), self.x0(x, u, sigma)
        return (x - alpha * x0) / sigma - sigma / alpha * x0

    def target(self, x0: Tensor, x1: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return x1
        return x0 if self.prediction == "sample" else self.alpha(sigma) * x1 - sigma * x0

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest level the network was trained at."""
        if self.alphas_cumprod is None:
            return sigma
        return self._levels(sigma)[self.time(sigma)]

    def time(self, sigma: Tensor) -> Tensor:
        """The discrete time of the nearest trained level: what the network is told. long, as sigma.

        Raises: ValueError on a path without a table of trained times.
        """
        levels = self._levels(sigma)
        return (sigma[..., None] - levels).abs().argmin(-1)

    def _levels(self, like: Tensor) -> Tensor:
        if self.alphas_cumprod is None:
            raise ValueError("this path has no table of trained times; give paths.vp(..., alphas_cumprod=scheduler.alphas_cumprod)")
        return (1 - self.alphas_cumprod.double()).sqrt().to(like)


def vp(prediction: Prediction = "epsilon", alphas_cumprod: Tensor | None = None) -> VP:
    """A variance-preserving path; see `VP`."""
    return VP(prediction, alphas_cumprod)


def alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """alpha_bar of Stable Diffusion's "scaled_linear" betas, sqrt(beta) linear from sqrt(start) to sqrt(end): float64 [steps]."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
