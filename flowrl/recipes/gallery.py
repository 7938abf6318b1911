"""Pictures of a run: a few held-out captions, the same noise before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy as np
from PIL import Image

from flowrl.data import Prompts
from flowrl.folder import RunFolder, write_atomic
from flowrl.heldout import Judged
from flowrl.report import contact_sheet

SHOWN = 24


def save_images(folder: RunFolder, when: str, held: Prompts, tasks: Sequence[str | None], seen: Judged) -> None:
    """samples/<when>/<caption>_<image>.png of up to SHOWN captions, and their scores in samples/index.jsonl."""
    shown = _spread(seen.local)
    place = folder.samples / when
    place.mkdir(parents=True, exist_ok=True)
    index = folder.samples / "index.jsonl"
    rows = {r["caption"]: r for r in map(json.loads, index.read_text().splitlines())} if index.exists() else {}
    scores = next(iter(seen.scores.values()))
    for caption in shown:
        for image in range(min(2, seen.pixels.shape[1])):
            Image.fromarray(seen.pixels[caption, image].numpy()).save(place / f"{caption:03d}_{image}.png")
        score = float(scores[caption, 0])
        row = rows.setdefault(caption, {"caption": caption, "prompt": held.text[caption], "task": tasks[caption]})
        row[when] = {"file": f"{when}/{caption:03d}_0.png", "score": None if math.isnan(score) else score}
    write_atomic(index, "".join(json.dumps(r) + "\n" for r in rows.values()).encode())


def save_sheet(folder: RunFolder, iteration: int, held: Prompts, seen: Judged, scores: np.ndarray) -> None:
    """samples/<iteration>.png: the first image of up to SHOWN captions, the same ones and the same noise every time."""
    shown = _spread(seen.local)
    sheet = contact_sheet(seen.pixels[shown, 0].numpy(), [held.text[i] for i in shown], 6, [float(scores[i, 0]) for i in shown])
    folder.samples.mkdir(exist_ok=True)
    sheet.save(folder.samples / f"{iteration:06d}.png")


def _spread(captions: Sequence[int]) -> list[int]:
    return list(captions) if len(captions) <= SHOWN else [captions[int(i * len(captions) / SHOWN)] for i in range(SHOWN)]


__all__ = ["SHOWN", "save_images", "save_sheet"]
