"""The exact verifier: what a video shows, frame by frame, how it moves, and whether that is what a row asks for.

Objects and their colours are found by `flowrl.shapes.verify.find`. The shape of one that is alone in its frame is the rendered one
that its coverage of the pixels fits best: at this size an outline alone says little. An object's motion is the straight line that
fits its centres best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowrl.shapes.render import outline
from flowrl.shapes.verify import Found, find
from flowrl.shapes.world import SHAPES
from flowrl.shapes_video.render import EXTENT, SIZE
from flowrl.shapes_video.world import DIRECTIONS, STILL, Row

# Pixels a frame. The renderer's are 0, 0.7 to 0.9, and 1.8 to 2.0; what lies between two bands is neither.
BANDS = {"still": (0.0, 0.25), "slowly": (0.45, 1.2), "fast": (1.4, 2.6)}
STRAIGHT = 0.5  # greatest share of the speed across the direction
UNIFORM = 0.8  # greatest root mean square distance in pixels of the centres from the line
MISREAD = 1  # frames whose shape may be another: a decoder blurs some
SIZES = (EXTENT - 2, EXTENT - 1, EXTENT, EXTENT + 1)  # of the shapes that coverage is compared with
BLUR = 0.6  # of them, in pixels
MISFIT = 0.2  # greatest squared difference to the best of them, of the coverage's own square; rendered ones have 0.03 at most
CORE = 25  # pixels farthest from the background, whose mean is the object's colour
LEAST = 3  # frames with one object that a line is fitted to

Float = NDArray[np.float64]
Kind = Literal["strict", "soft"]


@dataclass(frozen=True)
class Track:
    """A video: the objects of each frame, and the motion of the one that is alone in its frame.

    velocity: pixels a frame, x right, y down;  error: root mean square distance of the centres from the line in pixels. Both are
    None with fewer than LEAST such frames.
    """

    frames: tuple[tuple[Found, ...], ...]
    velocity: tuple[float, float] | None
    error: float | None


def _coverage(frames: NDArray[np.uint8]) -> Float:
    """How much of each pixel [N, 32, 32] is the object, in [0, 1]: the share of its colour in the mixture with the ground."""
    pixels = frames.reshape(len(frames), -1, 3).astype(float)
    away = pixels - np.median(pixels, 1)[:, None]
    far = np.argpartition(np.linalg.norm(away, axis=-1), -CORE, 1)[:, -CORE:]
    core = np.take_along_axis(away, far[..., None], 1).mean(1)
    share = np.einsum("npc,nc->np", away, core) / np.maximum((core**2).sum(-1), 1.0)[:, None]
    return np.clip(share, 0, 1).reshape(-1, SIZE, SIZE)


def shapes(frames: NDArray[np.uint8]) -> list[str | None]:
    """The shape of the object of each frame [N, 32, 32, 3], None where none fits."""
    share = _coverage(frames)
    at = np.arange(SIZE) + 0.5
    mass, square = np.maximum(share.sum((1, 2)), 1e-9), np.maximum((share**2).sum((1, 2)), 1e-9)
    x, y = (share.sum(1) @ at) / mass, (share.sum(2) @ at) / mass
    misfit = np.full((len(frames), len(SHAPES)), np.inf)
    for (k, name), size in product(enumerate(SHAPES), SIZES):
        # A triangle's centre of mass lies a sixth of its height below the middle of its box.
        lower = size / 6 if name == "triangle" else 0.0
        offsets = np.broadcast_arrays(at - x[:, None, None], at[:, None] - y[:, None, None] + lower)
        drawn = np.clip(0.5 - outline(name, *offsets, size), 0, 1)
        error = ((ndimage.gaussian_filter(drawn, (0, BLUR, BLUR)) - share) ** 2).sum((1, 2)) / square
        misfit[:, k] = np.minimum(misfit[:, k], error)
    return [SHAPES[k] if low <= MISFIT else None for k, low in zip(misfit.argmin(1), misfit.min(1), strict=True)]


def _track(frames: Sequence[Sequence[Found]]) -> Track:
    kept = tuple(tuple(some) for some in frames)
    at = [(t, some[0].x, some[0].y) for t, some in enumerate(kept) if len(some) == 1]
    if len(at) < LEAST:
        return Track(kept, None, None)
    times, x, y = (np.array(column) for column in zip(*at, strict=True))
    design = np.stack([times, np.ones_like(times)], -1)
    places = np.stack([x, y], -1)
    line = np.linalg.lstsq(design, places, rcond=None)[0]
    error = float(np.sqrt(((places - design @ line) ** 2).sum(-1).mean()))
    return Track(kept, (float(line[0, 0]), float(line[0, 1])), error)


def watch(videos: NDArray[np.uint8]) -> list[Track]:
    """The track of each video [N, T, 32, 32, 3].

    Raises: ValueError if the videos have another shape or dtype, or fewer than LEAST frames.
    """
    shape = videos.shape
    if videos.dtype != np.uint8 or videos.ndim != 5 or shape[2:] != (SIZE, SIZE, 3) or shape[1] < LEAST:
        raise ValueError(f"watch: videos are {videos.dtype} {list(shape)}; give uint8 [N, T >= {LEAST}, {SIZE}, {SIZE}, 3].")
    frames = videos.reshape(-1, SIZE, SIZE, 3)
    found = find(frames, SIZE)
    alone = [i for i, some in enumerate(found) if len(some) == 1]
    for i, name in zip(alone, shapes(frames[alone]) if alone else (), strict=True):
        found[i] = [replace(found[i][0], name=name)]
    return [_track(found[i : i + shape[1]]) for i in range(0, len(found), shape[1])]


def _near(value: float, low: float, high: float) -> float:
    """1 in [low, high], outside falling from 0.9 to 0 at one pixel a frame away from it."""
    away = max(low - value, value - high)
    return 1.0 if away <= 0 else 0.9 * max(0.0, 1.0 - away)


def motion_credits(it: Track, row: Row) -> list[float]:
    """Credit in [0, 1] of direction, speed and uniformity; all are 1 if and only if the motion is right.

    Of a row that stands still direction is not asked for; of one without speed any speed of the world but 0 is right.
    """
    if it.velocity is None or it.error is None:
        return [0.0, 0.0, 0.0]
    velocity = np.array(it.velocity)
    pace = float(np.linalg.norm(velocity))
    uniform = 1.0 if it.error <= UNIFORM else 0.9 * UNIFORM / it.error
    if row["motion"] == STILL:
        return [1.0, _near(pace, *BANDS["still"]), uniform]
    along = float(velocity @ np.array(DIRECTIONS[row["motion"]]))
    across = float(np.sqrt(max(pace**2 - along**2, 0.0)))
    ahead = along / pace if pace > 0 else 0.0
    right = across <= STRAIGHT * along and along >= BANDS["still"][1]
    # What hardly moves has no direction to speak of.
    direction = 1.0 if right else 0.9 * max(ahead, 0.0) * min(pace / BANDS["slowly"][0], 1.0)
    low, high = BANDS[row["speed"]] if "speed" in row else (BANDS["slowly"][0], BANDS["fast"][1])
    return [direction, _near(pace, low, high), uniform]


def look_credits(it: Track, row: Row) -> list[float]:
    """Shares of frames with exactly one object, with one of the asked shape, and with one of the asked colour.

    Without a colour in the row any colour of the world is right that is the same in all frames. Of the shapes MISREAD may be wrong.
    """
    alone = [some[0] for some in it.frames if len(some) == 1]
    colors = [found.color for found in alone if found.color is not None]
    color = row.get("color") or max(sorted(set(colors)), key=colors.count, default=None)
    total = len(it.frames)
    shapes = sum(found.name == row["shape"] for found in alone)
    shapes = total if shapes >= total - MISREAD else shapes
    return [len(alone) / total, shapes / total, sum(c == color for c in colors) / total]


def score(videos: NDArray[np.uint8], rows: Sequence[Row], kind: Kind = "strict") -> Float:
    """[N] scores of videos [N, T, 32, 32, 3] against their rows.

    strict: 1 if in every frame there is exactly one object, of the asked colour and (MISREAD aside) shape, and it moves uniformly
    in the asked direction at the asked speed; else 0.
    soft: the mean of `look_credits` and `motion_credits`, the latter times the share of frames with one object of a shape of the
    world, so that clutter earns little; 1 only where strict is.

    Raises: ValueError if the numbers of videos and rows differ, for another kind, or for videos of another form.
    """
    if len(videos) != len(rows):
        raise ValueError(f"score: {len(videos)} videos and {len(rows)} rows; give one row a video.")
    if kind not in ("strict", "soft"):
        raise ValueError(f"score of kind {kind!r}: there are only 'strict' and 'soft'.")
    out: list[float] = []
    for it, row in zip(watch(videos), rows, strict=True):
        look, motion = look_credits(it, row), motion_credits(it, row)
        if kind == "strict":
            out.append(float(min(look + motion) == 1.0))
            continue
        known = sum(len(some) == 1 and some[0].name is not None for some in it.frames) / len(it.frames)
        out.append(known * float(np.mean(look + motion)))
    return np.array(out)


def moves(videos: NDArray[np.uint8], rows: Sequence[Row]) -> Float:
    """[N] 1 where the motion is right, whatever it is that moves, else 0."""
    return np.array([float(min(motion_credits(it, row)) == 1.0) for it, row in zip(watch(videos), rows, strict=True)])
