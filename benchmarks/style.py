"""Styles at equal time: an adversarial reward, plain LoRA fine-tuning and a Gram reward on the same drawn images.

python benchmarks/style.py             what is missing of the lines in benchmarks/style.jsonl; may be stopped and started again
python benchmarks/style.py --report    STYLE.md and the picture from the finished lines, no training

Time is the process's own (OMP_NUM_THREADS=1), so a busy machine changes little. Each arm's learning rate is the best of a few after
a short run with a seed of its own. Style is told by a judge of another architecture, which learnt from other renderings;
alignment by the shapes verifier on held-out captions; copying by the distance to the nearest image trained on, beside that of new
images of the style.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from style_arms import ARMS, Arm, shown
from style_world import STEPS, judge, widened

from flowrl import data
from flowrl.dist import World
from flowrl.folder import plain
from flowrl.heldout import judge as draw
from flowrl.models import DiffusersPolicy, load_policy
from flowrl.recipes import shapes
from flowrl.rewards import make
from flowrl.rewards.adversarial import references
from flowrl.shapes import protocol, styles
from flowrl.shapes.autoencoder import to_tensor
from flowrl.shapes.world import captions
from flowrl.sizes import Sizes

COUNT = 24  # images of the style
PICTURES = 8  # kept of each arm
SEARCHED = 100  # seed of runs that only choose a rate


@dataclass(frozen=True)
class Options:
    """seconds, search: of processor time, of a run and of a run that only chooses a rate."""

    arms: Sequence[str] = tuple(ARMS)
    seconds: float = 240.0
    search: float = 60.0
    rates: Sequence[float] = (1e-3, 3e-3)
    seeds: Sequence[int] = (0,)
    captions: int = 84
    decoder_steps: int = STEPS


def reference_folder(work: Path) -> Path:
    """COUNT images of training captions in the style, with their captions beside them."""
    folder = work / "images"
    if not folder.is_dir():
        rows = captions("train")
        rows = [rows[i * len(rows) // COUNT] for i in range(COUNT)]
        folder.mkdir(parents=True)
        for i, (row, image) in enumerate(zip(rows, styles.draw(rows, 5), strict=True)):
            Image.fromarray(image).save(folder / f"{i:02d}.png")
            (folder / f"{i:02d}.txt").write_text(row["prompt"] + "\n")
    return folder


def nearest(images: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Mean over images of the distance to the nearest other one, RMS of means over 2 x 2 pixels, of 255."""
    a, b = (torch.nn.functional.avg_pool2d(to_tensor(np.stack(some)), 2).flatten(1) * 127.5 for some in (images, others))
    return float(torch.cdist(a, b).amin(1).mean() / a.shape[1] ** 0.5)


def measured(policy: DiffusersPolicy, o: Options, work: Path, name: str) -> dict[str, object]:
    """Style, alignment and copying of pictures of held-out captions; a few are kept as <name>.png, without trigger below."""
    world, sizes, eye = World(), Sizes(32, 96), judge(work)
    held = data.read(protocol.rows(), "prompt")
    held = held.take([i * len(held) // o.captions for i in range(o.captions)])
    given, out, strips = references.folder(work / "images"), dict[str, object](), []
    fresh = styles.draw([dict(m) for m in held.metadata], 6)  # pyright: ignore[reportArgumentType]
    for trigger in (True, False):
        judges = {"strict": make("shapes:strict"), "soft": make("shapes:soft")}
        told = draw(policy, shown(held, trigger), judges, 1, 20, sizes, world, guidance=1.0, show=range(len(held)))
        pictures = np.stack([told.pictures[i, 0].numpy() for i in range(len(held))])
        with torch.no_grad():
            looks = eye(to_tensor(pictures))
        end = "" if trigger else "_without"
        out |= {f"style{end}": float(looks.mean()), **{f"{n}{end}": float(s.mean()) for n, s in told.scores.items()}}
        if trigger:
            out |= {"nearest": nearest(pictures, given), "nearest_new": nearest(fresh, given)}
            out["style_se"] = float(looks.std() / len(looks) ** 0.5)
            out["strict_se"] = float(told.scores["strict"].std() / len(looks) ** 0.5)
        strips.append(np.concatenate(list(pictures[:: max(1, len(held) // PICTURES)][:PICTURES]), 1))
    Image.fromarray(np.concatenate(strips)).save(work / f"{name}.png")
    return out


def ran(arm: Arm, o: Options, work: Path) -> dict[str, object]:
    spec = shapes().policy
    policy = load_policy(spec, "cpu", seed=arm.seed)
    widened(policy.pipe.vae, work, o.decoder_steps)
    spent = ARMS[arm.name][0](arm, policy, arm.seconds)
    told = measured(policy, o, work, f"{arm.name}_{arm.rate:g}_{arm.seconds:g}_{arm.seed}")
    return {"steps": spent.steps, "spent": round(spent.seconds, 1), **told, "last": spent.last}


def key(arm: Arm) -> list[object]:
    return [arm.name, arm.rate, arm.seconds, arm.seed]


def lines(out: Path) -> list[dict[str, object]]:
    """The finished ones; one that was not written to its end is left out."""
    found = []
    for text in out.read_text().splitlines() if out.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            print(f"left out, not written to its end: {text[:60]}", file=sys.stderr)
    return found


def jobs(o: Options, done: Sequence[dict[str, object]], images: Path) -> list[Arm]:
    """What is to be run now: searches first, then each arm at its best rate by style, among those with at least half the untrained
    model's alignment."""
    found: list[Arm] = []
    floor = next((float(str(d["soft"])) for d in done if d["key"][0] == "untrained"), 0.0) / 2  # pyright: ignore[reportIndexIssue]
    for name in o.arms:
        if name == "untrained":
            found.append(Arm(name, images, 0.0, 0.0, 0))
            continue
        tried = {rate: [d for d in done if d["key"] == [name, rate, o.search, SEARCHED]] for rate in o.rates}
        if o.search and len(o.rates) > 1:
            found += [Arm(name, images, rate, o.search, SEARCHED) for rate, told in tried.items() if not told]
            if not all(tried.values()):
                continue
        good = {rate: float(str(t[0]["style"])) if float(str(t[0]["soft"])) >= floor else -1.0 for rate, t in tried.items() if t}
        best = max(good, key=good.__getitem__) if good else o.rates[0]
        found += [Arm(name, images, best, o.seconds, seed) for seed in o.seeds]
    have = [d["key"] for d in done]
    return [arm for arm in found if key(arm) not in have]


def work_off(o: Options, out: Path, work: Path) -> None:
    images = reference_folder(work)
    while missing := jobs(o, lines(out), images):
        arm, began = missing[0], time.perf_counter()
        told = ran(arm, o, work)
        line = {"key": key(arm), **told, "wall": round(time.perf_counter() - began, 1)}
        with out.open("a") as file:
            file.write(json.dumps(plain(line)) + "\n")
        print(json.dumps({n: v for n, v in plain(line).items() if n != "last"}), flush=True)


def main() -> None:
    o = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=o.arms, choices=list(ARMS))
    parser.add_argument("--seconds", type=float, default=o.seconds)
    parser.add_argument("--search", type=float, default=o.search)
    parser.add_argument("--rates", nargs="+", type=float, default=o.rates)
    parser.add_argument("--seeds", nargs="+", type=int, default=o.seeds)
    parser.add_argument("--captions", type=int, default=o.captions)
    parser.add_argument("--decoder-steps", type=int, default=o.decoder_steps)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/style.jsonl"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/style"), help="decoder, judge, images and pictures; made where missing"
    )
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    made = Options(**{name: getattr(given, name) for name in asdict(o)})
    torch.set_num_threads(1)
    if given.report:
        from style_report import write

        write(lines(given.out), made, given.work)
    else:
        work_off(made, given.out, given.work)


if __name__ == "__main__":
    main()
