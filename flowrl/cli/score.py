"""flowrl score."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowrl.data import Prompts

BATCH = 16


def score(
    folder: Annotated[Path, typer.Argument(help="Images with metadata.jsonl (file_name, prompt), or name.txt beside each.")],
    reward: Annotated[list[str], typer.Option(metavar="NAME", help="A name, module:name or file.py:function; repeatable.")],
    prompt: Annotated[str | None, typer.Option(help="The column of the text, if it is not prompt, caption or text.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where each image's scores go; default FOLDER/scores.jsonl.")] = None,
    device: Annotated[str, typer.Option(help="Where rewards with a network run.")] = "cpu",
) -> None:
    """Score a folder of images with rewards: mean and 95 % interval, overall and for each task in the metadata.

    Captions are what is counted and resampled, since images of one caption are not independent.

    Examples:

        flowrl score samples --reward shapes:strict

        flowrl score samples --reward clip --reward mine.py:brightness
    """
    from flowrl import data

    prompts = data.read(folder, prompt)
    files = _files(prompts, folder)
    values = {name: run(name, files, prompts, device) for name in dict.fromkeys(reward)}
    target = out or folder / "scores.jsonl"
    with target.open("w", encoding="utf-8") as sink:
        for i, file in enumerate(files):
            row = {"file_name": file.name, "prompt": prompts.text[i], **{name: _json(scores[i]) for name, scores in values.items()}}
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
    _table(values, prompts)
    print(f"each image's scores are in {target}")


def run(name: str, files: Sequence[Path], prompts: Prompts, device: str) -> list[float]:
    """One reward's score of each image, NaN where it could not score; images of one size are scored together."""
    import numpy as np
    import torch

    from flowrl import rewards

    spec, weight = rewards.parse(name)
    if weight != 1:
        raise ValueError(f"reward {name!r} has a weight, which a score does not need; write {spec}")
    made = rewards.make(spec, place=device)
    state, found = made.init(), [math.nan] * len(files)
    for indices, pixels in _batches(files):
        n = len(indices)
        samples = rewards.Samples(
            torch.from_numpy(np.stack(pixels))[:, None], [prompts.text[i] for i in indices], [prompts.metadata[i] for i in indices],
            torch.ones(n, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long),
        )  # fmt: skip
        scores, state = made(samples, state)
        for i, value, valid in zip(indices, scores.values[:, 0].tolist(), scores.valid[:, 0].tolist(), strict=True):
            found[i] = value if valid else math.nan
    return found


def _batches(files: Sequence[Path]) -> Iterator[tuple[list[int], list[Any]]]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    indices: list[int] = []
    pixels: list[Any] = []
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                array = np.asarray(image.convert("RGB"))
        except UnidentifiedImageError as error:
            raise ValueError(f"{file} is not an image that can be read; remove it from the folder") from error
        if pixels and (len(pixels) == BATCH or array.shape != pixels[0].shape):
            yield indices, pixels
            indices, pixels = [], []
        indices.append(i)
        pixels.append(array)
    if pixels:
        yield indices, pixels


def _files(prompts: Prompts, folder: Path) -> list[Path]:
    files = [path for path in prompts.images if path is not None]
    if len(files) < len(prompts):
        raise ValueError(f"{folder} holds prompts without images; give images with metadata.jsonl, or with name.txt beside each")
    return files


def _table(values: Mapping[str, Sequence[float]], prompts: Prompts) -> None:
    from rich.console import Console
    from rich.table import Table

    from flowrl.evaluate import summarise

    captions = list(dict.fromkeys(prompts.text))
    images: dict[str, list[int]] = {text: [i for i, other in enumerate(prompts.text) if other == text] for text in captions}
    tasks = [_task(prompts.metadata[images[text][0]]) for text in captions]
    widest = max(map(len, images.values()))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("reward", "task", "mean", "95 % interval", "captions", "not scored"):
        table.add_column(title, justify="left" if title in ("reward", "task") else "right")
    for name, scores in values.items():
        if all(map(math.isnan, scores)):
            raise ValueError(f"reward {name!r} could not score any of the {len(scores)} images; look at its warnings")
        grid = [[scores[i] for i in images[t]] + [math.nan] * (widest - len(images[t])) for t in captions]
        summary = summarise(grid, tasks, seed=0)
        failed = sum(map(math.isnan, scores))
        table.add_row(name, "all", *_cells(summary), str(failed))
        for task, part in summary["tasks"].items():
            table.add_row("", task, *_cells(part), "")
    Console().print(table)


def _task(metadata: Mapping[str, Any]) -> str | None:
    return next((str(metadata[key]) for key in ("task", "tag") if key in metadata), None)


def _cells(part: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{part['score']:.4f}", f"{part['low']:.4f} to {part['high']:.4f}", str(part["n"])


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
