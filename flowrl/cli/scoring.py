"""What `flowrl score` does: scores of a folder of images by several rewards, a file of numbers, pictures of best and worst."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowrl import data, rewards
from flowrl.data import Prompts
from flowrl.moving import four, smaller
from flowrl.readers import PICTURES
from flowrl.report import contact_sheet
from flowrl.rewards import Place, Samples, videos
from flowrl.rewards.base import knowing
from flowrl.rewards.videos import Seen

BATCH, PIXELS = 16, 2**26
"""What a call of a reward has at most, of images and of pixels."""
SHOWN = 6
SIDE = 192


@dataclass(frozen=True)
class Scored:
    """One reward's numbers of N images, NaN where it could not score; parts: what they are made of."""

    values: Sequence[float]
    parts: Mapping[str, Sequence[float]]


def images(folder: Path, prompts: Path | None, column: str | None) -> tuple[list[Path], Prompts]:
    """The images or videos of a folder, each with its prompt: from metadata.jsonl or name.txt beside them, or a file of prompts.

    The file's rows name their image (file_name), or go to the images in the order of their names: one prompt an image, or
    one for each run of as many images.

    Raises: ValueError, OSError: a sentence, where images and prompts do not fit together.
    """
    if prompts is None:
        read = data.read(folder, column)
        files = [path for path in read.images if path is not None]
        if len(files) < len(read):
            raise ValueError(
                f"{folder} holds prompts without images; give images with metadata.jsonl, or with name.txt beside each"
            )
        return files, read
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=_natural)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(PICTURES)})")
    read = data.read(prompts, column)
    named = [row.get("file_name") for row in read.metadata]
    if all(named):
        missing = [name for name in named if not (folder / str(name)).is_file()]
        if missing:
            raise FileNotFoundError(f"{prompts} names {missing[0]!r}, which is not in {folder}")
        return [folder / str(name) for name in named], read
    if len(files) % len(read):
        raise ValueError(f"{folder} holds {len(files)} images for {len(read)} prompts of {prompts}; give one prompt an image")
    each = len(files) // len(read)
    return files, read.take([i // each for i in range(len(files))])


def run(name: str, files: Sequence[Path], prompts: Prompts, place: Place) -> Scored:
    """One reward's score of each image. Images of one size go together; a reward that compares sees those of one prompt. Of a video
    the file's rate is metadata's "fps", where that is not given."""
    spec, weight = rewards.parse(name)
    if weight != 1:
        raise ValueError(f"reward {name!r} has a weight, which a score does not need; write {spec}")
    made = knowing(rewards.make(spec, place=place))
    whole = isinstance(made, rewards.Compares) and made.compares
    state, values = made.init(), [math.nan] * len(files)
    parts: dict[str, list[float]] = {}
    for indices, seen in _rivals(files, prompts) if whole else _batches(files):
        rows, leaves = (1, len(indices)) if whole else (len(indices), 1)
        heads = indices[:rows]
        told = [_timed(prompts.metadata[i], one) for i, one in zip(heads, seen, strict=False)]
        samples = Samples(
            torch.from_numpy(np.stack([one.pixels for one in seen])).unflatten(0, (rows, leaves)),
            [prompts.text[i] for i in heads],
            told,
            torch.ones(rows, leaves, dtype=torch.bool),
            torch.zeros(leaves, dtype=torch.long),
        )
        scores, state = made(samples, state)
        found = scores.values.masked_fill(~scores.valid, math.nan).flatten().tolist()
        for part, told in scores.parts.items():
            column = parts.setdefault(part, [math.nan] * len(files))
            for i, value in zip(indices, told.flatten().tolist(), strict=True):
                column[i] = value
        for i, value in zip(indices, found, strict=True):
            values[i] = value
    return Scored(values, parts)


def write(target: Path, files: Sequence[Path], prompts: Prompts, found: Mapping[str, Scored]) -> None:
    """scores.csv: a line an image, a column a reward and one each of its parts; an empty cell where it could not score."""
    columns: dict[str, Sequence[float]] = {}
    for name, scored in found.items():
        columns |= {name: scored.values, **{f"{name}/{part}": values for part, values in scored.parts.items()}}
    with target.open("w", encoding="utf-8", newline="") as sink:
        lines = csv.writer(sink)
        lines.writerow(["file_name", "prompt", *columns])
        for i, file in enumerate(files):
            lines.writerow([file.name, prompts.text[i], *("" if math.isnan(v[i]) else repr(v[i]) for v in columns.values())])


def draw(target: Path, files: Sequence[Path], prompts: Prompts, scored: Scored) -> None:
    """A sheet of the best images above the worst; what is between them is not shown."""
    order = sorted((i for i, value in enumerate(scored.values) if not math.isnan(value)), key=lambda i: -scored.values[i])
    half = min(SHOWN, max(1, len(order) // 2))
    shown = [*order[:half], *order[max(half, len(order) - half) :]]
    thumbs, titles = np.stack([_thumb(files[i]) for i in shown]), ("best", "worst")[: math.ceil(len(shown) / half)]
    contact_sheet(thumbs, [prompts.text[i] for i in shown], half, [scored.values[i] for i in shown], titles).save(target)


def slug(name: str) -> str:
    """A reward's name as a file's."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name.rpartition("/")[2] if ".py:" in name else name).strip("-")


def _natural(path: Path) -> list[Any]:
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.name)]


def _timed(metadata: Mapping[str, Any], seen: Seen) -> Mapping[str, Any]:
    return metadata if seen.fps is None else {"fps": seen.fps, **metadata}


def _thumb(file: Path) -> np.ndarray:
    pixels = videos.read(file).pixels
    if pixels.ndim == 4:
        at = videos.chosen(len(pixels), 4)
        pixels = four(np.stack([smaller(frame, SIDE // 2, SIDE // 2) for frame in pixels[at]]))
    with Image.fromarray(pixels) as image:
        image.thumbnail((SIDE, SIDE))
        square = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
        return np.asarray(square)


def _batches(files: Sequence[Path]) -> Iterator[tuple[list[int], list[Seen]]]:
    indices: list[int] = []
    held: list[Seen] = []
    for i, file in enumerate(files):
        seen = videos.read(file)
        shape = seen.pixels.shape
        most = max(1, min(BATCH, PIXELS // (seen.pixels.size // 3)))
        if held and (len(held) >= most or shape != held[0].pixels.shape):
            yield indices, held
            indices, held = [], []
        indices.append(i)
        held.append(seen)
    if held:
        yield indices, held


def _rivals(files: Sequence[Path], prompts: Prompts) -> Iterator[tuple[list[int], list[Seen]]]:
    for text in dict.fromkeys(prompts.text):
        indices = [i for i, other in enumerate(prompts.text) if other == text]
        seen = [videos.read(files[i]) for i in indices]
        shape = seen[0].pixels.shape
        if odd := next((i for i, one in zip(indices, seen, strict=True) if one.pixels.shape != shape), None):
            raise ValueError(
                f"{files[odd]} differs in size from {files[indices[0]]}; images of one prompt are compared, so give one size"
            )
        yield indices, seen
