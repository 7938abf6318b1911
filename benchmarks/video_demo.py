"""The video demo beside its controls: the embedded Wan trained by RL on a CPU, the same protocol before and after.

    OMP_NUM_THREADS=1 python benchmarks/video_demo.py [--seeds 0 1 2] [--iterations 40] [--arms rl shuffled]
    python benchmarks/video_demo.py --report

rl        the recipe `shapes_video` as it is
shuffled  the same with rewards shuffled inside each group

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
ARMS = {"rl": "seed", "shuffled": "rewards shuffled inside each group, seed"}
JUDGE, MOTION = "flowrl.shapes_video.judge:reward", "flowrl.shapes_video.reward:motion"


def seconds() -> float:
    """CPU time of this process, which a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


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
    start, rewards = seconds(), None
    if arm == "shuffled":
        settings["rewards"] = ()
        rewards = {f"shuffled {spec.name}": Shuffled(spec.name) for spec in recipe.rewards}
    result = train("shapes_video", settings, rewards=rewards)
    told = json.loads((Path(result.folder) / "result.json").read_text())
    others = {one["name"]: {k: one[k] for k in ("before", "after", "gain")} for one in told["judges"]}
    return {
        "arm": arm,
        "seed": seed,
        "rate": recipe.optim.lr,
        "iterations": told["iterations"],
        "cpu_minutes": round((seconds() - start) / 60, 2),
        "minutes": round(told["minutes"], 2),
        "strict": {**{k: told[k]["score"] for k in ("before", "after", "gain")}, "standard_error": told["gain"]["standard_error"]},
        "tasks": {name: one["score"] for name, one in told["gain"]["tasks"].items()},
        "judge": others[JUDGE],
        "motion": others[MOTION],
        "diversity": told.get("diversity"),
    }


def judged_again(out: Path) -> None:
    """Has the second judge see the runs below `out` anew: the protocol's videos, by plain diffusers with the exported weights."""
    from flowrl import settings
    from flowrl.models import embedded
    from flowrl.shapes_video import measure, protocol, verify
    from flowrl.shapes_video.judge import judge

    rows = [row for row in protocol.rows() for _ in range(protocol.VIDEOS)]

    def seen(weights: Path | None) -> dict[str, float]:
        pipe = measure.load(embedded("shapes_video"))
        if weights is not None:
            pipe.load_lora_weights(str(weights))
        videos = measure.protocol_videos(pipe)
        return {"strict": float(verify.score(videos, rows).mean()), "judge": float(judge(videos, rows).mean())}

    base, lines = seen(None), []
    for line in TOLD.read_text().splitlines():
        row = json.loads(line)
        folder = out / f"{row['arm']}-{row['seed']}"
        done = "stopped" not in row and (folder / "result.json").exists()
        if done and settings.load(folder / "run.yaml").optim.lr == row["rate"]:
            after = seen(folder / "lora")
            row["judge"] = {"before": base["judge"], "after": after["judge"], "gain": after["judge"] - base["judge"]}
            row["diffusers"] = {"before": base["strict"], "after": after["strict"]}
        lines.append(json.dumps(row))
    TOLD.write_text("\n".join(lines) + "\n")


def report() -> None:
    """Writes the page."""
    every = [json.loads(line) for line in TOLD.read_text().splitlines()]
    every.sort(key=lambda row: (list(ARMS).index(row["arm"]), row["rate"], row["seed"]))
    rows = [row for row in every if "stopped" not in row]
    lines = [
        "# RL on the embedded video model",
        "",
        "Written by `benchmarks/video_demo.py`: recipe `shapes_video` (9 frames of 32 x 32), 96 held-out captions, four videos",
        "each, 20 steps, no guidance, the same noise before and after. Strict: the right object in every frame, moving as asked.",
        "Motion: only that it moves as asked. The second judge is a network that shares no code with the reward. CPU minutes",
        "are of one core, evaluations included; the machine was shared, so wall-clock minutes are not told. No second judge:",
        "the run was judged by an earlier one, see assets/README.md.",
        "",
        "| | rate | strict before | strict after | change | standard error | motion | second judge | iterations | CPU minutes |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        strict, motion, judge = row["strict"], row["motion"], row["judge"]
        second = f"{judge['gain']:+.3f}" if judge else ""
        lines.append(
            f"| {ARMS[row['arm']]} {row['seed']} | {row['rate']:g} | {strict['before']:.3f} | {strict['after']:.3f} | "
            f"{strict['gain']:+.3f} | "
            f"{strict['standard_error']:.3f} | {motion['before']:.3f} -> {motion['after']:.3f} | {second} | "
            f"{row['iterations']} | {row['cpu_minutes']:.1f} |"
        )
    tasks = [row for row in rows if row["arm"] == "rl"]
    if tasks:
        lines += [
            "",
            "Change of each task, strict:",
            "",
            "| seed | rate | " + " | ".join(tasks[0]["tasks"]) + " |",
            "|---" * 6 + "|",
        ]
        lines += [
            f"| {row['seed']} | {row['rate']:g} | " + " | ".join(f"{v:+.3f}" for v in row["tasks"].values()) + " |" for row in tasks
        ]
    stopped = [row for row in every if "stopped" in row]
    if stopped:
        lines += [
            "",
            "Stopped by hand, with what a video of each of 48 held-out captions said on the way (iteration: strict, motion):",
            "",
        ]
        for row in stopped:
            told = "; ".join(f"{at}: {strict:.3f}, {motion:.3f}" for at, strict, motion in row["quick"])
            lines.append(f"* {ARMS[row['arm']]} {row['seed']}, rate {row['rate']:g}, at iteration {row['stopped']}. {told}")
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    parser.add_argument("--report", action="store_true", help="write the page from the runs told so far")
    parser.add_argument("--judge-again", action="store_true", help="of the runs below --out")
    args = parser.parse_args()
    if args.judge_again:
        judged_again(args.out)
    for arm in () if args.report or args.judge_again else args.arms:
        for seed in args.seeds:
            line = run(arm, seed, args.iterations, args.out)
            with TOLD.open("a") as told:
                told.write(json.dumps(line) + "\n")
    report()


if __name__ == "__main__":
    main()
