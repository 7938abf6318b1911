"""Images for each prompt out of one budget: Knapsack RL (2509.25849) and XRPO (2510.06672)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from flowrl import data
from flowrl.data import Prompts
from flowrl.rewards.base import State
from flowrl.samplers.noise import Source

from .base import Chosen, Earned
from .history import Rates, moments


def mixed_value(p: Tensor, size: Tensor) -> Tensor:
    """[1 - p^N - (1 - p)^N] p (1 - p)^2 for N images of a prompt with success rate p: the chance that a group is mixed, times what
    it then moves p.

    Source: Knapsack RL (2509.25849).
    """
    return (1 - p**size - (1 - p) ** size) * p * (1 - p) ** 2


def allocate(value: Tensor, total: int) -> Tensor:
    """How many of `total` units each prompt gets so that the sum of value[prompt, units] [P, K] is largest: long [P], exactly
    `total` together, 0 to K - 1 each. Dynamic programming, O(P K total).

    Raises: ValueError where the units cannot be given away.
    """
    prompts, kinds = value.shape
    if not 0 <= total <= prompts * (kinds - 1):
        raise ValueError(f"{total} units cannot be dealt to {prompts} prompts with 0 to {kinds - 1} each")
    best = torch.full((total + 1,), -math.inf, dtype=torch.float64)
    best[0] = 0
    taken = torch.zeros(prompts, total + 1, dtype=torch.long)
    for row, gain in enumerate(value.double()):
        # before[b, k] = best[b - k]: what the prompts so far make of the units that are left when this one takes k
        before = torch.cat([torch.full((kinds - 1,), -math.inf, dtype=torch.float64), best]).unfold(0, kinds, 1).flip(1)
        best, taken[row] = (before + gain).max(1)
    out, left = torch.zeros(prompts, dtype=torch.long), total
    for row in reversed(range(prompts)):
        out[row] = taken[row, left]
        left -= int(out[row])
    return out


def knapsack_groups(p: Tensor, total: int, ladder: range) -> Tensor:
    """Group sizes out of `ladder`, `total` together, of the largest summed `mixed_value`: long [P]."""
    size = torch.tensor(ladder)
    extra = allocate(mixed_value(p[:, None].double(), size), (total - ladder.start * len(p)) // ladder.step)
    return size[extra]


def half_width(std: Tensor, n: Tensor, alpha: float = 0.05) -> Tensor:
    """t_{1 - alpha / 2, n - 1} std / sqrt(n), of the confidence interval of a mean; n >= 2.

    Source: XRPO (2510.06672).
    """
    return torch.as_tensor(special.stdtrit((n - 1).numpy(), 1 - alpha / 2)) * std / n.sqrt()


def exploration(std: Tensor, n: Tensor, seen: float, step: int = 1, bonus: float = 0.01, alpha: float = 0.05) -> Tensor:
    """What `step` more images of each prompt are worth: by how much they narrow its half-width, + bonus sqrt(log(1 + seen) / n).

    Source: XRPO (2510.06672), the form of the bonus as reported elsewhere.
    """
    narrowed = half_width(std, n, alpha) - half_width(std, n + step, alpha)
    return narrowed + bonus * (math.log1p(seen) / n).sqrt()


def xrpo_groups(std: Tensor, n: Tensor, seen: float, total: int, ladder: range, bonus: float, alpha: float) -> Tensor:
    """Group sizes out of `ladder`, `total` together: after the first, each next step goes where `exploration` is largest; long [P].

    n [P]: images already known of each prompt;  seen: of all.
    """
    size = torch.tensor(ladder)
    known = (n[:, None] + size).double()
    # no step leads on from the last
    worth = exploration(std[:, None], known, seen + ladder.start * len(n), ladder.step, bonus, alpha)
    worth[:, -1] = -math.inf
    at, every = torch.zeros(len(n), dtype=torch.long), torch.arange(len(n))
    for _ in range((total - ladder.start * len(n)) // ladder.step):
        at[worth[every, at].argmax()] += 1
    return size[at]


@dataclass(frozen=True)
class Range:
    """Group sizes from low to high in steps; high None: four times the recipe's group."""

    low: int
    high: int | None
    step: int

    def ladder(self, group: int) -> range:
        """Raises: ValueError where group, low or high is no multiple of step, or low <= group <= high does not hold."""
        step, low = self.step, self.low
        high = 4 * group if self.high is None else self.high
        if step < 1 or low % step or high % step or group % step:
            raise ValueError(
                f"sizes.group {group} and data.selection.args low {low} and high {high} must all be multiples of step {step}, "
                "which must be at least 1"
            )
        if not 2 <= low <= group <= high:
            raise ValueError(
                f"data.selection.args low is {low} and high {high}, but sizes.group, the mean of the groups, is {group}; "
                "2 <= low <= group <= high must hold"
            )
        return range(low, high + 1, step)

    def within(self, count: int, group: int) -> range:
        """`ladder`, where one prompt can have the largest group.

        Raises: ValueError where high is more than all images of an iteration, and for what `ladder` refuses.
        """
        sizes = self.ladder(group)
        if self.high is not None and self.high > count * group:
            raise ValueError(
                f"data.selection.args.high is {self.high}, but {count} prompts with {group} images each are {count * group}"
            )
        return sizes


def _summary(group: Tensor) -> dict[str, float]:
    return {"group_min": float(group.min()), "group_max": float(group.max())}


@dataclass(frozen=True)
class Knapsack:
    sized: Range
    warmup: int
    rates: Rates

    def init(self) -> State:
        return {"tally": {}}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return self.sized.within(count, group)

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        index = data.batch(len(prompts), count, noise.seed, noise.iteration)
        p = self.rates.of(state["tally"], prompts.take(index).text)
        even = torch.full((count,), group)
        groups = even if noise.iteration < self.warmup else knapsack_groups(p, count * group, self.sized.ladder(group))
        return Chosen(torch.tensor(index), groups, _summary(groups))

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        return {"tally": self.rates.update(state["tally"], prompts.take(chosen.index).text, earned)}


def knapsack(
    low: int = 2,
    high: int | None = None,
    warmup: int = 10,
    step: int = 1,
    keep: float = 0.5,
    worst: float = 0.0,
    best: float = 1.0,
    threshold: float | None = None,
) -> Knapsack:
    """The images of an iteration, as many as ever, dealt to its prompts so that the sum of `mixed_value` is largest.

    low, high: of a prompt's group, high None: four times sizes.group.  step: groups are multiples of it, for methods whose
    structure asks for that.  warmup: iterations with even groups at first.  keep, worst, best, threshold: how p is learned, see
    `Rates`. In a method's own terms: of a comb, the group counts children a step.

    Raises: ValueError for what `Rates` refuses; at the start of a run for sizes that do not fit sizes.group.
    Source: Knapsack RL (2509.25849).
    Differs: p is shrunk towards the rate of all prompts by one image, so that 0 of 8 is not never; warmup is counted in iterations.
    """
    return Knapsack(Range(low, high, step), warmup, Rates(keep, worst, best, threshold))


@dataclass(frozen=True)
class Explorer:
    sized: Range
    bonus: float
    alpha: float
    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.bonus < 0 or not 0 <= self.keep <= 1:
            raise ValueError(
                f"alpha is {self.alpha:g}, bonus {self.bonus:g} and keep {self.keep:g}; 0 < alpha < 1, bonus >= 0 and "
                "0 <= keep <= 1 must hold"
            )

    def init(self) -> State:
        return {"moments": {}, "seen": 0}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return self.sized.within(count, group)

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        index = data.batch(len(prompts), count, noise.seed, noise.iteration)
        std = {text: math.sqrt(square / (n - 1)) for text, (n, _, square) in state["moments"].items() if n > 1}
        middle = sum(std.values()) / len(std) if std else 1.0  # of a prompt of which nothing is known
        texts = prompts.take(index).text
        groups = xrpo_groups(
            torch.tensor([std.get(text, middle) for text in texts], dtype=torch.float64),
            torch.tensor([state["moments"].get(text, (0.0,))[0] for text in texts], dtype=torch.float64),
            state["seen"],
            count * group,
            self.sized.ladder(group),
            self.bonus,
            self.alpha,
        )
        return Chosen(torch.tensor(index), groups, _summary(groups))

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        known = moments(state["moments"], prompts.take(chosen.index).text, earned, self.keep)
        return {"moments": known, "seen": state["seen"] + sum(int(got.valid.sum()) for got in earned)}


def xrpo(
    low: int = 2, high: int | None = None, bonus: float = 0.01, alpha: float = 0.05, step: int = 1, keep: float = 0.5
) -> Explorer:
    """The images of an iteration, as many as ever: `low` for each prompt, then step by step to where `exploration` is largest.

    bonus: in units of the reward.  alpha: the intervals hold with chance 1 - alpha.  keep: what counts of a prompt's images after
    its next visit.  low, high, step: as `knapsack`'s.

    Raises: ValueError for arguments outside their ranges; at the start of a run for sizes that do not fit sizes.group.
    Source: XRPO (2510.06672).
    Differs: dealt before the rollout, from earlier visits, not between rounds of one; without exemplars in context and novelty
    sharpening, which are for text; the default bonus is ours.
    """
    return Explorer(Range(low, high, step), bonus, alpha, keep)
