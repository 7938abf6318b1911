"""The renderer: a row of the world as a video of 9 frames of 32 x 32 pixels.

The object moves uniformly. Its velocity along the asked direction is drawn around the speed's own; where it passes at the middle
frame is drawn from the places that keep all of it in the picture throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.render import BACKGROUND, outline, tint
from flowrl.shapes.world import COLORS
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, STILL, Row

SIZE = 32
FRAMES = 9
EXTENT = 12.0  # of the object in pixels
VELOCITY = {"slowly": 0.8, "fast": 1.9}  # pixels a frame
SPREAD = 0.1  # half width of a velocity's variation
MARGIN = 0.5  # least pixels between the object and the edge
REACH = 1.5  # greatest distance of the middle frame's object from the middle, along each axis

Video = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A video before it is painted: grey of the background, shape, RGB of the object, its centres [FRAMES, 2] (x, y), size."""

    background: float
    shape: str
    rgb: NDArray[np.float64]
    centres: NDArray[np.float64]
    size: float = EXTENT


def path(velocity: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres [FRAMES, 2] of an object that moves with this velocity [2], in pixels a frame."""
    half = (FRAMES - 1) / 2
    room = np.minimum(SIZE / 2 - MARGIN - EXTENT / 2 - half * np.abs(velocity), REACH)
    middle = SIZE / 2 + rng.uniform(-1, 1, 2) * np.maximum(room, 0)
    return middle + (np.arange(FRAMES) - half)[:, None] * velocity


def scene(row: Row, rng: np.random.Generator) -> Scene:
    """What a row asks for, everything unspecified drawn at random. The row's prompt is not read."""
    background = float(rng.uniform(*BACKGROUND))
    color = row.get("color", COLORS[rng.integers(len(COLORS))])
    speed = row.get("speed", SPEEDS[rng.integers(len(SPEEDS))])
    pace = 0.0 if row["motion"] == STILL else VELOCITY[speed] + rng.uniform(-SPREAD, SPREAD)
    velocity = pace * np.array(DIRECTIONS.get(row["motion"], (0, 0)), float)
    return Scene(background, row["shape"], tint(color, rng), path(velocity, rng))


def paint(it: Scene) -> Video:
    """The video [FRAMES, 32, 32, 3] of a scene. Coverage of a pixel as in `flowrl.shapes.render`."""
    at = np.arange(SIZE) + 0.5
    x = at[None, None, :] - it.centres[:, 0, None, None]
    y = at[None, :, None] - it.centres[:, 1, None, None]
    x, y = np.broadcast_arrays(x, y)
    share = np.clip(0.5 - outline(it.shape, x, y, it.size), 0, 1)[..., None]
    frames = it.background + share * (it.rgb - it.background)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def render(row: Row, rng: np.random.Generator) -> Video:
    """One video [FRAMES, 32, 32, 3] of a row, see `scene`."""
    return paint(scene(row, rng))


def draw(rows: Sequence[Row], seed: int) -> NDArray[np.uint8]:
    """Videos [N, FRAMES, 32, 32, 3] of rows; video i depends on (seed, i, rows[i]) only.

    Raises: ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("draw of no rows: give at least one row.")
    return np.stack([render(it, np.random.default_rng((seed, i))) for i, it in enumerate(rows)])
