"""The evaluation protocol of the embedded video world, fixed before the base was trained.

All held-out captions, VIDEOS videos of each, STEPS steps, no guidance, noise from `seeds`. Pure numpy.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.protocol import FLOOR
from flowrl.shapes_video.world import Row, captions

VIDEOS = 4
STEPS = 20
GUIDANCE = 1.0
CONSTANT = "flowrl shapes video protocol 1"


def rows() -> list[Row]:
    """The held-out captions, in the protocol's order."""
    return captions("heldout")


def training() -> list[Row]:
    """Training captions for a reward."""
    return captions("train")


def seeds() -> NDArray[np.int64]:
    """[captions, VIDEOS] seeds of the initial noise, in [2**40, 2**62), from sha256 of CONSTANT, caption and video."""
    names = [[f"{CONSTANT}/{row['prompt']}/{k}" for k in range(VIDEOS)] for row in rows()]
    numbers = [[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in some] for some in names]
    return np.array([[FLOOR + number % (2**62 - FLOOR) for number in some] for some in numbers], dtype=np.int64)
