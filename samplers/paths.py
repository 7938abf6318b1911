"""How data and noise mix at a level, and what the network's output means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Path(Protocol):
    """x_sigma = alpha(sigma) x0 + sigma x1 with x1 ~ N(0, I), and the parametrisation of u."""

    def alpha(self, sigma: Tensor) -> Tensor: ...

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def x0(self, x: Tensor, u: Tensor, sigma: Tensor) -> Tensor: ...

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

    def target(self, x0: Tensor, x1: Tensor, sigma: Tensor) -> Tensor:
        return x1 - x0

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest level the network was trained at: every level, on a continuous-time flow."""
        return sigma


flow = Flow()
