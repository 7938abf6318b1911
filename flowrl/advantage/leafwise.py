"""Compositions whose estimate takes whole images: it needs the prompts, a memory, or kinds of images. The leaves' advantages are
carried up the plan. See `credit` for zero_sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.samplers import Plan
from flowrl.types import Credit, Outcome

from .credit import settled, weighed
from .history import tracked
from .ported import san
from .ported_history import Risk, dcpo, earned, followed, riskpo, spo
from .trees import node_rewards


def carried(plan: Plan, a: Tensor, valid: Tensor, clamp: float | None) -> Credit:
    """Credit of the leaves' advantages [P, L]: each edge has the mean over the valid leaves below it."""
    return settled(node_rewards(plan, a, valid), clamp)


@dataclass(frozen=True)
class San:
    """`san` of the weighted sum of the rewards, carried up from the leaves. strata(outcome) -> long [P, L]."""

    strata: Callable[[Outcome], Tensor]
    share: float = 0.8
    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = True

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        return carried(outcome.plan, san(r, self.strata(outcome), valid, self.share), valid, self.clamp), state


@dataclass(frozen=True)
class Tracked:
    """DDPO's advantages: `tracked` of the weighted sum of the rewards, carried up from the leaves."""

    buffer: int = 16
    least: int = 16
    eps: float = 1e-6
    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = False

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        r = torch.where(valid, r, torch.nan)
        a, state = tracked(r, outcome.prompts, state, self.buffer, self.least, self.eps)
        return carried(outcome.plan, a, valid, self.clamp), state


@dataclass(frozen=True)
class Dcpo:
    """`dcpo` of the weighted sum of the rewards, carried up from the leaves."""

    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = False

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        a, state = dcpo(r, outcome.prompts, state, valid)
        return carried(outcome.plan, a, valid, self.clamp), state


@dataclass(frozen=True)
class Spo:
    """`spo` of the weighted sum of the rewards, carried up from the leaves; trackers forget as if the policy stood still."""

    half: float = 0.06
    keep: tuple[float, float] = (0.875, 0.96)
    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = False

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        a, state = spo(torch.where(valid, r, torch.nan), outcome.prompts, state, None, self.half, self.keep)
        return carried(outcome.plan, a, valid, self.clamp), state


@dataclass(frozen=True)
class Bundled:
    """`riskpo` of the weighted sum of the rewards, `size` prompts of the batch a bundle, its quantiles followed over iterations."""

    size: int = 5
    risk: Risk = Risk()  # noqa: RUF009 - frozen
    share: Literal["uniform", "deviation"] = "uniform"
    rate: float = 0.1
    clamp: float | None = 5.0
    zero_sum: ClassVar[bool] = False

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        r = torch.where(valid, r, torch.nan)
        bundle = torch.arange(len(r)) // self.size
        a = riskpo(r, bundle, self._quantiles(state), self.risk, self.share)
        state = followed(earned(r, bundle), state, self.rate)
        return carried(outcome.plan, a, valid, self.clamp), state

    def _quantiles(self, state: State) -> tuple[float, float] | None:
        if "quantiles" not in state:
            return None
        q = state["quantiles"]
        low, high = (round(level * (len(q) + 1)) - 1 for level in (self.risk.low, self.risk.high))
        return q[low], q[high]
