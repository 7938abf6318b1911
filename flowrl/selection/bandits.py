"""Categories of prompts as arms of a bandit: SEC (2505.14970)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl import data
from flowrl.data import Prompts
from flowrl.rewards.base import State
from flowrl.samplers.noise import Source

from .base import Chosen, Earned
from .draws import draw, entropy


def boltzmann(value: Tensor, temperature: float) -> Tensor:
    """exp(Q / temperature), normalised: the chance of each arm.

    Source: SEC (2505.14970).
    """
    return torch.softmax(value.double() / temperature, -1)


def towards(value: Tensor, gain: Tensor, rate: float) -> Tensor:
    """Q after a step: rate gain + (1 - rate) Q; an arm whose gain is NaN was not pulled and keeps its Q.

    Source: SEC (2505.14970): the gain is the mean |advantage| of the category.
    """
    return torch.where(gain.isnan(), value, rate * gain + (1 - rate) * value)


@dataclass(frozen=True)
class Bandit:
    temperature: float
    rate: float
    by: str

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature:g}; it must be above 0 (near 0 only the best category is taken)")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate:g}; it must lie in (0, 1]")

    def init(self) -> State:
        return {"value": {}, "cursor": {}}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return (group,)

    def members(self, prompts: Prompts) -> dict[str, list[int]]:
        """category -> its prompts, categories in order of their names; prompts without one are the category "".

        Raises: ValueError where there is one category only.
        """
        of: dict[str, list[int]] = {}
        for index, metadata in enumerate(prompts.metadata):
            of.setdefault(str(metadata.get(self.by, "")), []).append(index)
        if len(of) < 2:
            keys = sorted({key for metadata in prompts.metadata for key in metadata})
            raise ValueError(
                f"a bandit needs prompts of two categories or more, but by metadata {self.by!r} there is one; "
                f"name another with data.selection.args.by (there are: {', '.join(keys) or 'none'})"
            )
        return dict(sorted(of.items()))

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        members = self.members(prompts)
        arms, cursor, index = list(members), dict(state["cursor"]), list[int]()
        chance = boltzmann(torch.tensor([state["value"].get(arm, 0.0) for arm in arms]), self.temperature)
        for at in draw(chance, count, noise, replace=True).tolist():
            of, place = members[arms[at]], cursor.get(arms[at], 0)
            index.append(of[data.batch(len(of), 1, noise.seed, place)[0]])
            cursor[arms[at]] = place + 1
        return Chosen(torch.tensor(index), metrics={"entropy": entropy(chance)})

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        gains: dict[str, list[float]] = {}
        cursor = dict(state["cursor"])
        for metadata, got in zip(prompts.take(chosen.index).metadata, earned, strict=True):
            arm = str(metadata.get(self.by, ""))
            cursor[arm] = cursor.get(arm, 0) + 1
            if not math.isnan(got.advantage):
                gains.setdefault(arm, []).append(got.advantage)
        arms = sorted({*state["value"], *gains})
        old = torch.tensor([state["value"].get(arm, 0.0) for arm in arms], dtype=torch.float64)
        mean = [sum(gains[arm]) / len(gains[arm]) if arm in gains else math.nan for arm in arms]
        new = towards(old, torch.tensor(mean, dtype=torch.float64), self.rate)
        return {"value": dict(zip(arms, new.tolist(), strict=True)), "cursor": cursor}


def bandit(temperature: float = 1.0, rate: float = 0.5, by: str = "tag") -> Bandit:
    """A category for every prompt of the iteration with chance exp(Q / temperature), then the category's next prompt: each comes
    once a pass. Q, 0 at first, follows the category's mean |advantage| at `rate`.

    by: the metadata key of the category (GenEval's is "tag").

    Raises: ValueError for temperature <= 0, a rate outside (0, 1], and prompts of a single category.
    Source: SEC (2505.14970).
    """
    return Bandit(temperature, rate, by)
