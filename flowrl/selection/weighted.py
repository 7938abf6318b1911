"""Prompts drawn by how much there is to learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl import data
from flowrl.data import Prompts
from flowrl.rewards.base import State
from flowrl.samplers.noise import Source

from .base import Chosen, Earned
from .draws import draw, entropy
from .history import Rates


def uncertainty(p: Tensor, floor: float = 0.05) -> Tensor:
    """sqrt(p (1 - p)) + floor.

    Source: SPO (2509.13232), verl-recipe@48ea0a7 `spo/spo_ray_trainer.py`.
    """
    return (p * (1 - p)).clamp(min=0).sqrt() + floor


def variance_weight(p: Tensor, diversity: Tensor, weight: float = 0.8) -> Tensor:
    """weight p (1 - p) + (1 - weight) diversity: variance of a success and how unlike the answers are, in [0, 1].

    Source: MMR1 (2509.21268), MMR1@d8161a0 `verl/curriculum/metrics.py`.
    """
    return weight * p * (1 - p) + (1 - weight) * diversity


def spread(success: Tensor) -> float:
    """Twice the population std of numbers in [0, 1]: 1 where half are 0 and half are 1, 0 where all are equal."""
    return float(2 * success.double().std(correction=0))


@dataclass(frozen=True)
class Prioritised:
    floor: float
    rates: Rates

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise ValueError(f"floor is {self.floor:g}; it must be above 0, or a prompt that always succeeds never comes back")

    def init(self) -> State:
        return {"tally": {}}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return (group,)

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        weight = uncertainty(self.rates.of(state["tally"], prompts.text), self.floor)
        return Chosen(draw(weight, count, noise), metrics={"entropy": entropy(weight)})

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        return {"tally": self.rates.update(state["tally"], prompts.take(chosen.index).text, earned)}


def prioritised(
    floor: float = 0.05, keep: float = 0.5, worst: float = 0.0, best: float = 1.0, threshold: float | None = None
) -> Prioritised:
    """Prompts in proportion to sqrt(p (1 - p)) + floor, none twice in an iteration as long as there are others.

    keep, worst, best, threshold: how p is learned, see `Rates`. For a reward that is no success or failure, p (1 - p) is the most
    its variance can be.

    Raises: ValueError for floor <= 0 and for what `Rates` refuses.
    Source: SPO (2509.13232), verl-recipe@48ea0a7 `spo/spo_ray_trainer.py`.
    Differs: p comes from whole groups, not from one answer a visit, so what is known is forgotten at a fixed rate a visit and not
    by how far the policy moved; no prompt is tried before training.
    """
    return Prioritised(floor, Rates(keep, worst, best, threshold))


@dataclass(frozen=True)
class VarianceAware:
    share: float
    weight: float
    refresh: int
    rates: Rates
    diversity: Callable[[Tensor], float]

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("weight", self.weight)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value:g}; it must lie in [0, 1]")
        if self.refresh < 1:
            raise ValueError(f"refresh is {self.refresh}; weights are taken anew every so many iterations, at least 1")

    def init(self) -> State:
        return {"visits": 0, "tally": {}, "diversity": {}, "fixed": {"tally": {}, "diversity": {}}}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        if int(self.share * count) < 1:
            raise ValueError(
                f"data.selection.args.share {self.share:g} of {count} prompts an iteration is less than one prompt; "
                "raise it, use more prompts, or data.selection.name=uniform"
            )
        return (group,)

    def weights(self, texts: Sequence[str], state: State) -> Tensor:
        """Of all prompts, as of the last refresh; one not seen yet is as unlike itself as the others on average."""
        known = state["fixed"]["diversity"]
        middle = sum(known.values()) / len(known) if known else 0.0
        unlike = torch.tensor([known.get(text, middle) for text in texts], dtype=torch.float64)
        return variance_weight(self.rates.of(state["fixed"]["tally"], texts), unlike, self.weight)

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        weight, many = self.weights(prompts.text, state), int(self.share * count)
        if not weight.any():  # nothing is known to vary
            weight = torch.ones_like(weight)
        index = draw(weight, many, noise, replace=True)
        rest = data.batch(len(prompts), count - many, noise.seed, noise.iteration) if many < count else []
        return Chosen(torch.cat([index, torch.tensor(rest, dtype=torch.long)]), metrics={"entropy": entropy(weight)})

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        texts = prompts.take(chosen.index).text
        tally, unlike = self.rates.update(state["tally"], texts, earned), dict(state["diversity"])
        for text, got in zip(texts, earned, strict=True):
            if got.valid.any():
                new = self.diversity(self.rates.success(got.rewards[got.valid]))
                unlike[text] = self.rates.keep * unlike.get(text, new) + (1 - self.rates.keep) * new
        visits = state["visits"] + 1
        fixed = state["fixed"] if visits % self.refresh else {"tally": tally, "diversity": unlike}
        return {"visits": visits, "tally": tally, "diversity": unlike, "fixed": fixed}


def variance_aware(
    share: float = 0.5,
    weight: float = 0.8,
    refresh: int = 1,
    keep: float = 0.5,
    worst: float = 0.0,
    best: float = 1.0,
    threshold: float | None = None,
    diversity: Callable[[Tensor], float] = spread,
) -> VarianceAware:
    """int(share P) prompts drawn with replacement by weight p (1 - p) + (1 - weight) diversity, the rest uniform.

    refresh: weights are taken anew every so many iterations.  keep, worst, best, threshold: how p is learned, see `Rates`.
    diversity: successes in [0, 1] of a prompt's images -> [0, 1].

    Raises: ValueError for shares outside [0, 1], refresh < 1, and for what `Rates` refuses.
    Source: MMR1 (2509.21268), MMR1@d8161a0 `verl/curriculum/metrics.py`, `samplers.py` (share 0.5, weight 0.8).
    Differs: p is learned from the images that are trained on, not from 32 answers to every prompt each 28 to 35 steps, so weights
    may follow at once; images have no n-grams, so diversity is the spread of their rewards.
    """
    return VarianceAware(share, weight, refresh, Rates(keep, worst, best, threshold), diversity)
