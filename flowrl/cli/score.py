"""flowrl score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowrl.data import Prompts


def score(
    folder: Annotated[
        Path, typer.Argument(help="Images or videos with metadata.jsonl (file_name, prompt), name.txt beside each, or --prompts.")
    ],
    reward: Annotated[list[str], typer.Option(metavar="NAME", help="A name, module:name or file.py:function; repeatable.")],
    prompts: Annotated[Path | None, typer.Option(help="Texts of the images: a line each, or rows with file_name.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The column of the text, if it is not prompt, caption or text.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where scores.csv and pictures go; default: scores in it.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where rewards with a network run.")] = "cpu",
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a video so many are shown; default 8, and all for what reads motion.")
    ] = None,
) -> None:
    """Score a folder of images or videos with rewards: mean and 95 % interval, overall and for each task in the metadata; a file of
    every image's scores, and a picture of each reward's best and worst.

    Captions are what is counted and resampled, since images of one caption are not independent. Videos are animated .webp, .gif and
    .png, and with OpenCV .mp4 and other films.

    Examples:

        flowrl score samples --reward shapes:strict

        flowrl score images --prompts prompts.txt --reward clip --reward mine.py:brightness
    """
    from flowrl.rewards import Place

    from . import scoring

    files, read = scoring.images(folder, prompts, prompt)
    found = {name: scoring.run(name, files, read, Place(device, frames=frames)) for name in dict.fromkeys(reward)}
    _table({name: scored.values for name, scored in found.items()}, read)
    target = out or folder / "scores"
    target.mkdir(parents=True, exist_ok=True)
    scoring.write(target / "scores.csv", files, read, found)
    print(f"each image's scores are in {target / 'scores.csv'}")
    for name, scored in found.items():
        scoring.draw(target / f"{scoring.slug(name)}.png", files, read, scored)
        print(f"the best and worst by {name} are in {target / f'{scoring.slug(name)}.png'}")


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
        left = title in ("reward", "task")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "reward", overflow="fold")
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
    interval = "" if math.isnan(part["low"]) else f"{part['low']:.4f} to {part['high']:.4f}"
    return f"{part['score']:.4f}", interval, str(part["n"])
