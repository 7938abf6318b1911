"""The exact verifier: which shapes a picture shows, and whether they are what a row asks for.

Objects are connected components of what differs from the background. A component's class is the outline of the world that overlaps
it best, its colour the nearest of the palette at its eroded core; a component that fits nothing is an object of no class.

Differs from GenEval: extra objects are punished in every task (GenEval only in counting), so strict needs the exact total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowrl.shapes.render import PALETTE, SIZE, outline
from flowrl.shapes.world import COLORS, SHAPES, Entry, Row

FOREGROUND = 90.0  # distance in RGB from the background: half the coverage of a palette colour
SPECK = 12  # components of fewer pixels are not objects
CELL = 16  # a component's bounding box is compared with the outlines on CELL x CELL points
OVERLAP = 0.66  # least intersection over union with the best outline
SMALLEST = 9  # least longer side of an object with a class; the renderer's are 11 to 21
LARGEST = 27
SQUARE = 1.4  # greatest ratio of a bounding box's sides
COLOR_ERROR = 75.0  # greatest RGB distance of a core to its palette colour
RELATION_MARGIN = 0.1  # GenEval's POSITION_THRESHOLD

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Kind = Literal["strict", "soft"]


@dataclass(frozen=True)
class Found:
    """An object in a picture; `name` or `color` is None where nothing of the world fits. Pixels, x right, y down."""

    name: str | None
    color: str | None
    x: float
    y: float
    width: int
    height: int
    overlap: float


@lru_cache(maxsize=1)
def _outlines() -> Bool:
    """The shapes on CELL x CELL points of their own bounding box: [shape, CELL, CELL]."""
    at = (np.arange(CELL) + 0.5) / CELL - 0.5
    return np.stack([outline(s, *np.meshgrid(at, at), 1.0) < 0 for s in SHAPES])


def _foreground(images: NDArray[np.uint8]) -> Bool:
    """What differs from the background, which is the median of a picture's pixels (objects cover less than half)."""
    pixels = images.reshape(len(images), -1, 3)
    # Every third pixel is enough for a median and three times faster.
    background = np.median(pixels[:, ::3], axis=1).astype(np.float32)
    difference = images.astype(np.float32) - background[:, None, None, :]
    return np.einsum("nhwc,nhwc->nhw", difference, difference) > FOREGROUND**2


def _colors(images: NDArray[np.uint8], labels: NDArray[np.int32], mask: Bool, n: int) -> list[str | None]:
    """Nearest palette colour of the mean over each component's core (all of it where erosion leaves nothing)."""
    plus = ndimage.generate_binary_structure(2, 1)[None]
    core = ndimage.binary_erosion(mask, plus)
    means = np.zeros((2, n + 1, 3))
    counts = np.zeros((2, n + 1))
    for k, part in enumerate((core, mask)):
        index, values = labels[part], images[part]
        counts[k] = np.bincount(index, minlength=n + 1)
        means[k] = np.stack([np.bincount(index, values[:, c], minlength=n + 1) for c in range(3)], -1)
    k = (counts[0] == 0).astype(int)
    rows = np.arange(n + 1)
    mean = means[k, rows] / np.maximum(counts[k, rows], 1)[:, None]
    distance = np.linalg.norm(mean[1:, None] - np.array([PALETTE[c] for c in COLORS]), axis=-1)
    best = distance.argmin(1)
    return [COLORS[b] if d[b] <= COLOR_ERROR else None for b, d in zip(best, distance, strict=True)]


def _shapes(mask: Bool, labels: NDArray[np.int32], boxes: Sequence[tuple[slice, slice, slice]]) -> tuple[NDArray[np.int64], Float]:
    """Best outline of each component and its intersection over union, on points of the component's bounding box."""
    at = (np.arange(CELL) + 0.5) / CELL
    image = np.array([b[0].start for b in boxes])
    low = np.array([[b[1].start, b[2].start] for b in boxes], float)
    high = np.array([[b[1].stop, b[2].stop] for b in boxes], float)
    points = np.floor(low[:, :, None] + (high - low)[:, :, None] * at).astype(int)
    cells = labels[image[:, None, None], points[:, 0, :, None], points[:, 1, None, :]]
    cells = cells == np.arange(1, len(boxes) + 1)[:, None, None]
    ideal = _outlines()
    both = np.einsum("mhw,shw->ms", cells.astype(np.float32), ideal.astype(np.float32))
    either = cells.sum((1, 2))[:, None] + ideal.sum((1, 2))[None] - both
    overlap = both / either
    return overlap.argmax(1), overlap.max(1).astype(float)


def find(images: NDArray[np.uint8], size: int = SIZE) -> list[list[Found]]:
    """The objects of each picture [N, size, size, 3], in reading order of their first pixel.

    The limits on an object's size shrink with the pictures.

    Raises: ValueError if the pictures have another shape or dtype.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(f"find: pictures are {images.dtype} {images.shape}; give uint8 [N, {size}, {size}, 3].")
    scale = size / SIZE
    out: list[list[Found]] = [[] for _ in images]
    mask = _foreground(images)
    # No connection along the first axis: components never span two pictures.
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True
    labels, n = cast(tuple[NDArray[np.int32], int], ndimage.label(mask, structure))
    if n == 0:
        return out
    boxes = cast(list[tuple[slice, slice, slice]], ndimage.find_objects(labels))
    _, ys, xs = np.nonzero(mask)
    index = labels[mask]
    area = np.bincount(index, minlength=n + 1)[1:]
    x = np.bincount(index, xs + 0.5, minlength=n + 1)[1:] / area
    y = np.bincount(index, ys + 0.5, minlength=n + 1)[1:] / area
    colors = _colors(images, labels, mask, n)
    shapes, overlap = _shapes(mask, labels, boxes)
    for i in np.flatnonzero(area >= SPECK * scale**2):
        picture, rows, columns = boxes[i]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        long, short = max(height, width), min(height, width)
        fits = overlap[i] >= OVERLAP and SMALLEST * scale <= long <= min(LARGEST * scale, SQUARE * short)
        name = SHAPES[shapes[i]] if fits else None
        out[picture.start].append(Found(name, colors[i], float(x[i]), float(y[i]), width, height, float(overlap[i])))
    return out


def relation_credit(relation: str, it: Found, other: Found) -> float:
    """How far `it` stands in `relation` to `other`: 1 where GenEval's rule holds, falling to 0 at the opposite side.

    GenEval: the offset of the centres, shrunk by RELATION_MARGIN of both objects' sizes, has more than half its length along
    the axis.
    """
    offset = np.array([it.x - other.x, it.y - other.y])
    size = np.array([it.width + other.width, it.height + other.height])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - RELATION_MARGIN * size, 0)
    length = float(np.linalg.norm(offset))
    if length == 0:
        return 0.0
    axis = 0 if relation in ("left of", "right of") else 1
    along = float(shrunk[axis]) / length * (-1 if relation in ("left of", "above") else 1)
    return 1.0 if along > 0.5 else max(0.0, (along + 1) / 1.5) * 0.9


def _conditions(found: Sequence[Found], include: Sequence[Entry]) -> list[float]:
    """Credit in [0, 1] of every condition of a row; all are 1 if and only if the picture is right."""
    total = sum(e["count"] for e in include)
    known = sum(f.name is not None for f in found)
    # Exact total; objects of no class count against it.
    out = [min(known, total) / max(len(found), total)]
    of_class = [[f for f in found if f.name == e["class"]] for e in include]
    for e, same in zip(include, of_class, strict=True):
        n = e["count"]
        out.append(min(len(same), n) / max(len(same), n))
        if "color" in e:
            out.append(min(sum(f.color == e["color"] for f in same), n) / n)
        else:
            # A shape of no colour of the world is not a shape of the world.
            out[-1] *= sum(f.color is not None for f in same) / max(len(same), 1)
        if "position" in e:
            relation, other = cast(str, e["position"][0]), cast(int, e["position"][1])
            pairs = [relation_credit(relation, a, b) for a in same for b in of_class[other]]
            out.append(max(pairs, default=0.0))
    return out


def score(images: NDArray[np.uint8], rows: Sequence[Row], kind: Kind = "strict") -> Float:
    """[N] scores of pictures [N, 64, 64, 3] against their rows.

    strict: 1 if every condition is met exactly, else 0.
    soft: the mean of the conditions' credits in [0, 1], times the share of objects that have a class; 1 only where strict is.
    The conditions: the total number of objects; for each entry its count, its colour if named, its relation if any.

    Raises: ValueError if the numbers of pictures and rows differ, or for another kind.
    """
    if len(images) != len(rows):
        raise ValueError(f"score: {len(images)} pictures and {len(rows)} rows; give one row a picture.")
    if kind not in ("strict", "soft"):
        raise ValueError(f"score of kind {kind!r}: there are only 'strict' and 'soft'.")
    found = find(images)
    credits = [_conditions(f, row["include"]) for f, row in zip(found, rows, strict=True)]
    if kind == "strict":
        return np.array([float(min(c) == 1.0) for c in credits])
    # A picture full of clutter earns little, whatever a few of its specks resemble.
    known = [sum(o.name is not None for o in f) / max(len(f), 1) for f in found]
    return np.array([float(np.mean(c)) * k for c, k in zip(credits, known, strict=True)])
