"""What is remembered of a prompt, by its text: its success rate, or the mean and spread of its reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Earned

Memory = dict[str, list[float]]
"""text -> numbers. Prompts with the same text share them."""


def _kept(keep: float) -> None:
    if not 0 <= keep <= 1:
        raise ValueError(f"keep, the share of what is known that outlasts a visit, is {keep:g}; it must lie in [0, 1]")


@dataclass(frozen=True)
class Rates:
    """Success rates, learned from the images that are trained on.

    An image's success is s = clip((reward - worst) / (best - worst), 0, 1), or with a threshold 1 where reward >= threshold, else
    0. At each visit a <- keep a + sum s and b <- keep b + sum (1 - s), over valid images; p = (a + m) / (a + b + 1), where m, the
    rate of all prompts together, stands for what is not known of one.

    Raises: ValueError for best <= worst, or keep outside [0, 1].
    """

    keep: float = 0.5
    worst: float = 0.0
    best: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        _kept(self.keep)
        if not self.best > self.worst:
            raise ValueError(
                f"best, the reward of full success, is {self.best:g} and worst, that of none, {self.worst:g}; best must be larger"
            )

    def success(self, rewards: Tensor) -> Tensor:
        if self.threshold is not None:
            return (rewards >= self.threshold).double()
        return ((rewards.double() - self.worst) / (self.best - self.worst)).clamp(0, 1)

    def update(self, tally: Mapping[str, Sequence[float]], texts: Sequence[str], earned: Sequence[Earned]) -> Memory:
        """The tally [a, b] of each text after a visit; a visit without a valid image leaves it as it was."""
        new = {text: list(pair) for text, pair in tally.items()}
        for text, got in zip(texts, earned, strict=True):
            if got.valid.any():
                s = self.success(got.rewards[got.valid])
                a, b = new.get(text, (0.0, 0.0))
                new[text] = [self.keep * a + float(s.sum()), self.keep * b + float((1 - s).sum())]
        return new

    def of(self, tally: Mapping[str, Sequence[float]], texts: Sequence[str]) -> Tensor:
        """p of each text, float64 [N], in (0, 1)."""
        every = torch.tensor([*tally.values(), (0.5, 0.5)], dtype=torch.float64).sum(0)
        a, b = torch.tensor([tally.get(text, (0.0, 0.0)) for text in texts], dtype=torch.float64).T
        return (a + every[0] / every.sum()) / (a + b + 1)


def moments(
    memory: Mapping[str, Sequence[float]], texts: Sequence[str], earned: Sequence[Earned], keep: float
) -> dict[str, list[float]]:
    """[n, mean, sum of squared deviations] of each text's reward after a visit; what was known before counts `keep` times.

    n is the weight of all images seen, which forgetting makes a fraction. Invalid images do not count.
    """
    _kept(keep)
    new = {text: list(row) for text, row in memory.items()}
    for text, got in zip(texts, earned, strict=True):
        r = got.rewards[got.valid].double()
        if len(r):
            n, mean, square = new.get(text, (0.0, 0.0, 0.0))
            n, square, more = keep * n, keep * square, float(r.mean())
            whole = n + len(r)
            joined = square + float(((r - more) ** 2).sum()) + (more - mean) ** 2 * n * len(r) / whole
            new[text] = [whole, mean + (more - mean) * len(r) / whole, joined]
    return new
