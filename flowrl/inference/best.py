"""Best of n: draw several, keep the one a reward likes most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowrl.rewards import Reward

_T = TypeVar("_T")
Judge = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], Tensor]
"""judge(pixels uint8 [P, L, H, W, 3], prompts [P], metadata [P]) -> float64 [P, L], NaN where there is no score."""


@dataclass(frozen=True)
class Best(Generic[_T]):
    """kept: the winner, the sample at `index`;  values float64 [n], NaN where there is no score.

    Where there is no score at all, index is None and `kept` the first sample."""

    kept: _T
    index: int | None
    values: Tensor


def best_of(draw: Callable[[int], _T], value: Callable[[Sequence[_T]], Tensor], n: int) -> Best[_T]:
    """Draw n samples and keep the best. draw(i) makes the i-th;  value(samples) -> [n], NaN where there is no score.

    A missing score never wins. The chance of at least one success is `success`, the distance from the model at most `kl_bound`.

    Raises: ValueError for n below 1, or another number of values.
    """
    _count(n)
    samples = [draw(i) for i in range(n)]
    values = value(samples).double()
    if values.shape != (n,):
        raise ValueError(f"values of {n} samples have shape {list(values.shape)}; give one each, [{n}]")
    index = int(best(values))
    return Best(samples[max(index, 0)], None if index < 0 else index, values)


def best(values: Tensor) -> Tensor:
    """Index of the largest value along the last axis, long [...]: of equals the first, -1 where all are missing (NaN)."""
    missing = values.isnan()
    at = values.masked_fill(missing, -math.inf).argmax(-1)
    # a score of -inf is a score: it must not lose to a missing one
    at = torch.where(missing.gather(-1, at[..., None])[..., 0], (~missing).long().argmax(-1), at)
    return at.masked_fill(missing.all(-1), -1)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: the most, in nats, that best of n moves a model; equal where no two samples tie.

    Raises: ValueError for n below 1.
    Source: 2401.01879 shows it to be a bound; the formula is older.
    """
    _count(n)
    return math.log(n) - (n - 1) / n


def success(p: float | Tensor, n: int) -> Tensor:
    """1 - (1 - p)^n: the chance of at least one success among n, each with chance p in [0, 1]; float64."""
    _count(n)
    return 1 - (1 - torch.as_tensor(p, dtype=torch.float64)) ** n


def judge(reward: Reward) -> Judge:
    """A reward as a function of pixels, its state kept inside. The L images of a prompt compete where the reward is groupwise."""
    state = reward.init()

    def score(pixels: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        nonlocal state
        from flowrl.rewards import Samples

        p, leaves = pixels.shape[:2]
        samples = Samples(pixels, prompts, metadata, torch.ones(p, leaves, dtype=torch.bool), torch.zeros(leaves, dtype=torch.long))
        scores, state = reward(samples, state)
        return scores.values.double().masked_fill(~scores.valid, math.nan)

    return score


def _count(n: int) -> None:
    if n < 1:
        raise ValueError(f"the best of {n} images; give at least 1")
