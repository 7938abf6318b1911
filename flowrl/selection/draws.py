"""Prompts drawn by weight, from keyed randomness; and the draw that has no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl import data
from flowrl.data import Prompts
from flowrl.rewards.base import State
from flowrl.samplers import noise as keyed
from flowrl.samplers.noise import Source

from .base import Chosen, Earned


def draw(weight: Tensor, count: int, noise: Source, replace: bool = False) -> Tensor:
    """`count` indices drawn in proportion to weight [N] >= 0, keyed by (seed, iteration): long [count].

    Without replacement one after the other, each in proportion to what is left; a second round begins where all were drawn.

    Raises: ValueError for weights that are negative, not finite, or all 0.
    """
    weight = weight.double()
    if not torch.isfinite(weight).all() or (weight < 0).any() or not (weight > 0).any():
        raise ValueError(f"weights of prompts must be finite, >= 0 and not all 0; got {weight.min():g} to {weight.max():g}")
    if replace:
        edges = weight.cumsum(0)
        return torch.searchsorted(edges, _uniform(count, noise, 0) * edges[-1], right=True).clamp(max=len(weight) - 1)
    rounds: list[Tensor] = []
    while (left := count - sum(len(r) for r in rounds)) > 0:
        # the race of exponential clocks: the order of arrival is that of draws without replacement
        arrival = -torch.log1p(-_uniform(len(weight), noise, len(rounds))) / weight
        rounds.append(arrival.argsort(stable=True)[:left])
    return torch.cat([torch.zeros(0, dtype=torch.long), *rounds])


def _uniform(count: int, noise: Source, turn: int) -> Tensor:
    generator = keyed.generator(noise.seed, noise.iteration, turn, 0, "selection")
    return torch.rand(count, generator=generator, dtype=torch.float64)


def entropy(weight: Tensor) -> float:
    """Of weights [N] as probabilities, over log N: 1 is uniform, 0 a single choice; 1 where N is 1."""
    p = weight.double() / weight.double().sum()
    return float(-torch.xlogy(p, p).sum()) / math.log(len(p)) if len(p) > 1 else 1.0


@dataclass(frozen=True)
class Uniform:
    """`data.batch`: every prompt once an epoch, the recipe's group for each, no memory."""

    def init(self) -> State:
        return {}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return (group,)

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        return Chosen(torch.tensor(data.batch(len(prompts), count, noise.seed, noise.iteration)))

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        return state


def uniform() -> Uniform:
    """All prompts alike, each once an epoch."""
    return Uniform()
