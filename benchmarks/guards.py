"""Guards against reward hacking, shown on a reward that is easy to hack: small JPEG files, on the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/guards.py [--iterations 60]
    python benchmarks/guards.py --report

Two runs of the same seed: one whose guards are off, one whose guards stop it. The judge is the verifier of the shapes world, which
neither run trains for. Writes runs below --out, benchmarks/GUARDS.md and assets/figures/guards.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURE = ROOT / "benchmarks" / "GUARDS.md", ROOT / "assets" / "figures" / "guards.png"
ARMS = {"off": "guards off", "stop": "guards stop the run"}
JUDGE, REWARD = "shapes:strict", "jpeg_compressibility"


def recipe(folder: Path, act: str, iterations: int) -> Any:
    from flowrl import settings
    from flowrl.recipes import named

    return settings.resolve(
        named("shapes"),
        {
            "rewards": ({"name": REWARD},), "evaluate.rewards": (JUDGE,), "evaluate.every": 4, "evaluate.quick": 48,
            "evaluate.prompts": 120, "evaluate.images": 2, "evaluate.features": None,
            "run.iterations": iterations, "run.minutes": None,
            "run.folder": str(folder / act), "run.save_every": iterations, "guard.act": act, "guard.change": None,
        },
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def series(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """After how many iterations, and what."""
    told = [(row["iteration"] + 1, row[name]) for row in rows(folder) if name in row]
    return [x for x, _ in told], [y for _, y in told]


def figure(out: Path) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    fig = plt.figure(figsize=(10, 6.4), constrained_layout=True)
    top, below = fig.subfigures(2, 1, height_ratios=(1.1, 1))
    left, right = top.subplots(1, 2)
    stopped = json.loads((out / "stop" / "result.json").read_text()).get("stopped")
    for axis, name, title in (
        (left, f"heldout/{REWARD}", "trained: minus kB of the JPEG file"),
        (right, "heldout/score", "judge: right pictures"),
    ):
        axis.plot(*series(out / "off", name), color="#b4472f", marker="o", markersize=3, label=ARMS["off"])
        axis.plot(*series(out / "stop", name), color="#0e766e", marker="o", markersize=3, label=ARMS["stop"])
        if stopped:
            axis.axvline(stopped["kept"], color="#0e766e", linestyle=":", label="the checkpoint it keeps")
        axis.set(title=title, xlabel="iterations")
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    grid = below.subplots(3, 8)
    names = ("before", *ARMS.values())
    files = [sorted((out / "off" / "samples" / "before").glob("*_0.png"))[:8]]
    files += [sorted((out / act / "samples" / "after").glob("*_0.png"))[:8] for act in ARMS]
    for line, name, paths in zip(grid, names, files, strict=True):
        for axis, path in zip(line, paths, strict=True):
            axis.imshow(Image.open(path), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name.replace(" stop", "\nstop"), rotation=0, ha="right", va="center")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(FIGURE, dpi=110)


def report(out: Path) -> None:
    results = {act: json.loads((out / act / "result.json").read_text()) for act in ARMS}
    stopped = results["stop"].get("stopped")
    lines = [
        "# Guards against reward hacking",
        "",
        f"Written by `benchmarks/guards.py`. The embedded model is trained for `{REWARD}` alone, which wants flat pictures.",
        f"Nobody trains for the judge, `{JUDGE}`. Both runs have the same seed.",
        "",
        "| | iterations trained | ends with | judge before | judge after | minus kB before | minus kB after |",
        "|---|---|---|---|---|---|---|",
    ]
    for act, said in ARMS.items():
        result, reward = results[act], results[act]["judges"][0]
        lines.append(
            f"| {said} | {len(rows(out / act))} | iteration {result['iterations']} | {result['before']['score']:.3f} | "
            f"{result['after']['score']:.3f} | {reward['before']:.3f} | {reward['after']:.3f} |"
        )
    if stopped:
        lines += ["", f"What stopped the second at iteration {stopped['at']}: " + "; ".join(stopped["why"]) + "."]
    else:
        lines += ["", "The guards saw nothing and stopped nothing."]
    lines += ["", "![Reward and judge, with guards off and on](../assets/figures/guards.png)", ""]
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    figure(out)
    print(f"wrote {PAGE.name} and {FIGURE.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/guards"))
    parser.add_argument("--report", action="store_true", help="only write page and picture of runs that are there")
    given = parser.parse_args()
    if not given.report:
        from flowrl import train

        for act in ARMS:
            if not (given.out / act / "result.json").exists():
                begun = (given.out / act / "run.yaml").exists()
                train(recipe(given.out, act, given.iterations), resume=given.out / act if begun else None)
    report(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
