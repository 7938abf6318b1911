"""Who meets whom, and who is shown first."""

from __future__ import annotations

import numpy as np

from flowrl.rewards.cache import key
from flowrl.rewards.forms import Metadata


def schedule(count: int, opponents: int | None = None) -> np.ndarray:
    """Pairs [M, 2] of places on a circle, the first one shown first; every place meets equally many others.

    Place r meets r + 1, r + 2, ... and, the other way round, those before it, so that it is first as often as second. With
    `opponents` k < count - 1 each meets k others, one more if k and count are both odd (there is no such schedule of k).
    All comparisons: count (count - 1) / 2 pairs; else about count k / 2.

    Raises: ValueError for less than one opponent.
    """
    if opponents is not None and opponents < 1:
        raise ValueError(f"{opponents} opponents: each image must meet at least 1 other; None means all")
    most = count - 1 if opponents is None else min(opponents, count - 1)
    halved = most % 2 == 1 and count % 2 == 0
    steps = most // 2 if halved else (most + 1) // 2
    pairs = [(r, (r + step) % count) for step in range(1, steps + 1) for r in range(count)]
    half = count // 2
    # across the circle there is one pair for two places; who is first alternates
    across = [(r, r + half) if r % 2 == 0 else (r + half, r) for r in range(half)] if halved else []
    return np.array(pairs + across, dtype=np.int64).reshape(-1, 2)


def upper(count: int) -> np.ndarray:
    """All pairs i < j, i shown first: the lower number is always first."""
    return np.stack(np.triu_indices(count, 1), 1)


def placed(images: np.ndarray, prompt: str, metadata: Metadata) -> np.ndarray:
    """Long [N]: which image sits at each place, by a hash of its content and prompt: as good as drawn, the same in every run and
    for every order of the images."""
    keys = [key(image, prompt, metadata) for image in images]
    return np.array(sorted(range(len(images)), key=lambda i: keys[i]), dtype=np.int64)
