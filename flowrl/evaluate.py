"""What held-out scores say: means with intervals, and the paired gain. A NaN is an image that could not be scored, never 0.

The unit is the caption: images of one caption are averaged first (over those that could be scored), and captions are what is
resampled, because images of one caption are not independent.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Accuracy:
    """A mean over n captions and its 95 % interval, which is NaN below two captions; with none the score is too."""

    score: float
    low: float
    high: float
    n: int


def summarise(values: ArrayLike, tasks: Sequence[str | None], seed: int = 0) -> dict[str, Any]:
    """The mean of values [captions, images] and of each task, with percentile-bootstrap 95 % intervals over captions.

    {"score", "low", "high", "n", "tasks": {name: {"score", "low", "high", "n"}}}; n counts captions with a valid image. A task's
    interval depends on its own captions, its name and the seed only.

    Raises: ValueError if shapes do not fit or nothing could be scored.
    """
    means = _caption_means(values)
    if len(tasks) != len(means):
        raise ValueError(f"summarise got {len(means)} captions but {len(tasks)} tasks: give one task (or None) a caption.")
    if np.isnan(means).all():
        raise ValueError(f"None of the {np.size(values)} held-out images could be scored: look at the reward's warnings.")
    names = sorted({t for t in tasks if t is not None})
    by_task = {name: asdict(_accuracy(means[[t == name for t in tasks]], [seed, zlib.crc32(name.encode())])) for name in names}
    return {**asdict(_accuracy(means, [seed])), "tasks": by_task}


def gain(before: ArrayLike, after: ArrayLike, tasks: Sequence[str | None] | None = None) -> dict[str, Any]:
    """The mean difference after - before over captions scored in both, paired: se = std(d, ddof=1) / sqrt(n), interval +- 1.96 se.

    {"score", "standard_error", "low", "high"}, and with `tasks` the same for each under "tasks". One caption: se is NaN.

    Raises: ValueError if the captions do not match or no caption was scored in both.
    """
    first, second = _caption_means(before), _caption_means(after)
    if first.shape != second.shape:
        raise ValueError(
            f"gain is paired, but there are {len(first)} captions before and {len(second)} after: score the same captions."
        )
    difference = second - first
    if np.isnan(difference).all():
        raise ValueError("No caption could be scored both before and after: look at the reward's warnings.")
    if tasks is None:
        return _paired(difference)
    if len(tasks) != len(difference):
        raise ValueError(f"gain got {len(difference)} captions but {len(tasks)} tasks: give one task (or None) a caption.")
    names = sorted({t for t in tasks if t is not None})
    return {**_paired(difference), "tasks": {name: _paired(difference[[t == name for t in tasks]]) for name in names}}


def _paired(difference: NDArray[np.float64]) -> dict[str, float]:
    valid = difference[~np.isnan(difference)]
    mean = float(valid.mean()) if len(valid) else float("nan")
    error = float(valid.std(ddof=1) / np.sqrt(len(valid))) if len(valid) > 1 else float("nan")
    return {"score": mean, "standard_error": error, "low": mean - Z * error, "high": mean + Z * error}


def _caption_means(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"held-out scores have shape {array.shape}, expected [captions, images] with at least one of each.")
    if np.isinf(array).any():
        raise ValueError("held-out scores hold an infinity: a reward that cannot score returns NaN.")
    valid = ~np.isnan(array)
    count = valid.sum(axis=1)
    total = np.where(valid, array, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(array), np.nan), where=count > 0)


def _accuracy(means: NDArray[np.float64], seed: list[int]) -> Accuracy:
    valid = means[~np.isnan(means)]
    n = len(valid)
    if n < 2:
        return Accuracy(float(valid[0]) if n else math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    # Blocks of resamples keep memory at some 30 MB however many captions there are.
    block = max(1, min(RESAMPLES, 4_000_000 // n))
    starts = range(0, RESAMPLES, block)
    draws = [valid[rng.integers(0, n, (min(block, RESAMPLES - start), n))].mean(axis=1) for start in starts]
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
    return Accuracy(float(valid.mean()), float(low), float(high), n)
