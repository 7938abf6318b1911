"""Scenes and pictures beyond the renderer's own, for the judge and the contrastive model: they must read generated pictures too."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowrl.shapes.render import BACKGROUND, CELL, PALETTE, SIZE, Box, Scene, cover, paint, scene, tint
from flowrl.shapes.world import COLORS, SHAPES, Row

GAP = 2.0  # least pixels between two bounding boxes
BORDER = 2.0  # least pixels between a bounding box and the edge of the picture


def crowd(rng: np.random.Generator, most: int = 5) -> Scene:
    """A scene of 1 to `most` objects of any shapes and colours, anywhere; sometimes all alike, as in counting."""
    n = int(rng.integers(1, most + 1))
    kinds = [(SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))]) for _ in range(n)]
    if rng.random() < 0.4:
        kinds = kinds[:1] * n
    names, colors = zip(*kinds, strict=True)
    rgb = [tint(color, rng) for color in colors]
    boxes = scattered(rng.uniform(13.0, 17.0, n), rng)
    return Scene(float(rng.uniform(*BACKGROUND)), names, boxes, colors, tuple((float(r), float(g), float(b)) for r, g, b in rgb))


def scattered(sizes: NDArray[np.float64], rng: np.random.Generator) -> tuple[Box, ...]:
    """Boxes of these sizes anywhere in the picture, GAP apart at least."""
    while True:
        room = SIZE / 2 - BORDER - sizes[:, None] / 2
        at = SIZE / 2 + rng.uniform(-1, 1, (len(sizes), 2)) * room
        apart = np.abs(at[:, None] - at).max(-1) - (sizes[:, None] + sizes) / 2
        if (apart[np.triu_indices(len(sizes), 1)] >= GAP).all():
            return tuple((float(x), float(y), float(size)) for (x, y), size in zip(at, sizes, strict=True))


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


def cells(rng: np.random.Generator, other: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A picture of objects in any cells of the renderer's grid, and what stands in each cell [4, 4].

    Classes are shape-major pairs of shape and colour, other - 1 for an empty cell, `other` for something that is no shape of the
    world: a small speck, two shapes in one or a colour between two.
    """
    table = np.full((4, 4), other - 1)
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(*BACKGROUND))
    for place in np.argwhere(rng.random((4, 4)) < rng.uniform(0.05, 0.4)):
        shape, color = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS)))
        rgb = tint(COLORS[color], rng, 2.0)
        y, x = CELL * (place + 0.5) + rng.uniform(-1, 1, 2)
        size, names = rng.uniform(13.5, 16), [SHAPES[shape]]
        table[tuple(place)] = shape * len(COLORS) + color
        if rng.random() < 0.12:
            table[tuple(place)] = other
            match rng.integers(3):
                case 0:
                    size = rng.uniform(3, 8)
                case 1:
                    names = ["cross", "triangle"]
                case _:
                    rgb = (rgb + np.array(PALETTE[COLORS[(color + 1 + int(rng.integers(len(COLORS) - 1))) % len(COLORS)]])) / 2
        for name in names:
            cover(canvas, name, (float(x), float(y), float(size)), rgb)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), table


def varied(row: Row, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A degraded picture of a row, a third of them `anywhere`."""
    it = scene(row, rng)
    return degrade(paint(anywhere(it, rng) if rng.random() < 1 / 3 else it), rng)
