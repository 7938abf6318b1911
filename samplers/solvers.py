"""Quiet steps: how a state moves to a lower level without noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowrl.kernels import step

from . import multistep
from .paths import Path


@dataclass(frozen=True)
class Start:
    """Where N quiet steps start. x, u [N, *d]: states and predictions; sigma, sigma_next [N] float64.

    past: earlier (sigma [N], x0_hat [N, *d]) along each row's own ancestors, the latest first; sigma is NaN where a row has none.
    left [N]: steps that follow this one;  steps [N]: of the whole way from the root to the leaf;  noised bool [N]: whether a noisy
      step came before.
    predict(x, sigma, rows) -> u: a further call of the network, for some of the rows.
    """

    x: Tensor
    u: Tensor
    sigma: Tensor
    sigma_next: Tensor
    path: Path
    past: Sequence[tuple[Tensor, Tensor]] = ()
    left: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    steps: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    noised: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    predict: Callable[[Tensor, Tensor, list[int]], Tensor] | None = None


class Solver(Protocol):
    """extra: further network calls of a step that does not end at 0.  memory: how many earlier x0_hats a step looks at."""

    @property
    def extra(self) -> int: ...

    @property
    def memory(self) -> int: ...

    def move(self, at: Start) -> Tensor:
        """The states at sigma_next."""
        ...


@dataclass(frozen=True)
class Euler:
    """x' = alpha' x0_hat + sigma' x1_hat: on the flow path x + (sigma' - sigma) u, on a variance-preserving one DDIM."""

    extra: int = field(default=0, init=False)
    memory: int = field(default=0, init=False)

    def move(self, at: Start) -> Tensor:
        return step(at.x, at.u, *at.path.coefficients(at.sigma, at.sigma_next, at.sigma_next, at.sigma * 0))


@dataclass(frozen=True)
class Heun:
    """The mean of the slopes dx / d sigma at both ends: second order, two network calls; the step to 0 is Euler's.

    Source: 2206.00364, algorithm 1, in sigma of the path.
    """

    extra: int = field(default=1, init=False)
    memory: int = field(default=0, init=False)

    def move(self, at: Start) -> Tensor:
        first = Euler().move(at)
        rows = (at.sigma_next > 0).nonzero().flatten()
        if not len(rows):
            return first
        assert at.predict is not None  # the rollout gives it to solvers with extra calls
        out, x, here, there = first.clone(), first[rows], at.sigma[rows], at.sigma_next[rows]
        wide = (-1, *[1] * (x.ndim - 1))
        begin = at.path.slope(at.x[rows], at.u[rows], here.to(x).view(wide))
        end = at.path.slope(x, at.predict(x, there, rows.tolist()), there.to(x).view(wide))
        out[rows] = at.x[rows] + ((there - here) / 2).to(x).view(wide) * (begin + end)
        return out


@dataclass(frozen=True)
class DPM:
    """DPM-Solver++ with the data prediction, multistep: order 1 (Euler, DDIM), 2 or 3; one network call a step.

    A row uses the x0_hats of its own ancestors, so a branch starts with its parent's history. The first step of a way and its last
    are of order 1, the second and the last but one at most of order 2 (the latter on ways of fewer than 15 steps only, as
    diffusers does it). After a start at sigma = 1, where ln(alpha / sigma) is infinite, the second step is of order 1 in effect.

    Raises: ValueError for an unknown order or kind.
    Source: DPM-Solver++ (2211.01095) algorithm 2; diffusers 0.42.1 `DPMSolverMultistepScheduler`; MixGRPO-Flash (2507.21802).
    """

    order: int = 2
    kind: Literal["midpoint", "heun"] = "midpoint"
    extra: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        multistep.check(self.order, self.kind)

    @property
    def memory(self) -> int:
        return self.order - 1

    def move(self, at: Start) -> Tensor:
        wide = (-1, *[1] * (at.x.ndim - 1))
        x0 = at.path.x0(at.x, at.u, at.sigma.to(at.x).view(wide))
        known = 1 + sum((~sigma.isnan()).long() for sigma, _ in at.past) + torch.zeros_like(at.sigma, dtype=torch.long)
        limit = torch.where((at.left > 0) & (at.steps >= 15), self.order, at.left + 1)
        order = torch.minimum(known, limit).clamp(max=self.order)
        out = torch.empty_like(at.x)
        for k in order.unique().tolist():
            rows = (order == k).nonzero().flatten()
            past = [(sigma[rows], value[rows]) for sigma, value in at.past[: k - 1]]
            out[rows] = multistep.step(
                at.x[rows], at.sigma[rows], at.sigma_next[rows], [(at.sigma[rows], x0[rows]), *past], self.kind, at.path.alpha
            )
        return out


@dataclass(frozen=True)
class Tail:
    """`after` on the quiet steps that follow a noisy one, `before` on the others; both look back on the same history."""

    after: Solver
    before: Solver

    @property
    def extra(self) -> int:
        return 0

    @property
    def memory(self) -> int:
        return max(self.after.memory, self.before.memory)

    def move(self, at: Start) -> Tensor:
        noised = at.noised.to(at.x.device).view(-1, *[1] * (at.x.ndim - 1))
        return torch.where(noised, self.after.move(at), self.before.move(at))


def tail(after: Solver, before: Solver | None = None) -> Tail:
    """`after` once noise was added, `before` (Euler) until then: MixGRPO-Flash takes DPM-Solver++ in its tail only.

    Raises: ValueError for solvers with further network calls, which would be made for every row.
    """
    if after.extra or (before is not None and before.extra):
        raise ValueError("tail() cannot combine solvers that call the network more than once a step; use euler and dpm")
    return Tail(after, euler if before is None else before)


euler = Euler()
heun = Heun()


def dpm(order: int = 2, kind: Literal["midpoint", "heun"] = "midpoint") -> DPM:
    """DPM-Solver++; see `DPM`."""
    return DPM(order, kind)
