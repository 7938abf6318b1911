"""Compositions: an outcome becomes credit on the nodes of its plan.

zero_sum: whether advantages sum to 0 among the peers of a group, while nothing is clamped or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.samplers import Plan
from flowrl.types import Credit, Outcome

from .group import Estimate, Spread, enough, zscore
from .preference import win_rate, wins
from .several import Combine, summed
from .trees import Fusion, granular, node_rewards, peers


def rewards(outcome: Outcome) -> tuple[Tensor, Tensor, Tensor]:
    """The rewards that count: r [K, P, L] float64, valid [P, L] where every one of them could score, factors [K]. A factor of 0
    means a reward that feeds gates only.

    Raises: ValueError where all factors are 0.
    """
    counted = {name: factor for name, factor in outcome.weights.items() if factor}
    if not counted:
        raise ValueError(
            f"every reward of {', '.join(outcome.weights)} has the factor 0, so nothing is trained for; give one a factor"
        )
    r = torch.stack([outcome.scores[name].values.double() for name in counted])
    valid = torch.stack([outcome.scores[name].valid for name in counted]).all(0)
    return r, valid, torch.tensor(list(counted.values()), dtype=torch.float64)


def weighed(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """The weighted sum of the rewards [P, L], float64, and where every one of them could score; factors of 0 play no part."""
    r, valid, factors = rewards(outcome)
    return (factors.view(-1, 1, 1) * r).sum(0), valid


def fused(plan: Plan, r: Tensor, valid: Tensor, fusion: Fusion, log_prob: Tensor | None) -> Tensor:
    """Numbers of nodes [P, n] by a named fusion or a function."""
    return fusion(plan, r, valid) if callable(fusion) else node_rewards(plan, r, valid, fusion, log_prob)


def settled(a: Tensor, clamp: float | None) -> Credit:
    """Credit of advantages [P, n]; NaN becomes weight 0."""
    weight = torch.isfinite(a).float()
    a = a.nan_to_num(0).float()
    return Credit(a if clamp is None else a.clamp(-clamp, clamp), weight, weight.clone())


@dataclass(frozen=True)
class Composed:
    """The one composition of pure parts: several rewards, a plan and an estimate.

    fusion carries each reward up the plan; among the peers of a prompt `combine` makes one advantage of the rewards, by `estimate`.
    first="estimate": the leaves compete, and their advantages are carried up (TreeGRPO, 2512.08153, with fusion "softmax").
    least: how many must compete; peers that are fewer get 0. Invalid edges, and what the estimate calls NaN, get weight 0.

    Raises: ValueError (apply) where nowhere enough compete.
    """

    estimate: Estimate
    combine: Combine = summed
    fusion: Fusion = "mean"
    clamp: float | None = 5.0
    least: int = 2
    first: Literal["fusion", "estimate"] = "fusion"
    zero_sum: bool = True

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        plan, ids = outcome.plan, peers(outcome.plan)
        rivals = ids[plan.edges if len(plan.edges) else plan.leaves]
        enough(int(rivals.unique(return_counts=True)[1].max()), self.least, "this advantage")
        r, valid, factors = rewards(outcome)
        if self.first == "estimate":
            known = valid.expand(len(r), -1, -1)
            a = self._compared(torch.where(known, r, torch.nan), factors, ids[plan.leaves])
            return settled(fused(plan, a, torch.isfinite(a), self.fusion, outcome.log_prob), self.clamp), state
        nodes = torch.stack([fused(plan, one, valid, self.fusion, outcome.log_prob) for one in r])
        return settled(self._compared(nodes, factors, ids), self.clamp), state

    def _compared(self, values: Tensor, factors: Tensor, ids: Tensor) -> Tensor:
        """Advantages of values [K, P, m] among equal ids [m] -> [P, m], NaN where unknown."""
        known = torch.isfinite(values)
        a = torch.zeros(values.shape[1:])
        for which in ids[ids >= 0].unique():
            mine = ids == which
            if int(mine.sum()) >= self.least:
                a[:, mine] = self.combine(values[:, :, mine], known[:, :, mine], factors, self.estimate).float()
        return torch.where(known.all(0), a, torch.nan)


@dataclass(frozen=True)
class Group:
    """Weighted sum of the rewards, carried up the plan (`node_rewards`) and z-scored among peers of one prompt. Invalid edges
    get weight 0. A `Composed`; see there for combine.
    """

    ddof: int = 0
    eps: float = 1e-4
    std: Spread = "group"
    clamp: float | None = 5.0
    fusion: Fusion = "mean"
    combine: Combine = summed
    zero_sum: ClassVar[bool] = True

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        estimate = partial(zscore, ddof=self.ddof, eps=self.eps, std=self.std)
        return Composed(estimate, self.combine, self.fusion, self.clamp).apply(outcome, state)


@dataclass(frozen=True)
class WinRate:
    """Group z-scores of win rates instead of rewards: each sample against each of its peers, a tie within `margin`.

    Source: Pref-GRPO (2508.20751); there a judge compares, here any score that `wins` lifts (a reward may itself be a win rate).
    """

    margin: float = 0.0
    ddof: int = 1
    eps: float = 1e-8
    clamp: float | None = 5.0
    combine: Combine = summed
    zero_sum: ClassVar[bool] = True

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        return Composed(self._estimate, self.combine, clamp=self.clamp).apply(outcome, state)

    def _estimate(self, r: Tensor, valid: Tensor) -> Tensor:
        return zscore(win_rate(wins(r, valid, self.margin)), valid, self.ddof, self.eps)


@dataclass(frozen=True)
class Granular:
    """Weighted sum of the rewards, by `granular`: z-scored among the teeth of a step for every stride alone, summed over
    strides, then clamped. For combs; with one stride it is `Group`.
    """

    ddof: int = 1
    eps: float = 1e-8
    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = True

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        if outcome.plan.label is None:
            return Group(self.ddof, self.eps, clamp=self.clamp).apply(outcome, state)
        return settled(granular(outcome.plan, *weighed(outcome), self.ddof, self.eps), self.clamp), state
