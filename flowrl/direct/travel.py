"""The quiet way from noise to an image, and how much of it keeps a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flowrl.samplers import Path, paths, solvers

Ask = Callable[[Tensor, Tensor], Tensor]
"""ask(x [N, *d], sigma [N]) -> u [N, *d]."""


@dataclass(frozen=True)
class Route:
    """The levels of a way, falling to 0, and what of its steps is differentiated.

    sigmas: n + 1 levels; a way that stops early jumps from its last level but one to 0, which is x0_hat.
    trained: n flags; a step without keeps its prediction's value and loses its graph, and the state goes on with its own.
    attached: whether the network sees its input with its graph, or only as numbers.

    Raises: ValueError for levels that do not fall to 0, or flags that are not one a step.
    """

    sigmas: tuple[float, ...]
    trained: tuple[bool, ...]
    attached: bool = True

    def __post_init__(self) -> None:
        falls = all(above > below for above, below in pairwise(self.sigmas))
        if len(self.sigmas) < 2 or not falls or self.sigmas[-1] != 0:
            raise ValueError(f"a route's levels must fall to 0, in at least one step; got {list(self.sigmas)}")
        if len(self.trained) != len(self.sigmas) - 1:
            raise ValueError(f"a route of {len(self.sigmas) - 1} steps has {len(self.trained)} flags; give one a step")


def route(sigmas: Sequence[float] | Tensor, steps: Collection[int], stop: int | None = None, attached: bool = True) -> Route:
    """The way down `sigmas` with these steps trained; from step `stop` it jumps to 0, and later ones are not made.

    Raises: ValueError where no trained step is left.
    """
    levels = [float(v) for v in sigmas]
    count = len(levels) - 1
    last = count - 1 if stop is None else stop
    if not 0 <= last < count:
        raise ValueError(f"a way of {count} steps cannot stop at step {last}; give 0 to {count - 1}")
    trained = tuple(i in steps for i in range(last + 1))
    if not any(trained):
        raise ValueError(f"none of the steps {sorted(steps)} lies before the end at step {last}: nothing would be trained")
    return Route((*levels[: last + 1], 0.0), trained, attached)


def travel(ask: Ask, x: Tensor, way: Route, path: Path = paths.flow, reference: Ask | None = None) -> tuple[Tensor, Tensor]:
    """Euler's steps from x [N, *d] at way.sigmas[0] down to 0: (x0 [N, *d], drift [N]).

    drift: mean over trained steps and latent dims of (u - u_ref)^2, 0 without a reference; u_ref is a number to its gradient.
    Under torch.no_grad nothing keeps a graph, whatever the route says.
    """
    drift, graph = x.new_zeros(len(x)), torch.is_grad_enabled()
    for (level, below), trained in zip(pairwise(way.sigmas), way.trained, strict=True):
        sigma, below_ = (torch.full((len(x),), v, dtype=torch.float64) for v in (level, below))
        given, told = x if way.attached else x.detach(), sigma.to(x)
        with torch.set_grad_enabled(graph and trained):
            u = ask(given, told)
        if trained and reference is not None:
            with torch.no_grad():
                anchor = reference(given, told)
            drift = drift + (u - anchor).square().flatten(1).mean(1) / sum(way.trained)
        x = solvers.euler.move(solvers.Start(x, u, sigma, below_, path))
    return x, drift
