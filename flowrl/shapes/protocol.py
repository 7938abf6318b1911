"""The evaluation protocol of the embedded world, fixed before the base was trained.

All held-out captions, IMAGES pictures of each, STEPS steps, no guidance, noise from `seeds`. Pure numpy.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.world import TAGS, Row, captions

IMAGES = 4
STEPS = 20
GUIDANCE = 1.0
CONSTANT = "flowrl shapes protocol 1"
RESAMPLES = 2000
EACH = 400
# Pretraining draws its noise with seeds below 2**40.
FLOOR = 2**40

Float = NDArray[np.float64]


def rows() -> list[Row]:
    """The held-out captions, in the protocol's order."""
    return captions("heldout")


def training() -> list[Row]:
    """Training captions for a reward: at most EACH of every task, evenly spaced, since half of all are of one task."""
    chosen: list[Row] = []
    for tag in TAGS:
        mine = [row for row in captions("train") if row["tag"] == tag]
        count = min(EACH, len(mine))
        chosen += [mine[i * len(mine) // count] for i in range(count)]
    return chosen


def seeds() -> NDArray[np.int64]:
    """[captions, IMAGES] seeds of the initial noise, in [2**40, 2**62), from sha256 of CONSTANT, caption and picture."""
    names = [[f"{CONSTANT}/{row['prompt']}/{k}" for k in range(IMAGES)] for row in rows()]
    numbers = [[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in some] for some in names]
    return np.array([[FLOOR + number % (2**62 - FLOOR) for number in some] for some in numbers], dtype=np.int64)


@dataclass(frozen=True)
class Interval:
    """A mean over captions with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    captions: int


def _interval(means: Float, rng: np.random.Generator) -> Interval:
    resampled = means[rng.integers(len(means), size=(RESAMPLES, len(means)))].mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(means.mean()), float(low), float(high), len(means))


def _by_caption(strict: Float, n: int) -> Float:
    if strict.ndim != 2 or len(strict) != n or n == 0:
        raise ValueError(
            f"accuracy of scores {list(strict.shape)} for {n} captions; give [captions, images] and one tag a caption."
        )
    return strict.astype(np.float64).mean(1)


def accuracy(strict: Float, tags: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """Strict accuracy "overall" and of every task, from scores [captions, images]; whole captions are resampled.

    Raises: ValueError if the numbers of captions differ or there are none.
    """
    means = _by_caption(strict, len(tags))
    rng = np.random.default_rng(seed)
    names = np.array(tags)
    out = {"overall": _interval(means, rng)}
    return out | {tag: _interval(means[names == tag], rng) for tag in dict.fromkeys(tags)}


@dataclass(frozen=True)
class Difference:
    """Mean paired difference over captions and its standard error."""

    mean: float
    error: float


def difference(before: Float, after: Float) -> Difference:
    """after - before, paired by caption, from scores [captions, images] of the same captions and seeds.

    The error is std(d, ddof = 1) / sqrt(captions) of the captions' own differences d.

    Raises: ValueError if the shapes differ or there are fewer than two captions.
    """
    if before.shape != after.shape or before.ndim != 2 or len(before) < 2:
        raise ValueError(
            f"difference of scores {list(before.shape)} and {list(after.shape)}; give two [captions, images] of the same captions, "
            "two at least."
        )
    d = after.astype(np.float64).mean(1) - before.astype(np.float64).mean(1)
    return Difference(float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d))))
