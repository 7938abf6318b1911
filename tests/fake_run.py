"""A run folder as a run would leave it, made in a second: for tests of the report and for looking at the page.

python tests/fake_run.py FOLDER [iterations] writes one and its report.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowrl.evaluate import gain, summarise
from flowrl.folder import RunFolder
from flowrl.report import contact_sheet, write

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = {"red": (215, 40, 45), "green": (40, 165, 65), "blue": (45, 75, 215), "yellow": (240, 200, 40), "purple": (150, 50, 180)}


def picture(rng: np.random.Generator, good: float) -> np.ndarray:
    """A tidy or a smeared coloured shape, 64 x 64."""
    y, x = np.mgrid[:64, :64] + 0.5
    canvas = np.full((64, 64, 3), rng.uniform(232, 248))
    for colour in rng.choice(list(COLOURS), rng.integers(1, 3), replace=False):
        cx, cy, r = *rng.uniform(16, 48, 2), rng.uniform(8, 12)
        inside = np.clip((r - np.hypot(x - cx, y - cy)) / (1 + 9 * (1 - good)) + 0.5, 0, 1)[..., None]
        canvas += inside * (np.array(COLOURS[str(colour)]) - canvas)
    return np.clip(canvas + rng.normal(0, 14 * (1 - good), canvas.shape), 0, 255).astype(np.uint8)


def row(i: int, total: int, rng: np.random.Generator) -> dict[str, Any]:
    rise = 1 - math.exp(-3 * i / total)
    mean = 0.31 + 0.34 * rise + rng.normal(0, 0.015)
    out: dict[str, Any] = {
        "iteration": i,
        "reward/mean": mean,
        "reward/std": 0.2 - 0.06 * rise,
        "reward/best": min(1.0, mean + 0.3 + rng.normal(0, 0.02)),
        "ratio/first_max_abs": 0.0,
        "grad/norm": 0.4 + 0.3 * rise + abs(rng.normal(0, 0.06)),
        "clip/fraction": 0.02 + 0.06 * rise * rng.random(),
        "kl/mean": 4e-4 * rise + abs(rng.normal(0, 1e-5)),
        "reward/zero_variance": float(rng.integers(0, 3)) / 8,
        "seconds/rollout": 4.1 + rng.normal(0, 0.2),
        "seconds/decode": 0.4 + rng.normal(0, 0.02),
        "seconds/reward": 0.3 + rng.normal(0, 0.02),
        "seconds/train": 5.2 + rng.normal(0, 0.3),
    }
    out["seconds/total"] = sum(v for k, v in out.items() if k.startswith("seconds/"))
    if i % 10 == 0:
        score = 0.21 + 0.24 * rise + rng.normal(0, 0.02)
        out |= {"heldout/score": score, "heldout/low": score - 0.07, "heldout/high": score + 0.07}
    return out


CONFIG: dict[str, Any] = {
    "method": {"name": "mix_grpo", "args": {"window": 4, "level": 0.7}},
    "policy": {
        "model": "shapes",
        "dtype": "float32",
        "steps": 10,
        "guidance": 1.0,
        "lora": {"rank": 32, "alpha": 64.0, "targets": None},
    },
    "rewards": [{"name": "shapes:soft", "weight": 1.0}],
    "data": {"prompts": "shapes", "heldout": 0.1},
    "optim": {"lr": 3e-4, "betas": [0.9, 0.999], "max_norm": 1.0},
    "sizes": {"prompts": 8, "group": 12, "slice": None},
    "run": {"name": "first light", "seed": 0, "iterations": 100, "keep": 2},
}


def make(
    path: Path, iterations: int = 100, *, finished: bool = True, images: bool = True, prompts: tuple[str, ...] = ()
) -> RunFolder:
    """A run on made-up numbers. finished False: as if it was killed after half of its iterations."""
    rng = np.random.default_rng(0)
    folder = RunFolder.create(path)
    folder.write_yaml("run.yaml", CONFIG)
    for i in range(iterations if finished else iterations // 2):
        folder.log(row(i, iterations, rng))
    tasks: list[str | None] = [t for t in TASKS for _ in range(28)]
    ability = np.repeat([0.7, 0.2, 0.1, 0.35, 0.05, 0.03], 28)[:, None]
    before = (rng.random((168, 4)) < ability).astype(float)
    after = np.maximum(before, rng.random((168, 4)) < 0.28).astype(float)
    if images:
        _images(folder, tasks, before, after, finished, prompts)
    if finished:
        first, last = summarise(before, tasks, 0), summarise(after, tasks, 0)
        folder.write_json(
            "result.json",
            {
                "method": "mix_grpo",
                "model": "shapes",
                "seed": 0,
                "minutes": 18.4,
                "iterations": iterations,
                "before": first,
                "after": last,
                "gain": gain(before, after, tasks),
                "judges": [{"name": "second", "before": 24.1, "after": 24.6}],
                "diversity": {"before": 0.412, "after": 0.371},
                "versions": {"flowrl": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
                "folder": str(path),
            },
        )
    return folder


def _images(
    folder: RunFolder, tasks: list[str | None], before: np.ndarray, after: np.ndarray, finished: bool, prompts: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(1)
    texts = (
        *prompts,
        "a photo of a red circle and a blue square",
        "three triangles",
        "a green cross left of a yellow circle",
        "one purple square",
        "a drawing of a cyan triangle above a red cross",
        "two blue circles",
    )[:6]
    rows: list[dict[str, Any]] = []
    for side in ("before", "after"):
        (folder.samples / side).mkdir()
    sheets: dict[str, list[np.ndarray]] = {"before": [], "after": []}
    for c, text in enumerate(texts):
        for k in range(4):
            entry: dict[str, Any] = {"prompt": text, "task": TASKS[c]}
            for side, values, good in (("before", before, 0.3), ("after", after, 0.95)):
                sheets[side].append(picture(rng, good))
                name = f"{side}/{c:02d}_{k}.png"
                Image.fromarray(sheets[side][-1]).save(folder.samples / name, compress_level=1)
                entry[side] = {"file": name, "score": float(values[28 * c, k])}
            rows.append(entry)
    captions = [t for t in texts for _ in range(4)]
    contact_sheet(np.stack(sheets["before"]), captions, 6).save(folder.samples / "before.png", compress_level=1)
    contact_sheet(np.stack([picture(rng, 0.6) for _ in captions]), captions, 6).save(
        folder.samples / "000020.png", compress_level=1
    )
    if finished:
        scores = [r["after"]["score"] for r in rows]
        contact_sheet(np.stack(sheets["after"]), captions, 6, scores).save(folder.samples / "after.png", compress_level=1)
        (folder.samples / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    print(write(make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)))
