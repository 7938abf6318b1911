"""Imperfect captions, as in `flowrl.shapes.mislabel`: the base learns from captions that are often wrong about the motion.

A caption is made from a copy of the video's row in which, independently and with the probabilities below, things are swapped or
left out. What the video shows never changes.
"""

import numpy as np

from flowrl.shapes.world import COLORS
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, STILL, Row, row, wording

SWAP_COLOR = 0.06  # a named colour is another one
DROP_COLOR = 0.04  # a named colour is not said
SWAP_DIRECTION = 0.25  # a direction is one of the other three
SWAP_SPEED = 0.22  # a named speed is the other one
DROP_SPEED = 0.05  # a named speed is not said
STOP = 0.01  # what moves is said to stand still
START = 0.10  # what stands still is said to move, in any direction

RATES = {
    "swap_color": SWAP_COLOR,
    "drop_color": DROP_COLOR,
    "swap_direction": SWAP_DIRECTION,
    "swap_speed": SWAP_SPEED,
    "drop_speed": DROP_SPEED,
    "stop": STOP,
    "start": START,
}


def _other(values: tuple[str, ...], value: str | None, rng: np.random.Generator) -> str:
    rest = [v for v in values if v != value]
    return rest[rng.integers(len(rest))]


def _changed(value: str | None, values: tuple[str, ...], swap: float, drop: float, rng: np.random.Generator) -> str | None:
    """The value, another one or None; None stays None."""
    chance = rng.random()
    if value is None or chance >= swap + drop:
        return value
    return _other(values, value, rng) if chance < swap else None


def mislabel(it: Row, rng: np.random.Generator) -> Row:
    """The row that an imperfect caption of this row's video describes; its prompt is that caption."""
    color = _changed(it.get("color"), COLORS, SWAP_COLOR, DROP_COLOR, rng)
    motion, speed = it["motion"], it.get("speed")
    chance = rng.random()
    if motion == STILL:
        motion = _other(tuple(DIRECTIONS), None, rng) if chance < START else motion
    elif chance < STOP:
        motion, speed = STILL, None
    else:
        motion = _other(tuple(DIRECTIONS), motion, rng) if chance < STOP + SWAP_DIRECTION else motion
        speed = _changed(speed, SPEEDS, SWAP_SPEED, DROP_SPEED, rng)
    return row(it["shape"], color, motion, speed, wording(it))
