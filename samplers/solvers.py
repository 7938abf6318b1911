"""Quiet steps: how a state moves to a lower level without noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from flowrl.kernels import step

from .paths import Path


class Solver(Protocol):
    """calls: network evaluations a step.  move: x at sigma, with u = network(x, sigma), to sigma_next; levels are float64 [N]."""

    calls: int

    def move(self, x: Tensor, u: Tensor, sigma: Tensor, sigma_next: Tensor, path: Path) -> Tensor: ...


@dataclass(frozen=True)
class Euler:
    """x' = alpha' x0_hat + sigma' x1_hat: on the flow path x + (sigma' - sigma) u."""

    calls: int = 1

    def move(self, x: Tensor, u: Tensor, sigma: Tensor, sigma_next: Tensor, path: Path) -> Tensor:
        return step(x, u, *path.coefficients(sigma, sigma_next, sigma_next, sigma * 0))


euler = Euler()
