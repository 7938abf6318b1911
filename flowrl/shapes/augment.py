"""Scenes and pictures beyond the renderer's own, for the judge and the contrastive model: they must read generated pictures too."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowrl.shapes.render import SIZE, Scene, paint, scene
from flowrl.shapes.world import COLORS, SHAPES, Row, entry


def crowd(rng: np.random.Generator, most: int = 5) -> Scene:
    """A scene of 1 to `most` objects of any shapes and colours; sometimes all alike, as in counting."""
    n = int(rng.integers(1, most + 1))
    kinds = [(SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))]) for _ in range(n)]
    if rng.random() < 0.4:
        kinds = kinds[:1] * n
    include = [entry(shape, 1, color) for shape, color in kinds]
    return scene({"tag": "counting", "include": include, "prompt": ""}, rng)


def anywhere(it: Scene, rng: np.random.Generator) -> Scene:
    """The scene on a background of any grey and, of a single object, at up to twice its size."""
    out = replace(it, background=float(rng.uniform(0, 255)))
    if len(it.boxes) > 1:
        return out
    size = it.boxes[0][2] * rng.uniform(0.8, 2.0)
    room = max(SIZE / 2 - size / 2 - 1, 0)
    x, y = SIZE / 2 + rng.uniform(-room, room, 2)
    return replace(out, boxes=((float(x), float(y), float(size)),))


def degrade(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random blur, brightness, contrast and noise; a third of the pictures stay as they are."""
    if rng.random() < 1 / 3:
        return image
    out = image.astype(np.float64)
    if rng.random() < 0.5:
        width = rng.uniform(0.2, 0.9)
        out = ndimage.gaussian_filter(out, (width, width, 0))
    out = (out - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-12, 12)
    out += rng.normal(0, rng.uniform(0, 8), out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def stretched(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture squeezed along one axis by 0.4 to 0.6 and centred: its objects are no shapes of the world any more."""
    ratio = rng.uniform(0.4, 0.6)
    matrix = np.diag((1 / ratio, 1.0) if rng.random() < 0.5 else (1.0, 1 / ratio))
    offset = SIZE / 2 - matrix @ np.array([SIZE / 2, SIZE / 2])
    fill = float(image[0, 0, 0])
    layers = [ndimage.affine_transform(image[..., c].astype(float), matrix, offset, order=1, cval=fill) for c in range(3)]
    return np.clip(np.rint(np.stack(layers, -1)), 0, 255).astype(np.uint8)


def varied(row: Row, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A degraded picture of a row, a third of them `anywhere`."""
    it = scene(row, rng)
    return degrade(paint(anywhere(it, rng) if rng.random() < 1 / 3 else it), rng)
