"""The video demo beside its controls: the embedded Wan trained by RL on a CPU, the same protocol before and after.

    OMP_NUM_THREADS=1 python benchmarks/video_demo.py [--seeds 0 1 2] [--iterations 40] [--arms rl shuffled pretraining]
    python benchmarks/video_demo.py --report

rl           the recipe `shapes_video` as it is
shuffled     the same with rewards shuffled inside each group
pretraining  the base's own pretraining continued instead (imperfect captions, its objective, all weights), for MINUTES of one core

Adds a line a run to benchmarks/video.jsonl and writes benchmarks/VIDEO.md from them.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, TOLD = ROOT / "benchmarks" / "VIDEO.md", ROOT / "benchmarks" / "video.jsonl"
ARMS = {"rl": "RL", "shuffled": "rewards shuffled inside each group", "pretraining": "pretraining continued instead"}
JUDGE, MOTION = "flowrl.shapes_video.judge:reward", "flowrl.shapes_video.reward:motion"
MINUTES, RATE = 7.0, 3e-4  # of pretraining that goes on, at a constant rate: a seventh of the training's greatest


def seconds() -> float:
    """CPU time of this process, which a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def continued(folder: Path, seed: int) -> tuple[Path, int]:
    """The embedded model after MINUTES more of its own pretraining, and the steps that were taken: same kind of data (new draws),
    loss and moving average."""
    import torch
    from demo_controls import gone_on
    from torch import nn

    from flowrl.models import embedded
    from flowrl.shapes_video import flow, measure

    pipe = measure.load(embedded("shapes_video"))
    nets = nn.ModuleDict({"transformer": pipe.transformer.train()}).requires_grad_(True)
    averages = flow.averaged(nets)
    data = flow.pool(pipe.text_encoder, seed + 1)
    optimizer = torch.optim.AdamW(nets.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def loss(step: int) -> torch.Tensor:
        return flow.velocity_loss(nets["transformer"], flow.batch(data, step, seed + 1))

    steps = gone_on(nets, averages, optimizer, loss, 60 * MINUTES, seconds, flow.DECAY)
    pipe.transformer.load_state_dict(averages["transformer"].state_dict())
    pipe.save_pretrained(folder)
    return folder, steps


def run(arm: str, seed: int, iterations: int, out: Path) -> dict[str, Any]:
    """One run, and its line."""
    from demo_controls import Shuffled

    from flowrl.recipes import named
    from flowrl.recipes.run import train

    recipe = named("shapes_video")
    settings: dict[str, Any] = {
        "run.seed": seed,
        "run.folder": str(out / f"{arm}-{seed}"),
        "run.iterations": iterations,
        "run.minutes": None,
    }
    start, rewards, steps = seconds(), None, 0
    if arm == "shuffled":
        settings["rewards"] = ()
        rewards = {f"shuffled {spec.name}": Shuffled(spec.name) for spec in recipe.rewards}
    if arm == "pretraining":
        folder, steps = continued(out / f"continued-{seed}", seed)
        settings |= {"policy.model": str(folder), "run.iterations": 0}
    result = train("shapes_video", settings, rewards=rewards)
    told = json.loads((Path(result.folder) / "result.json").read_text())
    others = {one["name"]: {k: one[k] for k in ("before", "after", "gain")} for one in told["judges"]}
    return {
        "arm": arm,
        "seed": seed,
        "iterations": told["iterations"],
        "steps": steps,
        "cpu_minutes": round((seconds() - start) / 60, 2),
        "minutes": round(told["minutes"], 2),
        "strict": {**{k: told[k]["score"] for k in ("before", "after", "gain")}, "standard_error": told["gain"]["standard_error"]},
        "tasks": {name: one["score"] for name, one in told["gain"]["tasks"].items()},
        "judge": others[JUDGE],
        "motion": others[MOTION],
        "diversity": told.get("diversity"),
    }


def _cells(row: dict[str, Any], base: dict[str, Any]) -> str:
    """A row of the table. What pretraining starts from is what RL starts from; its own run saw only what it ended with."""
    parts = {name: (base[name]["before"], row[name]["after"]) for name in ("strict", "motion", "judge")}
    error = f"{row['strict']['standard_error']:.3f}" if row["iterations"] else ""
    work = f"{row['iterations']} iterations" if row["iterations"] else f"{row['steps']} steps"
    (strict, after), moved = parts["strict"], [f"{a:.3f} -> {b:.3f}" for a, b in (parts["motion"], parts["judge"])]
    cells = [
        f"{ARMS[row['arm']]}, seed {row['seed']}",
        f"{strict:.3f} -> {after:.3f}",
        f"{after - strict:+.3f}",
        error,
        *moved,
        f"{base['diversity']['before']:.0f} -> {row['diversity']['after']:.0f}",
        work,
    ]
    return f"| {' | '.join(cells)} | {row['cpu_minutes']:.1f} |"


def report() -> None:
    """Writes the page."""
    rows = [json.loads(line) for line in TOLD.read_text().splitlines()]
    if not any(row["arm"] == "rl" for row in rows):
        raise SystemExit("no run of the arm rl is told yet, which the others are compared with")
    rows.sort(key=lambda row: (list(ARMS).index(row["arm"]), row["seed"]))
    tasks = [row for row in rows if row["arm"] == "rl"]
    lines = [
        "# RL on the embedded video model",
        "",
        "Written by `benchmarks/video_demo.py`: recipe `shapes_video` (9 frames of 32 x 32), 96 held-out captions, four videos",
        "each, 20 steps, no guidance, the same noise before and after. Strict: the right object in every frame, moving as asked.",
        "Motion: only that it moves as asked. The second judge is a network that shares no code with the reward. CPU minutes",
        "are of one core, evaluations included. Diversity: mean distance of a prompt's videos in the second judge's features; that",
        "of the base is also that of its mistakes.",
        "",
        "| | strict | change | standard error | motion | second judge | diversity | work | CPU minutes |",
        "|---" * 9 + "|",
        *(_cells(row, tasks[0]) for row in rows),
        "",
        "Change of each task, strict:",
        "",
        "| seed | " + " | ".join(tasks[0]["tasks"]) + " |",
        "|---" * 5 + "|",
        *(f"| {row['seed']} | " + " | ".join(f"{v:+.3f}" for v in row["tasks"].values()) + " |" for row in tasks),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    parser.add_argument("--report", action="store_true", help="write the page from the runs told so far")
    args = parser.parse_args()
    for arm in () if args.report else args.arms:
        for seed in args.seeds:
            line = run(arm, seed, args.iterations, args.out)
            with TOLD.open("a") as told:
                told.write(json.dumps(line) + "\n")
    report()


if __name__ == "__main__":
    main()
