"""Judges: who is better of two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from flowrl.rewards.base import NotAScore, Reward, Samples, TrainableReward
from flowrl.rewards.forms import Detailed, Metadata, column, detailed

CHUNK = 64
"""Pairs a plain function sees at once: it gets copies of both images."""


@runtime_checkable
class Judge(Protocol):
    """Compares images of one prompt by their numbers, so that none is copied."""

    def seated(self, images: np.ndarray, pairs: np.ndarray, prompt: str, metadata: Metadata) -> Detailed:
        """images uint8 [N, (T,) H, W, 3], pairs long [M, 2] -> P(the first of a pair is better) [M], 1/2 a tie, NaN unreadable;
        parts: the same by aspects."""
        ...


@dataclass(frozen=True)
class Plain:
    """f(images A, images B, prompt) -> P(A is better), as a Judge."""

    function: Callable[[np.ndarray, np.ndarray, str], Any]

    def seated(self, images: np.ndarray, pairs: np.ndarray, prompt: str, metadata: Metadata) -> Detailed:
        del metadata
        values = np.full(len(pairs), np.nan)
        parts: dict[str, np.ndarray] = {}
        for start in range(0, len(pairs), CHUNK):
            cut = pairs[start : start + CHUNK]
            rows = slice(start, start + len(cut))
            told = detailed(self.function(images[cut[:, 0]], images[cut[:, 1]], prompt))
            values[rows] = column(told.values, len(cut))
            for name, some in told.parts.items():
                parts.setdefault(name, np.full(len(pairs), np.nan))[rows] = column(some, len(cut))
        return Detailed(values, parts)


@dataclass(frozen=True)
class Scored:
    """See `scored`."""

    function: Callable[[np.ndarray, list[str], list[Metadata]], Any]
    margin: float

    def seated(self, images: np.ndarray, pairs: np.ndarray, prompt: str, metadata: Metadata) -> Detailed:
        told = detailed(self.function(images, [prompt] * len(images), [dict(metadata) for _ in images]))
        score = column(told.values, len(images))
        return Detailed(_preferred(score[pairs[:, 0]] - score[pairs[:, 1]], self.margin))

    def __call__(self, a: np.ndarray, b: np.ndarray, prompt: str) -> np.ndarray:
        """P(A is better) of images A and B [M, (T,) H, W, 3]: 1, 0, or 1/2 within the margin; NaN where one has no score."""
        both = np.concatenate([a, b])
        return self.seated(both, np.arange(2 * len(a)).reshape(2, -1).T, prompt, {}).values


def scored(function: Callable[[np.ndarray, list[str], list[Metadata]], Any] | Reward, margin: float = 0.0) -> Scored:
    """A judge that prefers the image with the higher score, a tie where scores differ by `margin` or less.

    function: f(images, prompts, metadata) -> N numbers, each image scored once; or a Reward.

    Raises: ValueError for a negative margin.
    """
    if not margin >= 0:
        raise ValueError(f"a margin of {margin:g} for a tie: give 0 or more")
    return Scored(lowered(function) if isinstance(function, Reward) else function, margin)


def lowered(reward: Reward) -> Callable[[np.ndarray, list[str], list[Metadata]], Any]:
    """A Reward as a function of the images of one prompt; what it remembers is forgotten after each call.

    Raises: TypeError for a reward that learns.
    """
    if isinstance(reward, TrainableReward):
        raise NotAScore(f"reward {reward.name!r} learns while it scores, and a judge must not; give one that does not")

    def function(images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> np.ndarray:
        here, rival = torch.ones(1, len(images), dtype=torch.bool), torch.zeros(len(images), dtype=torch.long)
        told, _ = reward(Samples(torch.from_numpy(images)[None], prompts[:1], metadata[:1], here, rival), reward.init())
        return told.values[0].double().numpy()

    return function


def judging(judge: Any) -> Judge:
    """A Judge as it is, a function lifted.

    Raises: TypeError for anything else.
    """
    if isinstance(judge, Judge):
        return judge
    if not callable(judge):
        raise TypeError(f"a judge is a function (images A, images B, prompt) -> P(A is better), not {type(judge).__name__}")
    return Plain(judge)


def _preferred(gap: np.ndarray, margin: float) -> np.ndarray:
    return np.where(np.isnan(gap), np.nan, np.where(gap > margin, 1.0, np.where(gap < -margin, 0.0, 0.5)))
