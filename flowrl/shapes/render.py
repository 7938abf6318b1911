"""The renderer: a row of the world as a 64 x 64 picture.

Coverage of a shape at a pixel is clip(0.5 - d, 0, 1), d the signed distance (in pixels) of the pixel's centre to its outline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.world import COLORS, Row

SIZE = 64
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 45),
    "green": (40, 165, 65),
    "blue": (45, 75, 215),
    "yellow": (240, 200, 40),
    "purple": (150, 50, 180),
    "cyan": (60, 205, 220),
}
BACKGROUND = (232.0, 248.0)
ARM = 0.36  # width of a cross's arm over its size
EXTENT = 15.0  # of an object in pixels
CELL = 16  # objects stand in cells of this size, at most SHAKE pixels off their centres
SHAKE = 0.5
# The cells, as (column, row), by the number of objects: 0 to 3 from the left and the top.
LAYOUTS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 1),),
    2: ((0, 1), (3, 1)),
    3: ((1, 0), (0, 3), (3, 3)),
    4: ((0, 0), (3, 0), (0, 3), (3, 3)),
}
JITTER = 6.0  # half width of a colour's variation, of 255

Image = NDArray[np.uint8]
Box = tuple[float, float, float]  # centre x, centre y, size


def outline(name: str, x: NDArray[np.float64], y: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """Signed distance (negative inside) of points (x right, y down, from the centre of the box) to a shape of this size.

    All shapes fill a `size` x `size` box; the triangle points up.
    """
    half = size / 2
    match name:
        case "circle":
            return np.hypot(x, y) - half
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - half
        case "cross":
            across = np.maximum(np.abs(x) - half, np.abs(y) - ARM * half)
            return np.minimum(across, np.maximum(np.abs(y) - half, np.abs(x) - ARM * half))
        case _:
            # Sides of slope 2 from the apex (0, -half) to the corners (+-half, half).
            side = (2 * np.abs(x) - (y + half)) / np.sqrt(5.0)
            return np.maximum(side, y - half)


def _centres(total: int, relation: str | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres [total, 2] of the objects: the layout of their number, each object a little off the middle of its cell.

    Two stand side by side in either order, or the second stands in `relation` to the first; three make a triangle, four a square.

    Raises: ValueError for any other number.
    """
    if total not in LAYOUTS:
        raise ValueError(f"a picture of {total} objects: the renderer draws one to four.")
    cells = np.array(LAYOUTS[total])
    if total == 2:
        relation = relation or ("left of", "right of")[rng.integers(2)]
        if relation in ("left of", "above"):
            cells = cells[::-1]
        if relation in ("above", "below"):
            cells = cells[:, ::-1]
    return CELL * (cells + 0.5) + rng.uniform(-SHAKE, SHAKE, (total, 2))


def tint(color: str, rng: np.random.Generator, spread: float = 1.0) -> NDArray[np.float64]:
    """An RGB colour within `spread` JITTER of the palette's."""
    return np.array(PALETTE[color]) + rng.uniform(-spread * JITTER, spread * JITTER, 3)


def cover(canvas: NDArray[np.float64], name: str, box: Box, color: NDArray[np.float64]) -> None:
    """Paints a shape of this RGB colour onto a canvas [64, 64, 3]."""
    x, y, size = box
    reach = size / 2 + 1
    left, right = max(int(x - reach), 0), min(int(x + reach) + 2, SIZE)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, SIZE)
    px = np.arange(left, right)[None, :] + 0.5 - x
    py = np.arange(top, bottom)[:, None] + 0.5 - y
    share = np.clip(0.5 - outline(name, px, py, size), 0, 1)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += share * (color - patch)


@dataclass(frozen=True)
class Scene:
    """A picture before it is painted: grey of the background, and each object's shape, box, named colour and RGB."""

    background: float
    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    colors: tuple[str, ...]
    rgb: tuple[tuple[float, float, float], ...]


def scene(row: Row, rng: np.random.Generator) -> Scene:
    """Exactly the objects a row includes, everything unspecified drawn at random; the objects of one entry share a colour.

    The row's prompt is not read.
    """
    include = row["include"]
    names = tuple(e["class"] for e in include for _ in range(e["count"]))
    chosen = [e.get("color", COLORS[rng.integers(len(COLORS))]) for e in include]
    colors = tuple(c for e, c in zip(include, chosen, strict=True) for _ in range(e["count"]))
    relation = next((cast(str, e["position"][0]) for e in include if "position" in e), None)
    background = float(rng.uniform(*BACKGROUND))
    boxes = [(float(x), float(y), EXTENT) for x, y in _centres(len(names), relation, rng)]
    rgb = [tint(color, rng) for color in colors]
    return Scene(background, names, tuple(boxes), colors, tuple((float(r), float(g), float(b)) for r, g, b in rgb))


def paint(it: Scene) -> Image:
    """The picture [64, 64, 3] of a scene."""
    canvas = np.full((SIZE, SIZE, 3), it.background)
    for name, box, color in zip(it.names, it.boxes, it.rgb, strict=True):
        cover(canvas, name, box, np.array(color))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def render(row: Row, rng: np.random.Generator) -> Image:
    """One picture [64, 64, 3] of a row, see `scene`."""
    return paint(scene(row, rng))


def draw(rows: Sequence[Row], seed: int) -> tuple[NDArray[np.uint8], list[Row]]:
    """Pictures [N, 64, 64, 3] of rows, and the rows; picture i depends on (seed, i, rows[i]) only.

    Raises: ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("draw of no rows: give at least one row.")
    images = [render(row, np.random.default_rng((seed, i))) for i, row in enumerate(rows)]
    return np.stack(images), list(rows)
