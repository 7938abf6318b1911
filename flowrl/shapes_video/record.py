"""`assets/shapes-video/training.json`: how the shipped video model came about, in numbers that tests compare with the files."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from flowrl import evaluate
from flowrl.shapes.record import sha256, stage, weights
from flowrl.shapes_video import autoencoder, flow, judge_training, measure, protocol, text, verify
from flowrl.shapes_video.judge import judge
from flowrl.shapes_video.mislabel import RATES, mislabel
from flowrl.shapes_video.render import draw
from flowrl.shapes_video.tokenizer import vocabulary
from flowrl.shapes_video.world import TAGS, captions, some

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy")
FOLDERS = ("shapes-video", "shapes-video-judge")


def scripts() -> dict[str, str]:
    """Digest of every module of this folder."""
    return {path.name: sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))}


def world() -> dict[str, object]:
    """The captions of training and measurement: how many, and a digest that no formatting of a script changes."""
    train, held = captions("train"), captions("heldout")
    said = [mislabel(row, np.random.default_rng(i)) for i, row in enumerate(train)]
    text = json.dumps([train, held, said, vocabulary()], sort_keys=True)
    return {"train": len(train), "heldout": len(held), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def ceiling(n: int = 2000, seed: int = 5) -> dict[str, float]:
    """Strict accuracy of training videos against their own imperfect captions, by the caption's task."""
    rows = some(captions("train"), n, seed)
    said = [mislabel(row, np.random.default_rng((seed, i))) for i, row in enumerate(rows)]
    right = verify.score(draw(rows, seed), said)
    tags = np.array([row["tag"] for row in said])
    return {tag: round(float(right[tags == tag].mean()), 4) for tag in TAGS}


def _instruments(out: Path, seed: int) -> dict[str, float]:
    """How well the instruments read renderings of held-out captions; `decoded` ones are decoded from their latents, `encoded` ones
    from what the encoder says."""
    from flowrl.shapes_video.pretrain import load_autoencoder

    rows = captions("heldout") * 2
    drawn = draw(rows, seed + 77)
    model = load_autoencoder(out)
    again = autoencoder.decode(model, autoencoder.prescribed(drawn))
    whole = autoencoder.reconstruct(model, drawn)
    columns = {
        "verifier": verify.score(drawn, rows),
        "verifier, decoded": verify.score(again, rows),
        "verifier, encoded": verify.score(whole, rows),
        "judge": judge(drawn, rows),
        "judge, decoded": judge(again, rows),
    }
    return {name: round(float(value.mean()), 4) for name, value in columns.items()}


def base(assets: Path) -> dict[str, object]:
    """The shipped pipeline under the protocol; on the first video of every caption also with 512 tokens."""
    pipe = measure.load(assets / "shapes-video")
    rows = protocol.rows()
    many = [row for row in rows for _ in range(protocol.VIDEOS)]
    videos = measure.protocol_videos(pipe)
    scores = verify.score(videos, many).reshape(len(rows), -1)
    result = evaluate.summarise(scores, [row["tag"] for row in rows])
    long = verify.score(measure.protocol_videos(pipe, 1, flow.LONG_LENGTH), rows)
    found = {"overall": result, **result["tasks"]}
    return {
        "strict": {name: [round(it[k], 4) for k in ("score", "low", "high")] for name, it in found.items()},
        "moves": round(float(verify.moves(videos, many).mean()), 4),
        "soft": round(float(verify.score(videos, many, "soft").mean()), 4),
        "judge": round(float(judge(videos, many).mean()), 4),
        "first_video": {"16 tokens": round(float(scores[:, 0].mean()), 4), "512 tokens": round(float(long.mean()), 4)},
    }


def write(out: Path, assets: Path, seed: int) -> None:
    """Writes `assets/shapes-video/training.json` from the logs in `out` and the models in `assets`."""
    losses = [json.loads(line) for line in (out / "flow.jsonl").read_text().splitlines()]
    record: dict[str, object] = {
        "seed": seed,
        "world": world(),
        "caption_noise": RATES,
        "ceiling": ceiling(),
        "stages": {
            "autoencoder": stage(out, "autoencoder", autoencoder.BATCH, autoencoder.RATE),
            "text": stage(out, "text", text.BATCH, text.RATE),
            "flow": stage(out, "flow", flow.BATCH, flow.RATE),
            "judge": stage(out, "judge", judge_training.BATCH, judge_training.RATE),
        },
        "flow_first_losses": [round(line["loss"], 6) for line in losses if "loss" in line][:50],
        "base": base(assets),
        "instruments": _instruments(out, seed),
        "weights": weights(assets, FOLDERS),
        "scripts": scripts(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
    }
    (assets / "shapes-video" / "training.json").write_text(json.dumps(record, indent=1) + "\n")
