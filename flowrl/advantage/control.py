"""Compositions around another one, `inner`, that change the rewards it sees or the KL it is held by. They nest freely. See `credit`
for zero_sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from flowrl.rewards.base import Scores, State
from flowrl.types import Advantage, Credit, Outcome

from .credit import weighed
from .diversity import adapted, diverse, gate, nearest, uncertainty
from .ported import unlikely
from .trees import below, node_rewards, path_sums


@dataclass(frozen=True)
class Gated:
    """`inner` with all rewards but `by` counted as 0 where `by` is below the threshold.

    Raises: ValueError (apply) where there is no such reward.
    Source: gated reward accumulation (2508.10548).
    """

    inner: Advantage
    by: str
    threshold: float
    zero_sum: bool = True

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        if self.by not in outcome.scores:
            raise ValueError(f"the gate {self.by!r} is no reward of this run; use one of {', '.join(outcome.scores)}")
        by = outcome.scores[self.by]
        shut = by.valid & (by.values < self.threshold)
        scores = {
            name: s if name == self.by else Scores(torch.where(shut, 0, s.values), (s.valid | shut) & by.valid)
            for name, s in outcome.scores.items()
        }
        return self.inner.apply(replace(outcome, scores=scores), state)


@dataclass(frozen=True)
class Unlikely:
    """`inner` on rewards that count more where the sample was less likely in its group (`unlikely`, ported from language-model
    RL).
    """

    inner: Advantage
    share: float = 0.25
    zero_sum: bool = True

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        if outcome.log_prob is None:
            raise ValueError(
                "unlikely samples are told by their densities; this plan has no recorded edges, so give it noisy steps"
            )
        r, valid = weighed(outcome)
        value = unlikely(r, path_sums(outcome.plan, outcome.log_prob), valid, self.share).float()
        return self.inner.apply(replace(outcome, scores={"total": Scores(value, valid)}, weights={"total": 1.0}), state)


@dataclass(frozen=True)
class Gardo:
    """`inner` (use `center`: no std), where good images count more the less they resemble the rest of their group (`diverse`), and
    only the images that the trained reward likes more than the others do are held near the reference (`gate`).

    Rewards with factor 0 are the others. features [P, L, D] of the outcome tell what resembles. The share of the gate starts
    at `share` and follows `adapted` in [low, high]. An edge has the mean distance of the leaves below it, and is held if one of
    them is.

    Raises: ValueError (apply) without features, or without a reward of factor 0.
    Source: GARDO (2512.24138).  Differs: compat="GARDO@1cc77fb" is the released code; see `diverse`, `uncertainty`, `gate`.
    """

    inner: Advantage
    share: float = 0.1
    low: float = 0.02
    high: float = 0.2
    compat: str | None = None
    zero_sum: bool = False

    def init(self) -> State:
        return {"inner": self.inner.init(), "share": self.share, "recent": []}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        if outcome.features is None:
            raise ValueError(
                "GARDO needs features [P, L, D] of the images to tell which are alike; give the method a feature extractor"
            )
        others = [name for name, factor in outcome.weights.items() if not factor]
        if not others:
            raise ValueError("GARDO compares the trained reward with others; add one of weight 0, for example --reward clip=0")
        credit, inner = self.inner.apply(outcome, state["inner"])
        plan, (r, valid) = outcome.plan, weighed(outcome)
        distance = node_rewards(plan, nearest(outcome.features, valid))
        further = torch.stack([outcome.scores[name].values for name in others])
        u = uncertainty(r, further, valid, self.compat)
        held = below(plan, gate(u, state["share"], self.compat))
        mean = float(u.nanmean())
        share, recent = state["share"], state["recent"]
        if not math.isnan(mean):
            share, recent = adapted(share, mean, recent, self.low, self.high)
        a = diverse(credit.advantage, distance, compat=self.compat)
        credit = replace(credit, advantage=a, kl_weight=credit.kl_weight * held)
        return credit, {"inner": inner, "share": share, "recent": recent}


@dataclass(frozen=True)
class Adaptive:
    """`inner` with a factor on the KL term that keeps the KL near `target`.

    With E <- 0.8 E + 0.2 KL of the last iteration (its "kl/mean"; E starts there) and n images an iteration, the factor is
    multiplied by exp((E - target) / target n / horizon) and kept in [low, high]. It starts at 1.

    Raises: ValueError for numbers that are not positive, or low > high.
    Source: Pref-GRPO@3e787f6, its KL controller.
    """

    inner: Advantage
    target: float
    horizon: float = 10_000.0
    low: float = 0.01
    high: float = 100.0
    zero_sum: bool = False

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0 and 0 < self.low <= self.high):
            raise ValueError(
                f"a KL kept near {self.target:g} over {self.horizon:g} images by a factor in [{self.low:g}, {self.high:g}]: "
                "give positive numbers, the lower bound first"
            )

    def init(self) -> State:
        return {"inner": self.inner.init(), "kl": None, "scale": 1.0}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, inner = self.inner.apply(outcome, state["inner"])
        kl, scale = outcome.metrics.get("kl/mean"), state["scale"]
        smooth = state["kl"]
        if kl is not None and math.isfinite(kl):
            smooth = kl if smooth is None else 0.8 * smooth + 0.2 * kl
            n = len(outcome.prompts) * len(outcome.plan.leaves)
            # no step of e^20 is needed between two bounds, and exp of much more overflows
            push = min(max((smooth - self.target) / self.target * n / self.horizon, -20.0), 20.0)
            scale = min(max(scale * math.exp(push), self.low), self.high)
        return replace(credit, kl_scale=credit.kl_scale * scale), {"inner": inner, "kl": smooth, "scale": scale}
