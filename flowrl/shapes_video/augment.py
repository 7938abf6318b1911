"""Scenes and videos beyond the renderer's own: the autoencoder, the judge and the tests must meet what a generator may draw."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowrl.shapes.render import BACKGROUND, tint
from flowrl.shapes.world import COLORS, SHAPES
from flowrl.shapes_video.render import EXTENT, FRAMES, SIZE, Scene

FASTEST = 2.2  # pixels a frame


def free(rng: np.random.Generator) -> Scene:
    """One object of any kind on any path: a velocity in any direction that may change at a frame, and may leave the picture."""
    color = COLORS[rng.integers(len(COLORS))]
    turn = int(rng.integers(1, FRAMES)) if rng.random() < 0.4 else FRAMES
    speeds = rng.uniform(-FASTEST, FASTEST, (2, 2)) * (rng.random((2, 2)) < 0.7)
    steps = np.where(np.arange(FRAMES - 1)[:, None] < turn, speeds[0], speeds[1])
    walk = np.concatenate([np.zeros((1, 2)), steps.cumsum(0)])
    room = SIZE / 2 - EXTENT / 2
    centres = walk - walk.mean(0) + SIZE / 2 + rng.uniform(-room, room, 2)
    return Scene(float(rng.uniform(*BACKGROUND)), SHAPES[rng.integers(len(SHAPES))], tint(color, rng, 2.0), centres)


def degrade(video: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random blur, brightness, contrast and noise of a whole video; a third of the videos stay as they are."""
    if rng.random() < 1 / 3:
        return video
    out = video.astype(np.float64)
    if rng.random() < 0.5:
        width = rng.uniform(0.2, 0.7)
        out = ndimage.gaussian_filter(out, (0, width, width, 0))
    out = (out - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-12, 12)
    out += rng.normal(0, rng.uniform(0, 8), out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
