"""What the shootout's lines say: gains with intervals, the claims of the papers, a picture and SHOOTOUT.md. All from the lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from shootout_jobs import MARKS, METHODS, Line, Options, jobs, key

Scores = NDArray[np.float64]
GRID = (0.0, *MARKS, 1.0)
REACH = 0.1  # the gain whose time is told
FIGURE = Path("assets/figures/shootout.png")
INK = "#0f172a"


@dataclass(frozen=True)
class Estimate:
    """A mean gain and its 95 % interval."""

    score: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.score:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Claim:
    """`fast` needs `share` of the time of `slow`, as `source` says."""

    source: str
    fast: str
    slow: str
    share: float


CLAIMS = (
    Claim("MixGRPO (2507.21802): 50 % less time than DanceGRPO", "mix_grpo", "flow_grpo", 0.5),
    Claim("MixGRPO-Flash (2507.21802): 71 % less time than DanceGRPO", "mix_grpo_flash", "flow_grpo", 0.29),
    Claim("BranchGRPO (2509.06040): 55 % less time than DanceGRPO", "branch_grpo", "flow_grpo", 0.45),
    Claim("BranchGRPO-Mix (2509.06040): 4.7 times as fast as DanceGRPO", "branch_grpo", "flow_grpo", 1 / 4.7),
    Claim("Dynamic-TreeRPO (2509.23352): about 50 % less time", "tree_rpo", "flow_grpo", 0.5),
    Claim("DiffusionNFT (2509.16117): up to 25 times as fast as Flow-GRPO", "diffusion_nft", "flow_grpo", 1 / 25),
    Claim("AWM (2509.25050): up to 24 times as fast as Flow-GRPO", "awm", "flow_grpo", 1 / 24),
)


def gain(before: Scores, after: Scores) -> Estimate:
    """Mean of after [seeds, captions] - before [captions], paired by caption, for new seeds and new captions.

    Variance: that of the seeds' means over their number plus that of the captions' means over theirs; what varies with both is
    counted twice, so the interval is rather too wide. Student's t with Satterthwaite's degrees of freedom. One seed: captions only.
    """
    d = after - before
    seeds, captions = d.shape
    parts = [(d.mean(1).var(ddof=1) / seeds, seeds - 1)] if seeds > 1 else []
    parts.append((d.mean(0).var(ddof=1) / captions, captions - 1))
    variance = sum(v for v, _ in parts)
    if not variance:
        return Estimate(float(d.mean()), float(d.mean()), float(d.mean()), seeds)
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Estimate(float(d.mean()), float(d.mean()) - half, float(d.mean()) + half, seeds)


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The first x at which the line through the points is at the level or above; infinity where it never is."""
    for i in range(len(x)):
        if y[i] >= level:
            if i == 0:
                return x[0]
            return x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1])
    return math.inf


def reach(fast: Sequence[Estimate], slow: Estimate, grid: Sequence[float] = GRID) -> tuple[float, float, float]:
    """Share of the time at which `fast` has the end score of `slow`: (earliest, by the means, latest).

    Earliest: from there on their intervals overlap;  latest: from there on fast's is above.
    """
    return (
        crossing(grid, [e.high for e in fast], slow.low),
        crossing(grid, [e.score for e in fast], slow.score),
        crossing(grid, [e.low for e in fast], slow.high),
    )


def verdict(share: float, fast: Sequence[Estimate] | None, slow: Estimate | None) -> tuple[str, str]:
    """(verdict, why). fast: the gains at GRID;  slow: the gain at the end. Overlapping intervals decide nothing."""
    if fast is None or slow is None:
        return "not decided", "not measured"
    if min(slow.seeds, fast[-1].seeds) < 2:
        return "not decided", "one seed says nothing of others"
    if slow.low <= 0:
        return "not decided", f"the slower one's gain is not clear: {slow}"
    first, middle, last = reach(fast, slow)
    why = f"reaches {slow.score:+.3f} at {_share(middle)} of the time (from {_share(first)} to {_share(last)})"
    if last <= share:
        return "reproduced", why
    return ("not reproduced" if first > share else "not decided"), why


def _share(x: float) -> str:
    return f"{100 * x:.0f} %" if math.isfinite(x) else "never"


def above(one: Estimate, other: Estimate) -> bool:
    """Whether a ranking may be stated: two seeds at least each, and no overlap."""
    return min(one.seeds, other.seeds) > 1 and one.low > other.high


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
    wanted = {key(job.__dict__): job for job in jobs(o, lines)}
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
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
