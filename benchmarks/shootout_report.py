"""The shootout's lines as a table, a picture and SHOOTOUT.md."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from shootout_jobs import METHODS, WARMUP, Line, Options, chosen, jobs, key, read, search
from shootout_stats import CLAIMS, GRID, Estimate, Scores, above, crossing, gain, percent, verdict

REACH = 0.1  # the gain whose time is told
FIGURE = Path("assets/figures/shootout.png")
INK = "#0f172a"


@dataclass(frozen=True)
class Result:
    """A method's runs. gains: at GRID;  seconds, rows: means at GRID."""

    name: str
    lr: float
    runs: Sequence[Line]
    gains: Sequence[Estimate]
    rows: Sequence[float]
    control: Estimate | None

    @property
    def end(self) -> Estimate:
        return self.gains[-1]


def results(o: Options, lines: Sequence[Line]) -> tuple[Scores, dict[str, Result]]:
    """The base's accuracy of each caption, and each method that has a run with these options.

    Raises: ValueError where the base has not been evaluated.
    """
    o = replace(o, methods=[name for name in o.methods if name in METHODS])
    wanted = {key(asdict(job)): job for job in jobs(o, lines)}
    mine: dict[tuple[str, str], list[Line]] = {}
    for line in {key(line): line for line in lines if key(line) in wanted}.values():
        mine.setdefault((line["kind"], line["method"]), []).append(line)
    if ("base", "") not in mine:
        raise ValueError(f"no line has the base's score of {o.captions} captions, {o.images} images; run without --report first")
    before = np.array(mine["base", ""][0]["scores"]) / o.images
    out = {}
    for name in o.methods:
        runs, control = sorted(mine.get(("run", name), []), key=lambda line: line["seed"]), mine.get(("control", name))
        if runs:
            curves = [_curve(line, before, o) for line in runs]
            gains = [gain(before, np.array([scores[i] for scores, _ in curves])) for i in range(len(GRID))]
            rows = np.mean([rows for _, rows in curves], 0).tolist()
            still = gain(before, np.array([line["scores"] for line in control]) / o.images) if control else None
            out[name] = Result(name, runs[0]["lr"], runs, gains, rows, still)
    return before, out


def _curve(line: Line, before: Scores, o: Options) -> tuple[Scores, Scores]:
    """(accuracy [GRID, captions], rows [GRID]) of a run, straight between the looks; the last look is the end."""
    at = np.array([0.0, *(p["seconds"] / (60 * o.minutes) for p in line["curve"][:-1]), 1.0])
    seen = np.array([before, *(np.array(p["scores"]) / o.images for p in line["curve"])])
    rows = np.array([0, *(sum(p["rows"]) for p in line["curve"])])
    return np.array([np.interp(GRID, at, column) for column in seen.T]).T, np.interp(GRID, at, rows)


def picture(before: Scores, found: dict[str, Result], o: Options, path: Path) -> None:
    """Held-out accuracy by training seconds and by network rows. Bands: 95 % intervals."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    base, seconds = before.mean(), [60 * o.minutes * share for share in GRID]
    for i, r in enumerate(found.values()):
        color = colormaps["tab10"](list(METHODS).index(r.name) % 10)
        low, middle, high = ([base + getattr(e, name) for e in r.gains] for name in ("low", "score", "high"))
        for axes, x in ((left, seconds), (right, [n / 1000 for n in r.rows])):
            axes.fill_between(x, low, high, color=color, alpha=0.08, lw=0)
            axes.plot(x, middle, color=color, lw=1.8, marker="os^Dv"[i % 5], ms=4, label=r.name if axes is left else None)
    for axes, name in ((left, "seconds of training"), (right, "thousand network rows, sampled and trained")):
        axes.axhline(base, color="#94a3b8", lw=1, ls="--", label="untrained" if axes is left else None)
        axes.set_xlabel(name, fontsize=9, color=INK)
        axes.grid(color="#e2e8f0", lw=0.6)
        axes.tick_params(labelsize=8, colors="#475569")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("held-out accuracy", fontsize=9, color=INK)
    # a band of two seeds that part may span everything: the lines are what the picture is of
    drawn = [float(y) for line in left.get_lines() for y in line.get_ydata()]
    left.set_ylim(max(0.0, min(drawn) - 0.1), min(1.0, max(drawn) + 0.1))
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def table(found: dict[str, Result], o: Options) -> list[str]:
    """A row a method, the largest gain first."""
    lines = [
        "| method | seeds | lr | iterations (s each) | reward, first and last 3 | gain | shuffled "
        f"| thousand rows sampled + trained | seconds to {REACH:+.2f} | clearly above |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(found.values(), key=lambda r: -r.end.score):
        first, last = (np.mean([np.mean(line["rewards"][part]) for line in r.runs]) for part in (slice(3), slice(-3, None)))
        sampled, trained = np.mean([line["rows"] for line in r.runs], 0) / 1000
        at = 60 * o.minutes * crossing(GRID, [e.score for e in r.gains], REACH)
        less = ", ".join(other.name for other in found.values() if above(r.end, other.end))
        each = sum(line["seconds"] for line in r.runs) / sum(line["iterations"] for line in r.runs)
        broken = sum(line["error"] is not None for line in r.runs)
        lines.append(
            f"| {r.name} | {len(r.runs)}{f' ({broken} broke down)' if broken else ''} | {r.lr:g} "
            f"| {np.mean([line['iterations'] for line in r.runs]):.0f} ({each:.1f}) | {first:.2f} to {last:.2f} | {r.end} "
            f"| {r.control or '-'} | {sampled:.0f} + {trained:.0f} | {f'{at:.0f}' if math.isfinite(at) else 'not reached'} "
            f"| {less or '-'} |"
        )
    return lines


def claims(found: dict[str, Result]) -> list[str]:
    lines = ["| published | here | of | share of the time | verdict | why |", "|---|---|---|---|---|---|"]
    for claim in CLAIMS:
        fast, slow = found.get(claim.fast), found.get(claim.slow)
        said, why = verdict(claim.share, fast and fast.gains, slow and slow.end)
        lines.append(f"| {claim.source} | {claim.fast} | {claim.slow} | {percent(claim.share)} | {said} | {why} |")
    return lines


def searches(lines: Sequence[Line], found: dict[str, Result], o: Options) -> list[str]:
    """The score of each candidate rate; a choice at the end of the range is said."""
    done = {key(line): line for line in lines}
    out = ["| method | arguments | group | " + " | ".join(f"{rate:g}" for rate in o.rates) + " | chosen |"]
    out.append("|---|---|---|" + "---|" * (len(o.rates) + 1))
    for name in found:
        cells = [done[key(asdict(job))] for job in search(o, name)]
        scores = " | ".join("broke down" if c["error"] else f"{c['score']:.3f} ({c['iterations']} it)" for c in cells)
        rate, (group, args) = chosen(lines, search(o, name)), METHODS[name]
        edge = ", an end of the range" if rate in (min(o.rates), max(o.rates)) else ""
        given = ", ".join(f"{k} {v}" for k, v in args.items()) or "as published"
        out.append(f"| {name} | {given} | {group} | {scores} | {rate:g}{edge} |")
    return out


def page(before: Scores, lines: Sequence[Line], found: dict[str, Result], o: Options, figure: str) -> str:
    runs = [line for r in found.values() for line in r.runs]
    share = sum(line["cpu_seconds"] for line in runs) / sum(line["seconds"] for line in runs)
    versions = ", ".join(f"{k} {v}" for k, v in runs[0]["versions"].items() if k != "flowrl-toolkit")
    commits = ", ".join(dict.fromkeys(line["commit"] for line in runs))
    setting = f"""# Methods at equal training time

Written by `python benchmarks/shootout.py --report` from `shootout.jsonl`; nothing by hand.

The embedded model and its training rewards, {o.minutes:g} minutes of training a run (rollout, reward and update; looking
does not count), one process of {runs[0]["threads"]} thread, {runs[0]["prompts"]} prompts an iteration, no KL (but DPO's own),
{WARMUP} iterations of warm-up. Clips, noise, windows and updates are the published ones but for the arguments below; a window
that moves every 25 iterations moves as seldom as that.
Held-out accuracy (shapes:strict) of {o.captions} captions, {o.images} images each, 20 steps, the same noise for all;
untrained {before.mean():.3f}. The learning rate is the best of {len(o.rates)} after {o.search_minutes:g} minute(s), with a
seed and captions of their own.

gain: mean over seeds and captions, paired with the untrained model by caption, and its 95 % interval for new seeds and new
captions (variance over seeds + variance over captions, t with Satterthwaite's degrees of freedom; one seed: captions only).
shuffled: the same run, seed {o.seeds[0]}, rewards shuffled inside each group.
clearly above: two seeds at least and intervals that do not overlap; anything else is no ranking.
The process had {100 * share:.0f} % of its core while it trained ({versions}, commit {commits}).
"""
    verdicts = """A claim is about the score that the slower method has at its end. Reproduced: the faster one's interval lies
above that of the slower one's end after the claimed share of the time. Not reproduced: until then it lies below. Not decided:
neither. The papers measured other models, and mostly the time of an iteration; Flow-GRPO stands here for DanceGRPO.
"""
    parts = [setting, *table(found, o), "", f"![held-out accuracy]({figure})", "", "## Claims", "", verdicts, *claims(found), ""]
    return "\n".join([*parts, "## Settings and searches", "", *searches(lines, found, o), ""])


def write(o: Options, path: Path, figure: Path = FIGURE) -> None:
    """Print the table; draw the figure; write SHOOTOUT.md beside the lines."""
    lines = read(path)
    before, found = results(o, lines)
    if not found:
        what = "has no finished run with these options" if path.exists() else "does not exist"
        raise ValueError(f"{path.name} {what}; run without --report first")
    picture(before, found, o, figure)
    path.with_name("SHOOTOUT.md").write_text(page(before, lines, found, o, os.path.relpath(figure, path.parent)))
    print("\n".join([*table(found, o), "", *claims(found)]))
