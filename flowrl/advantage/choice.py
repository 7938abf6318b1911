"""Compositions that choose: which images of a prompt count at all. What is chosen is carried up the plan, to imitate or to prefer
the whole way. See `credit` for zero_sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from flowrl.rewards.base import State
from flowrl.types import Credit, Outcome

from .credit import weighed
from .group import enough
from .leafwise import carried


@dataclass(frozen=True)
class Pairs:
    """Advantage 1 for the k-th best and -1 for the k-th worst leaf of a prompt, k = 1 ... count, where the one is truly better;
    all others have weight 0. Among equals the first leaf is taken.

    Raises: ValueError for count < 1; (apply) for groups of one.
    Source: Flow-GRPO, flow_grpo@ac4c86e stat_tracking.py type "dpo".
    Differs: a prompt of equal rewards has no pair; theirs makes one of its first two leaves.
    """

    count: int = 1
    zero_sum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.count} pairs a prompt: give 1 or more")

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        enough(r.shape[1], 2, "a pair of a better and a worse image")
        a = torch.zeros(r.shape)
        for i in range(len(r)):
            known = valid[i].nonzero().flatten()
            down = known[r[i, known].argsort(descending=True, stable=True)]
            up = known[r[i, known].argsort(stable=True)]
            for winner, loser in zip(down[: self.count], up[: self.count], strict=True):
                if r[i, winner] > r[i, loser]:
                    a[i, winner], a[i, loser] = 1, -1
        return carried(outcome.plan, a, a != 0, None), state


@dataclass(frozen=True)
class Best:
    """Advantage and weight 1 for the `count` best leaves of a prompt, None: for all that equal the best; 0 for the others, and in
    prompts whose rewards are all equal. Among equals the first leaves are taken.

    Raises: ValueError for count < 1; (apply) for groups of one.
    Source: Flow-GRPO, flow_grpo@ac4c86e stat_tracking.py type "sft" (all that equal the best).
    Differs: theirs trains on every image of a prompt of equal rewards.
    """

    count: int | None = None
    zero_sum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"the {self.count} best of a prompt: give 1 or more")

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        enough(r.shape[1], 2, "a best image")
        top = torch.where(valid, r, -torch.inf).amax(1, keepdim=True)
        uneven = top > torch.where(valid, r, torch.inf).amin(1, keepdim=True)
        chosen = valid & (r == top)
        if self.count is not None:
            order = torch.where(valid, r, -torch.inf).argsort(dim=1, descending=True, stable=True)
            chosen = valid & (order.argsort(1) < self.count)
        return carried(outcome.plan, (chosen & uneven).float(), chosen & uneven, None), state


@dataclass(frozen=True)
class Rewarded:
    """The advantage of a leaf is its reward; with a temperature, softmax(r / temperature) over its prompt, times the number of
    scored leaves.

    A reward below 0 pushes its image away, without bound: let rewards begin at 0, or give a temperature.

    Raises: ValueError for a temperature that is not positive.
    Source: Flow-GRPO, flow_grpo@ac4c86e stat_tracking.py type "rwr"; the exponential weights are those of reward-weighted
    regression (Peters & Schaal 2007).
    """

    temperature: float | None = None
    zero_sum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"a temperature of {self.temperature:g} for rewards: give a positive one")

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        a = torch.where(valid, r, 0)
        if self.temperature is not None:
            # a row without any score has no softmax
            logits = torch.where(valid, r / self.temperature, -torch.inf)
            a = (logits.softmax(1) * valid.sum(1, keepdim=True)).nan_to_num(0)
        return carried(outcome.plan, a, valid, None), state
