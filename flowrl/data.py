"""Prompts: where they come from, what is held out, and which ones an iteration takes. No torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, SupportsInt, cast

from flowrl import readers
from flowrl.readers import Row, Table

TEXT = ("prompt", "caption", "text", "TEXT", "Prompt")
"""Columns taken for the text if none is named, the first present."""

Source = str | Path | Sequence[Row] | Any
"""A file, a folder, "hf:OWNER/NAME:SPLIT", a list of texts or dicts, or a datasets.Dataset."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """n prompts with what a reward may want to know about each. `heldout`: the part the source itself sets aside (test.txt)."""

    text: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]
    images: tuple[Path | None, ...]
    heldout: Prompts | None = None

    def __post_init__(self) -> None:
        if not len(self.text) == len(self.metadata) == len(self.images):
            raise ValueError(f"{len(self.text)} texts, {len(self.metadata)} metadata and {len(self.images)} images; give one each")

    def __len__(self) -> int:
        return len(self.text)

    def take(self, indices: Iterable[SupportsInt]) -> Prompts:
        """Those prompts, in that order, without `heldout`."""
        at = [int(index) for index in indices]
        return Prompts(tuple(self.text[i] for i in at), tuple(self.metadata[i] for i in at), tuple(self.images[i] for i in at))


def read(source: Source, prompt: str | None = None, image: str | None = None) -> Prompts:
    """All prompts of a source, in its order.

    Sources: a list of texts or dicts; .txt (a prompt a line), .jsonl, .json, .csv, .tsv, .parquet; "hf:OWNER/NAME:SPLIT" or a
    loaded datasets.Dataset; a folder: flow_grpo's (train_metadata.jsonl or train.txt, with test_metadata.jsonl or test.txt as
    `heldout`), Hugging Face's imagefolder (metadata.jsonl or .csv with file_name), or images with name.txt beside them.
    prompt: the column of the text, by default the first of `TEXT`. image: the column of image paths, relative to the file.
    Every other column is metadata; null and an empty CSV cell mean that the key is absent, also inside objects, and a CSV cell
    that is JSON is read as JSON (`readers.cell`), so all formats give the same rows. Texts are stripped of surrounding space.

    Raises: FileNotFoundError, ModuleNotFoundError, or ValueError and TypeError naming file, line and column of what is wrong.
    """
    if isinstance(source, str | Path) and not str(source).startswith("hf:"):
        path = readers.existing(source)
        if path.is_dir():
            return _folder(path, prompt, image)
    return _collect(_table(source), prompt, image)


def split(
    prompts: Prompts, heldout: str | Path | float | Prompts, prompt: str | None = None, image: str | None = None
) -> tuple[Prompts, Prompts]:
    """(train, held out), disjoint in text, without duplicates.

    heldout: a second source (read with the same columns), or the share of distinct texts to hold out: those whose sha256, as a
    number in [0, 1), is below it, so a text stays on its side whatever the order of rows and whatever else is added.
    A share above 0 gives way to `prompts.heldout` where the source has one, and holds out at least one text of two or more.
    0 holds nothing out. Of rows with the same text, metadata and image the first is kept; a training prompt whose text is
    held out is dropped. How many is logged.

    Raises: ValueError for a share outside [0, 1), or if nothing is left to train on.
    """
    if isinstance(heldout, int | float):
        if not 0 <= heldout < 1:
            raise ValueError(f"heldout is {heldout}; give a share from 0 to below 1, or the name of a second source")
        if not heldout or prompts.heldout is None:
            return _share(_distinct(prompts, "prompts"), float(heldout))
        _log.info("held out: the source's own %d prompts; the share %s is not used", len(prompts.heldout), heldout)
        heldout = prompts.heldout
    elif not isinstance(heldout, Prompts):
        heldout = read(heldout, prompt, image)
    other = _distinct(heldout, "held-out prompts")
    train = _distinct(prompts, "prompts")
    held = set(other.text)
    kept = [index for index, text in enumerate(train.text) if text not in held]
    if not kept:
        raise ValueError(
            f"all {len(train)} training prompts are also held out, so none is left to train on; give another held-out source"
        )
    if len(kept) < len(train):
        _log.warning("%d training prompts are also held out and were left out of training", len(train) - len(kept))
    return train.take(kept), other


def batch(prompts_count: int, per_iteration: int, seed: int, iteration: int) -> list[int]:
    """Indices of an iteration's prompts: entries iteration * per_iteration ... of an endless chain of permutations, one an epoch.

    A pure function: nothing to checkpoint. Every prompt comes once an epoch; an iteration may reach over several epochs.

    Raises: ValueError for a count below 1 or an iteration below 0.
    """
    if prompts_count < 1 or per_iteration < 1:
        raise ValueError(f"a batch of {per_iteration} out of {prompts_count} prompts cannot be taken; both must be at least 1")
    if iteration < 0:
        raise ValueError(f"iteration is {iteration}; it counts from 0")
    positions = range(iteration * per_iteration, (iteration + 1) * per_iteration)
    return [_permutation(prompts_count, seed, at // prompts_count)[at % prompts_count] for at in positions]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    # of all of `random`, only random() is promised to give the same numbers in every version of Python
    draws = random.Random(int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()))
    keys = [draws.random() for _ in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))


def _table(source: Any) -> Table:
    if isinstance(source, str | Path):
        return readers.hub(source) if isinstance(source, str) and source.startswith("hf:") else readers.file(Path(source))
    if isinstance(source, list | tuple):
        return readers.listed(cast(Sequence[Row], source))
    datasets: Any = sys.modules.get("datasets")  # who passes a dataset has imported it
    if datasets and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return readers.dataset(source)
    if datasets and isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise TypeError(f"the dataset has splits {', '.join(source)}; pass one of them")
    known = "a file, a folder, hf:OWNER/NAME:SPLIT, a list or a datasets.Dataset"
    raise TypeError(f"prompts cannot be read from a {type(source).__name__}; give {known}")


def _folder(folder: Path, prompt: str | None, image: str | None) -> Prompts:
    for train, test in (("train_metadata.jsonl", "test_metadata.jsonl"), ("train.txt", "test.txt")):
        if (folder / train).is_file():
            part = _collect(readers.file(folder / train), prompt, image)
            held = _collect(readers.file(folder / test), prompt, image) if (folder / test).is_file() else None
            return Prompts(part.text, part.metadata, part.images, held)
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            return _collect(readers.file(folder / name), prompt, image or "file_name")
    return _collect(readers.captions(folder), prompt, image)


def _collect(table: Table, prompt: str | None, image: str | None) -> Prompts:
    image = image or table.image
    text: list[str] = []
    metadata: list[dict[str, Any]] = []
    images: list[Path | None] = []
    column: str | None = None
    for number, row in table.rows:
        name = TEXT[0]
        if isinstance(row, str):
            row = {name: row}
        elif isinstance(row, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            name = column = column or _column(table, row, prompt, image)
        else:
            raise TypeError(f"{table.source}, {table.unit} {number}: expected a text or an object, got {_short(row)}")
        text.append(_text(table, number, row, name))
        images.append(_image(table, number, row, image) if image else None)
        rest = {key: value for key, value in row.items() if key not in (name, image)}
        metadata.append(_present({key: readers.cell(value) for key, value in rest.items()} if table.encoded else rest))
    if not text:
        raise ValueError(f"{table.source} holds no prompts; give at least one")
    return Prompts(tuple(text), tuple(metadata), tuple(images))


def _column(table: Table, row: Mapping[str, Any], prompt: str | None, image: str | None) -> str:
    names = list(table.columns or row)
    for wanted, argument in ((prompt, "prompt"), (image, "image")):
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"name another with {argument}= (data.{argument} in a recipe)"
            raise ValueError(f"{table.source} has no column {wanted!r}, only {', '.join(names)}; {hint}")
    found = prompt or next((name for name in TEXT if name in names), None)
    if found is None:
        raise ValueError(
            f"{table.source} has no column {', '.join(TEXT[:-1])} or {TEXT[-1]}, only {', '.join(names)}; "
            "say which holds the text with prompt= (data.prompt in a recipe)"
        )
    return found


def _text(table: Table, number: int, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value.strip()
    what = "is missing" if value is None else "is empty" if isinstance(value, str) else f"is {_short(value)}, not a text"
    raise ValueError(f"{table.source}, {table.unit} {number}, column {column!r} {what}; every row needs a prompt")


def _image(table: Table, number: int, row: Mapping[str, Any], column: str) -> Path:
    value = row.get(column)
    where = f"{table.source}, {table.unit} {number}, column {column!r}"
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is {_short(value)}, not the path of an image")
    path = (table.root or Path()) / value
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no image {path}")
    return path


def _present(value: Any) -> Any:
    """Without nulls: columnar formats fill absent keys with them."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in cast(dict[str, Any], value).items() if inner is not None}
    return [_present(inner) for inner in cast(list[Any], value)] if isinstance(value, list) else value


def _distinct(prompts: Prompts, what: str) -> Prompts:
    first: dict[tuple[str, str, Path | None], int] = {}
    for index, (text, metadata, image) in enumerate(zip(prompts.text, prompts.metadata, prompts.images, strict=True)):
        first.setdefault((text, json.dumps(metadata, sort_keys=True, default=repr), image), index)
    if len(first) < len(prompts):
        dropped = len(prompts) - len(first)
        _log.info("%d of %d %s are duplicates (same text, metadata and image) and were dropped", dropped, len(prompts), what)
    return prompts.take(first.values())


def _share(prompts: Prompts, share: float) -> tuple[Prompts, Prompts]:
    place = {text: _place(text) for text in prompts.text}
    held = {text for text, at in place.items() if at < share}
    if share and len(place) > 1:
        # a share of few prompts may come out as none or all; the outermost text changes sides
        held = (held | {min(place, key=place.__getitem__)}) - {max(place, key=place.__getitem__)}
    elif share:
        held.clear()
        _log.warning("there is one prompt only, so none is held out")
    sides = ([i for i, text in enumerate(prompts.text) if (text in held) == side] for side in (False, True))
    train, other = (prompts.take(side) for side in sides)
    return train, other


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _short(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
