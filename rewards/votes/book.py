"""The book of votes: one JSON object a line, only ever added to; what it means, and how it is read.

A vote: {"kind": "vote", "id", "voter", "prompt", "images": [{"file", "hash", "side"}, ...] from left to right as they were shown,
"ranks": [0, 1] (0 is best, equal numbers are a tie, null: could not say), "seconds", "time"}.
Taken back: {"kind": "undo", "id", "of": the vote's id, "voter", "time"}. Files are relative to the book's folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAME = "votes.jsonl"


@dataclass(frozen=True)
class Shown:
    """An image voted on. file: relative to the book's folder;  content: see `content`;  side: "before", "after" or None."""

    file: str
    content: str
    side: str | None = None


@dataclass(frozen=True)
class Vote:
    """What a person said of images of one prompt.

    images: from left to right;  ranks: of each, 0 is best, equal is a tie, None: they could not say;  seconds: from showing to
    choosing.

    Raises: ValueError for fewer than two images, an image twice, or ranks that do not fit them.
    """

    id: str
    voter: str
    prompt: str
    images: tuple[Shown, ...]
    ranks: tuple[int, ...] | None
    seconds: float
    time: str

    def __post_init__(self) -> None:
        if len(self.images) < 2 or len({image.content for image in self.images}) < len(self.images):
            raise ValueError(f"vote {self.id!r} is on {len(self.images)} images; give at least two different ones")
        if self.ranks is not None and (len(self.ranks) != len(self.images) or min(self.ranks) < 0):
            raise ValueError(f"vote {self.id!r} ranks {list(self.ranks)} for {len(self.images)} images; give one of 0, 1, ... each")

    @property
    def question(self) -> tuple[str, frozenset[str]]:
        """What was asked, whatever the order shown."""
        return self.prompt, frozenset(image.content for image in self.images)

    def line(self) -> bytes:
        """The vote as a line of a book."""
        images = [{"file": i.file, "hash": i.content, "side": i.side} for i in self.images]
        ranks = None if self.ranks is None else list(self.ranks)
        row = {"kind": "vote", "id": self.id, "voter": self.voter, "prompt": self.prompt, "images": images, "ranks": ranks}
        return _line({**row, "seconds": self.seconds, "time": self.time})


@dataclass(frozen=True)
class Undo:
    """A vote taken back. of: its id."""

    id: str
    of: str
    voter: str
    time: str

    def line(self) -> bytes:
        """The undo as a line of a book."""
        return _line({"kind": "undo", "id": self.id, "of": self.of, "voter": self.voter, "time": self.time})


Entry = Vote | Undo


def content(image: np.ndarray) -> str:
    """32 hex digits that stand for the pixels of an image, uint8 [H, W, 3] or [T, H, W, 3], whatever file holds them."""
    head = repr(tuple(int(n) for n in image.shape)).encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest()


def pixels(file: Path) -> np.ndarray:
    """The image of a file as rewards see it, uint8 [H, W, 3], or its video, [T, H, W, 3].

    Raises: ValueError if it is no image that can be read; ModuleNotFoundError for a film without OpenCV.
    """
    from PIL import Image, UnidentifiedImageError

    from flowrl.rewards import videos

    if videos.moves(file):
        return videos.read(file).pixels
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} is not an image that can be read; remove it from the folder") from error


def entries(path: Path) -> list[Entry]:
    """All lines in order. Lines that cannot be read, such as one torn by a kill, are left out with a warning."""
    found: list[Entry] = []
    torn: list[int] = []
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_entry(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            torn.append(number)
    if torn:
        which = f"line {torn[0]}" if len(torn) == 1 else f"lines {', '.join(map(str, torn[:5]))}"
        warnings.warn(f"{path}, {which}: not a whole vote, left out (a line torn by a kill or an edit)", stacklevel=2)
    return found


def standing(found: Iterable[Entry]) -> list[Vote]:
    """Votes that count, in order: a repeated id counts once, one taken back does not."""
    votes: dict[str, Vote] = {}
    gone: set[str] = set()
    for entry in found:
        if isinstance(entry, Undo):
            gone.add(entry.of)
        else:
            votes.setdefault(entry.id, entry)
    return [vote for vote in votes.values() if vote.id not in gone]


def locate(name: str) -> Path:
    """The book a person means by a file, or by the folder that holds votes.jsonl.

    Raises: FileNotFoundError if there is none.
    """
    path = Path(name)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no book of votes {path}; make one with: flowrl vote RUN")
    return path


def read(path: Path) -> list[Vote]:
    """The votes of a book that count.

    Raises: ValueError if none says which of two images of a prompt is better, or that they are equal.
    """
    votes = standing(entries(path))
    if not any(vote.ranks for vote in votes):
        raise ValueError(f"{path} holds no vote that compares two images ({len(votes)} votes); vote first: flowrl vote RUN")
    return votes


Item = tuple[str, str]
"""An image of a prompt: (prompt, content)."""


def comparisons(votes: Iterable[Vote]) -> dict[tuple[Item, Item], float]:
    """How often the first image beat the second, ordered by prompt and content; a tie is half a win for each.

    A ranking of k images is its k (k - 1) / 2 pairs.
    """
    wins: defaultdict[tuple[Item, Item], float] = defaultdict(float)
    for vote in votes:
        items = [(vote.prompt, image.content) for image in vote.images]
        for i, one in enumerate(items):
            for j in range(i + 1, len(items)):
                share = better(vote, i, j)
                if share is not None:
                    wins[one, items[j]] += share
                    wins[items[j], one] += 1 - share
    return dict(sorted(wins.items()))


def better(vote: Vote, i: int, j: int) -> float | None:
    """1 if image i was preferred to image j, 0 if j to i, 0.5 if neither; None if they could not say."""
    if vote.ranks is None:
        return None
    first, second = vote.ranks[i], vote.ranks[j]
    return 0.5 if first == second else float(first < second)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _entry(row: Any) -> Entry:
    if row["kind"] == "undo":
        return Undo(_text(row["id"]), _text(row["of"]), _text(row["voter"]), _text(row["time"]))
    if row["kind"] != "vote":
        raise ValueError(row["kind"])
    images = tuple(Shown(_text(i["file"]), _text(i["hash"]), i.get("side")) for i in row["images"])
    ranks = None if row["ranks"] is None else tuple(int(rank) for rank in row["ranks"])
    told = _text(row["id"]), _text(row["voter"]), _text(row["prompt"])
    return Vote(*told, images, ranks, float(row["seconds"]), _text(row["time"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value
