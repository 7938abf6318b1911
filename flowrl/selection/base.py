"""What a selection takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from flowrl.advantage import weighed
from flowrl.data import Prompts
from flowrl.rewards.base import State
from flowrl.samplers.noise import Source
from flowrl.types import Credit, Outcome


@dataclass(frozen=True)
class Chosen:
    """index [P], long: places among the run's prompts, of which one may come twice;  group [P], long: images of each, None: all
    have the recipe's;  metrics: what is logged of the choice, under selection/.
    """

    index: Tensor
    group: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Earned:
    """What one chosen prompt's images came to. rewards [L], float64, NaN where not valid [L];  advantage: mean |A| over the edges
    it is trained on, NaN where there are none.
    """

    rewards: Tensor
    valid: Tensor
    advantage: float


class Selection(Protocol):
    """Pure: randomness comes from `noise`, which is (seed, iteration), and memory from `state`. Every process chooses the same,
    since all are told the gathered outcome."""

    def init(self) -> State: ...

    def sizes(self, count: int, group: int) -> Sequence[int]:
        """The group sizes it may give in an iteration of `count` prompts with `group` images each on average.

        Raises: ValueError for arguments that do not go with these numbers.
        """
        ...

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen: ...

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State: ...


def earned(outcome: Outcome, credit: Credit) -> list[Earned]:
    """Of every prompt of a batch: its leaves' weighted sum of rewards and the size of its credit."""
    rewards, valid = weighed(outcome)
    rewards = torch.where(valid, rewards, torch.nan)
    # a plan without recorded edges is trained on its images
    trained = outcome.plan.edges if len(outcome.plan.edges) else outcome.plan.leaves
    used = credit.weight[:, trained] > 0
    mean = torch.where(used, credit.advantage[:, trained].double().abs(), 0).sum(1) / used.sum(1)
    return [Earned(r, v, float(a)) for r, v, a in zip(rewards, valid, mean, strict=True)]
