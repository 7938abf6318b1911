"""Pictures of a run: a few held-out captions, the same noise before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from flowrl import moving
from flowrl.data import Prompts
from flowrl.folder import RunFolder, write_atomic
from flowrl.heldout import Judged
from flowrl.report import contact_sheet

SHOWN = 24
COLUMNS = 6
STRIP = 3
"""Frames of a video on a sheet."""


def save_images(
    folder: RunFolder,
    when: str,
    held: Prompts,
    tasks: Sequence[str | None],
    seen: Judged,
    fps: float | None = None,
    pictured: bool = False,
) -> None:
    """samples/<when>/<caption>_<image>.png of the pictures there are, .webp of videos, which play at fps; and their scores in
    samples/index.jsonl, with the image that a prompt came with where the model is shown it (pictured)."""
    place = folder.samples / when
    place.mkdir(parents=True, exist_ok=True)
    index = folder.samples / "index.jsonl"
    rows = {r["caption"]: r for r in map(json.loads, index.read_text().splitlines())} if index.exists() else {}
    scores = next(iter(seen.scores.values()))
    for (caption, image), pixels in sorted(seen.pictures.items()):
        file = moving.save(place / f"{caption:03d}_{image}", pixels.numpy(), fps)
        if image:
            continue
        score = float(scores[caption, 0])
        row = rows.setdefault(caption, {"caption": caption, "prompt": held.text[caption], "task": tasks[caption]})
        if pictured and held.images[caption] is not None:
            row["image"] = str(held.images[caption])
        row[when] = {"file": f"{when}/{file.name}", "score": None if math.isnan(score) else score}
    write_atomic(index, "".join(json.dumps(r) + "\n" for r in rows.values()).encode())


def save_sheet(folder: RunFolder, iteration: int, held: Prompts, seen: Judged, scores: np.ndarray) -> None:
    """samples/<iteration>.png: the first image of each caption shown, the same ones and the same noise every time; of a video some
    frames, from the first to the last."""
    shown = sorted(caption for caption, image in seen.pictures if image == 0)
    pictures = [seen.pictures[i, 0].numpy() for i in shown]
    video = pictures[0].ndim == 4
    sheet = contact_sheet(
        np.stack([moving.strip(one, STRIP) for one in pictures] if video else pictures),
        [held.text[i] for i in shown],
        COLUMNS // STRIP if video else COLUMNS,
        [float(scores[i, 0]) for i in shown],
    )
    folder.samples.mkdir(exist_ok=True)
    sheet.save(folder.samples / f"{iteration:06d}.png")


__all__ = ["SHOWN", "save_images", "save_sheet"]
