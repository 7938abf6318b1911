"""Compositions around another one, `inner`, that drop some of its credit. They nest freely. See `credit` for zero_sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.types import Advantage, Credit, Outcome

from .credit import rewards, weighed
from .ported import d3s
from .selection import extremes, narrowed
from .several import front
from .trees import below, node_rewards


@dataclass(frozen=True)
class Lifted:
    """A plain function as an advantage."""

    function: Callable[[Outcome], Credit]
    zero_sum: bool = False

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        return self.function(outcome), state


def lift(function: Callable[[Outcome], Credit]) -> Advantage:
    """An advantage without memory from a function of the outcome."""
    return Lifted(function)


def kept(credit: Credit, keep: Tensor) -> Credit:
    """Credit without the edges where keep [P, n] (or [n]) is False, advantages untouched."""
    return replace(credit, weight=credit.weight * keep, kl_weight=credit.kl_weight * keep)


@dataclass(frozen=True)
class Pruned:
    """`inner`, but edges into some depths are not trained on: depths_at(iteration) -> depths."""

    inner: Advantage
    depths_at: Callable[[int], Sequence[int]]
    zero_sum: bool = True

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        depths = torch.tensor(list(self.depths_at(outcome.iteration)), dtype=torch.long)
        return kept(credit, ~torch.isin(outcome.plan.depth, depths)), state


@dataclass(frozen=True)
class Narrowed:
    """`inner`, but only the ways that `narrowed` keeps are trained on, up to iteration `until` (None: always).

    Source: BranchGRPO (2509.06040), width pruning.
    """

    inner: Advantage
    ratio: float = 0.5
    mode: Literal["best", "extremes"] = "best"
    until: int | None = None
    zero_sum: bool = True

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        if self.until is not None and outcome.iteration > self.until:
            return credit, state
        value = node_rewards(outcome.plan, *weighed(outcome))
        return kept(credit, narrowed(outcome.plan, value, self.ratio, self.mode)), state


@dataclass(frozen=True)
class Extremes:
    """`inner`, but only the ways to the best ceil(n / 2) and worst floor(n / 2) images are trained on, of each prompt or (over
    "batch") of all.

    Source: DanceGRPO@15cc71d best-of-n.
    """

    inner: Advantage
    n: int
    over: Literal["group", "batch"] = "group"
    zero_sum: bool = False

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        r, valid = weighed(outcome)
        score = torch.where(valid, r, torch.nan)
        on = extremes(score if self.over == "group" else score.view(1, -1), self.n).view_as(score)
        return kept(credit, below(outcome.plan, on)), state


@dataclass(frozen=True)
class Downsampled:
    """`inner`, but only the `share` of the batch's images whose advantages vary most is trained on (`d3s`, ported from
    language-model RL).
    """

    inner: Advantage
    share: float = 0.5
    zero_sum: bool = False

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        leaves = outcome.plan.leaves
        valid = credit.weight[:, leaves] > 0
        on = d3s(credit.advantage[:, leaves], max(1, round(self.share * int(valid.sum()))), valid)
        return kept(credit, below(outcome.plan, on)), state


@dataclass(frozen=True)
class Pareto:
    """`inner`, but only the ways to images that no other of the batch dominates are trained on; a reward with a negative factor is
    better when smaller.

    Source: Parrot (2401.05675); there with `raw` rewards.
    """

    inner: Advantage
    zero_sum: bool = False

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        r, valid, factors = rewards(outcome)
        on = front(r * factors.sign().view(-1, 1, 1), valid.expand(len(r), -1, -1))
        return kept(credit, below(outcome.plan, on)), state
