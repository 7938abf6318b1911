"""The embedded video world: captions of one coloured shape that moves or stands still.

A *composition* is what a caption asks for, free of wording: shape, colour or none, direction, speed or none.
Held-out and training captions share no composition; which are held out is decided by sha256 of the composition.
Every word of a held-out caption occurs in training captions (`tests/test_shapes_video_world.py`).
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NotRequired, TypedDict, cast

import numpy as np

from flowrl.shapes.world import COLORS, SHAPES

TAGS = ("still", "direction", "slow", "fast")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL = "still"
SPEEDS = ("slowly", "fast")
# Held-out compositions of each task, one caption of each.
HELD_OUT = {"still": 8, "direction": 24, "slow": 32, "fast": 32}
# What stands before the object, and the words of moving and of standing still.
WORDINGS = (
    ("", "moves", "stands still"),
    ("", "is moving", "is standing still"),
    ("a video of ", "moving", "standing still"),
    ("a clip of ", "moving", "standing still"),
)

Split = Literal["train", "heldout"]


class Row(TypedDict):
    """A caption with what it asks for. motion: a key of DIRECTIONS or STILL; color, speed: only where asked for."""

    tag: str
    shape: str
    motion: str
    color: NotRequired[str]
    speed: NotRequired[str]
    prompt: str


def tag(motion: str, speed: str | None) -> str:
    """The task a motion belongs to."""
    if motion == STILL:
        return "still"
    return "direction" if speed is None else {"slowly": "slow", "fast": "fast"}[speed]


def row(shape: str, color: str | None, motion: str, speed: str | None, wording: int = 0) -> Row:
    """The row that asks for these; None is not said. `wording` is an index of WORDINGS."""
    prefix, moves, stands = WORDINGS[wording]
    thing = f"a {color} {shape}" if color else f"a {shape}"
    act = stands if motion == STILL else f"{moves} {motion}" + (f" {speed}" if speed else "")
    out: Row = {"tag": tag(motion, speed), "shape": shape, "motion": motion, "prompt": f"{prefix}{thing} {act}"}
    if color is not None:
        out["color"] = color
    if speed is not None:
        out["speed"] = speed
    return out


def composition(it: Row) -> str:
    """The wording-free identity of a row."""
    return f"{it['shape']}/{it.get('color', '-')}/{it['motion']}/{it.get('speed', '-')}"


def wording(it: Row) -> int:
    """The wording a row's caption was made with."""
    same = (row(it["shape"], it.get("color"), it["motion"], it.get("speed"), k)["prompt"] for k in range(len(WORDINGS)))
    return list(same).index(it["prompt"])


@lru_cache(maxsize=1)
def _rows() -> tuple[Row, ...]:
    motions = [(STILL, None), *product(DIRECTIONS, (None, *SPEEDS))]
    kinds = product(SHAPES, (None, *COLORS), motions, range(len(WORDINGS)))
    return tuple(row(shape, color, motion, speed, k) for shape, color, (motion, speed), k in kinds)


def _digest(text: str) -> str:
    return hashlib.sha256(f"flowrl shapes video/{text}".encode()).hexdigest()


@lru_cache(maxsize=2)
def _captions(split: Split) -> tuple[Row, ...]:
    out: list[Row] = []
    for name in TAGS:
        rows = [it for it in _rows() if it["tag"] == name]
        units = sorted({composition(it) for it in rows}, key=_digest)
        held = units[: HELD_OUT[name]]
        if split == "train":
            out += [it for it in rows if composition(it) not in held]
            continue
        out += [min((it for it in rows if composition(it) == unit), key=lambda it: _digest(it["prompt"])) for unit in held]
    return tuple(out)


def captions(split: Split) -> list[Row]:
    """All rows of a split, in a fixed order.

    "heldout": 96 rows, of as many compositions. "train": every wording of the other 268 compositions.

    Raises: ValueError for any other split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"captions of split {split!r}: there are only 'train' and 'heldout'.")
    return [cast(Row, dict(it)) for it in _captions(split)]


@lru_cache(maxsize=1)
def _by_text() -> dict[str, Row]:
    return {it["prompt"]: it for it in _rows()}


def asked(text: str) -> Row | None:
    """What a caption of this world asks for, of either split or left out of both; None for any other text."""
    found = _by_text().get(text)
    return None if found is None else cast(Row, dict(found))


def some(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """`n` rows drawn with every row equally likely."""
    return [rows[i] for i in np.random.default_rng(seed).integers(len(rows), size=n)]
