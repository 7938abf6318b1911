"""`assets/training.json`: how the shipped models came about, in numbers that tests compare with the files."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from flowrl import evaluate
from flowrl.shapes import autoencoder, clip, flow, judge_training, measure, protocol, text, verify
from flowrl.shapes.judge import judge
from flowrl.shapes.mislabel import RATES, mislabel
from flowrl.shapes.render import draw
from flowrl.shapes.tokenizer import vocabulary
from flowrl.shapes.world import TAGS, captions

FIRST = 200
FOLDERS = ("shapes-clip", "shapes-judge", "shapes-sd3")
PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "scipy")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scripts() -> dict[str, str]:
    """Digest of every module of this folder."""
    return {path.name: sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))}


def world() -> dict[str, object]:
    """The captions of training and measurement: how many, and a digest that no formatting of a script changes."""
    train, held = captions("train"), captions("heldout")
    said = [mislabel(row, np.random.default_rng(i)) for i, row in enumerate(train[::20])]
    text = json.dumps([train, held, said, vocabulary()], sort_keys=True)
    return {"train": len(train), "heldout": len(held), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def weights(assets: Path, folders: Sequence[str] = FOLDERS) -> dict[str, str]:
    """Digest of every weight file in these folders."""
    files = sorted(path for folder in folders for path in (assets / folder).rglob("*.safetensors"))
    return {path.relative_to(assets).as_posix(): sha256(path) for path in files}


def _log(out: Path, stage: str) -> tuple[list[float], float, list[dict[str, object]]]:
    """(losses, minutes, what `watch` said) of a stage."""
    lines = [json.loads(line) for line in (out / f"{stage}.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    watched = [{"step": line["step"], **line["watch"]} for line in lines if "watch" in line]
    return [line["loss"] for line in steps], round(steps[-1]["seconds"] / 60, 1), watched


def _means(losses: list[float], width: int) -> list[float]:
    return [round(float(np.mean(losses[i : i + width])), 5) for i in range(0, len(losses), width)]


def stage(out: Path, name: str, batch: int, rate: float) -> dict[str, object]:
    """What the record says of a stage, from its log in `out`."""
    losses, minutes, watched = _log(out, name)
    width = max(len(losses) // 50, 1)
    return {
        "steps": len(losses),
        "batch": batch,
        "rate": rate,
        "minutes": minutes,
        "losses": {"mean_of": width, "values": _means(losses, width)},
        "watched": watched,
    }


def ceiling(n: int = 3000, seed: int = 5) -> dict[str, float]:
    """Strict accuracy of the training pictures against their own imperfect captions, by the caption's task."""
    rows = autoencoder.balanced(captions("train"), n, seed)
    images, _ = draw(rows, seed)
    said = [mislabel(row, np.random.default_rng((seed, i))) for i, row in enumerate(rows)]
    right = verify.score(images, said)
    tags = np.array([row["tag"] for row in said])
    return {tag: round(float(right[tags == tag].mean()), 4) for tag in TAGS}


def _instruments(out: Path, seed: int) -> dict[str, object]:
    """How well the instruments read renderings of held-out captions, by task; `reconstructed` went through the autoencoder."""
    from flowrl.shapes.pretrain import load_autoencoder

    images, rows = draw(captions("heldout") * 3, seed + 77)
    again = autoencoder.reconstruct(load_autoencoder(out), images)
    tags = np.array([row["tag"] for row in rows])
    columns = {
        "verifier": verify.score(images, rows),
        "verifier, reconstructed": verify.score(again, rows),
        "judge": judge(images, rows),
        "judge, reconstructed": judge(again, rows),
    }
    return {name: {tag: round(float(v[tags == tag].mean()), 4) for tag in TAGS} for name, v in columns.items()}


def base(assets: Path) -> dict[str, object]:
    """The shipped pipeline under the protocol, and with diffusers' 256 zero tokens on the first picture of every caption."""
    pipe = measure.load(assets / "shapes-sd3")
    rows, seeds = protocol.rows(), protocol.seeds()
    scores = measure.strict(pipe, rows, seeds)
    long = measure.strict(pipe, rows, seeds[:, :1], tokens=256)
    result = evaluate.summarise(scores, [row["tag"] for row in rows])
    found = {"overall": result, **result["tasks"]}
    return {
        "strict": {name: [round(it[k], 4) for k in ("score", "low", "high")] for name, it in found.items()},
        "first_picture": {"16 tokens": round(float(scores[:, :1].mean()), 4), "256 tokens": round(float(long.mean()), 4)},
    }


def write(out: Path, assets: Path, seed: int) -> None:
    """Writes `assets/training.json` from the logs in `out` and the models in `assets`."""
    losses = _log(out, "flow")[0]
    record: dict[str, object] = {
        "seed": seed,
        "world": world(),
        "caption_noise": RATES,
        "ceiling": ceiling(),
        "stages": {
            "autoencoder": stage(out, "autoencoder", autoencoder.BATCH, autoencoder.RATE),
            "text": stage(out, "text", text.BATCH, text.RATE),
            "flow": stage(out, "flow", flow.BATCH, flow.RATE),
            "clip": stage(out, "clip", clip.BATCH, clip.RATE),
            "judge": stage(out, "judge", judge_training.BATCH, judge_training.RATE),
        },
        "flow_first_losses": [round(value, 6) for value in losses[:FIRST]],
        "base": base(assets),
        "instruments": _instruments(out, seed),
        "weights": weights(assets),
        "scripts": scripts(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
    }
    (assets / "training.json").write_text(json.dumps(record, indent=1) + "\n")
