"""The evaluation protocol of the embedded world, fixed before the base was trained.

All held-out captions, IMAGES pictures of each, STEPS steps, no guidance, noise from `seeds`. Pure numpy.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.world import TAGS, Row, captions

IMAGES = 4
STEPS = 20
GUIDANCE = 1.0
CONSTANT = "flowrl shapes protocol 1"
EACH = 400  # training captions of a task, at most
# Pretraining draws its noise with seeds below 2**40.
FLOOR = 2**40


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
