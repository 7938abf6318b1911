"""A drawn style of the world: dark outlines, diagonal hatching, colours on cream paper. What a row asks for stays to be seen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.render import SIZE, Image, Scene, outline, scene
from flowrl.shapes.world import Row

PAPER = (244.0, 226.0, 186.0)
INK = (58.0, 38.0, 52.0)
LINE = 1.0  # width of an outline in pixels; wider ones leave too little of a colour for the verifier
PERIOD = 6.0  # of the hatching along the picture's rows; it goes through the middle of an object
SHARE = 0.4  # of a period that is light
LIGHT = 0.3  # how far the light stripes go towards the paper
MUTED = 0.95  # share of a colour that is kept, the rest is ink


def paint(it: Scene, strength: float = 1.0) -> Image:
    """The picture [64, 64, 3] of a scene, from plain (strength 0) to fully in the style (1)."""
    at = np.arange(SIZE) + 0.5
    paper, ink = np.array(PAPER) + (it.background - 240.0) / 2, np.array(INK)
    paper = it.background + strength * (paper - it.background)
    canvas = np.tile(paper, (SIZE, SIZE, 1))
    for name, (x, y, size), rgb in zip(it.names, it.boxes, it.rgb, strict=True):
        far = outline(name, at[None, :] - x, at[:, None] - y, size)
        stripes = (((at[None, :] - x + at[:, None] - y) / PERIOD + SHARE / 2) % 1.0 < SHARE)[..., None]
        color = np.array(rgb) + strength * (1 - MUTED) * (ink - np.array(rgb))
        _lay(canvas, np.clip(0.5 - far, 0, 1), color + stripes * strength * LIGHT * (paper - color))
        _lay(canvas, strength * np.clip(0.5 - (np.abs(far + LINE / 2) - LINE / 2), 0, 1), ink)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _lay(canvas: NDArray[np.float64], share: NDArray[np.float64], color: NDArray[np.float64]) -> None:
    canvas += share[..., None] * (color - canvas)


def draw(rows: Sequence[Row], seed: int) -> NDArray[np.uint8]:
    """Pictures [N, 64, 64, 3] of rows in the style; picture i depends on (seed, i, rows[i]) only.

    Raises: ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("draw of no rows: give at least one row.")
    return np.stack([paint(scene(row, np.random.default_rng((seed, i, 7)))) for i, row in enumerate(rows)])
