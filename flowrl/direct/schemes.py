"""How rows become images with a graph: a truncated way through the sampler, or one step on noise that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from flowrl.samplers import Path, paths, solvers
from flowrl.samplers.noise import Source

from .travel import Ask, Route, travel

Words = tuple[str, Tensor | float]
"""(what is put before the prompt, the factor [N] of the reward it then gets)."""


@dataclass(frozen=True)
class Rows:
    """N images to be made. slot, member [N]: prompt and place in its group, which key all noise.

    ask, reference: the trained network and the frozen one (None: not wanted) under the rows' prompts.
    sigmas [n + 1]: the policy's levels;  shape: of one latent.
    """

    slot: Sequence[int]
    member: Sequence[int]
    ask: Ask
    reference: Ask | None
    sigmas: Tensor
    shape: tuple[int, ...]
    noise: Source
    path: Path = paths.flow
    device: str = "cpu"

    def normal(self, purpose: str) -> Tensor:
        """Standard normal [N, *d]."""
        pairs = zip(self.slot, self.member, strict=True)
        return torch.stack([self.noise.normal(self.shape, s, m, purpose) for s, m in pairs]).to(self.device)

    def uniform(self, purpose: str) -> Tensor:
        """[N] in [0, 1)."""
        return torch.tensor([self.noise.uniform(s, m, purpose) for s, m in zip(self.slot, self.member, strict=True)])


@dataclass(frozen=True)
class View:
    """Clean latents x0 [N, *d] with a graph, and what they are asked: R = sum over words of factor * reward(words + prompt).

    share: of the rows' loss; those of all views of a row sum to 1.  drift [N]: distance from the reference.
    """

    x0: Tensor
    share: float = 1.0
    words: Sequence[Words] = (("", 1.0),)
    drift: Tensor | None = None


class Scheme(Protocol):
    def check(self, sigmas: Tensor) -> int:
        """Network calls whose graphs a row keeps at once, at most.

        Raises: ValueError where the scheme does not fit the schedule.
        """
        ...

    def views(self, rows: Rows) -> Iterator[View]:
        """One after the other: a view's graph may be freed before the next is asked for."""
        ...


@dataclass(frozen=True)
class Truncated:
    """Sample along a route, one for all rows of an iteration.  redraws: further views, which re-noise the image to the last level
    and make its last step again.
    """

    route_at: Callable[[Source, Tensor], Route]
    redraws: int = 0

    def check(self, sigmas: Tensor) -> int:
        # routes may be drawn: the first iterations show what they hold
        return max(sum(self.route_at(Source(0, iteration), sigmas).trained) for iteration in range(64))

    def views(self, rows: Rows) -> Iterator[View]:
        way = self.route_at(rows.noise, rows.sigmas)
        x0, drift = travel(rows.ask, rows.normal("rollout"), way, rows.path, rows.reference)
        share = 1 / (1 + self.redraws)
        image = x0.detach()
        yield View(x0, share, drift=drift)
        del x0, drift
        for k in range(self.redraws):
            level = torch.tensor(way.sigmas[-2], dtype=image.dtype, device=image.device)
            x = rows.path.alpha(level) * image + level * rows.normal(f"redraw {k}")
            yield View(travel(rows.ask, x, Route(way.sigmas[-2:], (True,)), rows.path)[0], share)


@dataclass(frozen=True)
class Branch:
    """One step between levels of a grid, start -> end [N] (indices), and what its image is asked."""

    start: Tensor
    end: Tensor
    words: Sequence[Words]


@dataclass(frozen=True)
class Known:
    """Direct alignment: an image of the policy is mixed with known noise, makes one step, and is recovered with that same noise.

    levels [m], falling: places of the grid a step may end at.  reach: how many places a step spans.
    wanted, unwanted: words before the prompt.  down, up: (first, last) of kappa, linear over the grid, for the two branches.
    """

    levels: Tensor = field(repr=False)
    reach: int
    wanted: str
    unwanted: str
    down: tuple[float, float]
    up: tuple[float, float]

    def check(self, sigmas: Tensor) -> int:
        return 1

    def branches(self, place: Tensor) -> list[Branch]:
        """The steps that end at `place` [N] in 1 .. m - 2: down to it with (1 + k) wanted - unwanted, then up to it with
        (1 + k) unwanted - wanted. Near an end of the grid both reach less far."""
        m = len(self.levels)
        reach = torch.minimum(torch.minimum(place, m - 1 - place), torch.tensor(self.reach))
        first, second = torch.linspace(*self.down, m)[m - place], torch.linspace(*self.up, m)[m - place - reach]
        return [
            Branch(place - reach, place, ((self.wanted, 1 + first), (self.unwanted, -1.0))),
            Branch(place + reach, place, ((self.unwanted, 1 + second), (self.wanted, -1.0))),
        ]

    def recovered(self, ask: Ask, x0: Tensor, x1: Tensor, of: Branch, path: Path = paths.flow) -> Tensor:
        """(x - sigma x1) / alpha at the end of the step; the gradient goes through the step's prediction alone."""
        start, end = self.levels[of.start], self.levels[of.end]
        wide = (-1, *[1] * (x0.ndim - 1))
        near, far = end.to(x0).view(wide), start.to(x0).view(wide)
        x = path.alpha(far) * x0 + far * x1
        x = solvers.euler.move(solvers.Start(x, ask(x, start.to(x0)), start.double(), end.double(), path))
        return (x - near * x1) / path.alpha(near)

    def views(self, rows: Rows) -> Iterator[View]:
        levels = [float(v) for v in rows.sigmas]
        with torch.no_grad():
            x0, _ = travel(rows.ask, rows.normal("rollout"), Route(tuple(levels), (False,) * (len(levels) - 1)), rows.path)
        x1 = rows.normal("injected")
        place = 1 + (rows.uniform("place") * (len(self.levels) - 2)).long()
        for branch in self.branches(place):
            yield View(self.recovered(rows.ask, x0, x1, branch, rows.path), 0.5, branch.words)
