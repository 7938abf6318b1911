"""The curves of training."""

from __future__ import annotations

from flowrl.report import chart
from flowrl.report.chart import Level, Series
from flowrl.report.data import STAGES, Run, score

RATIO = ("clip/fraction", "ratio/first_max_abs")
"""What a method without a ratio logs none of; nothing is missing then."""


LOOKS, SPREADS = ("saturation", "edges", "entropy"), ("diversity", "latent")
TONES = ("accent", "second", "before")


def curves(run: Run) -> tuple[str, list[str]]:
    """The charts, and the metrics that were not logged."""
    charts: list[str] = []
    absent: list[str] = []
    x, mean = run.series("reward/mean")
    if x:
        std = dict(zip(*run.series("reward/std"), strict=True))
        low = [None if a not in std else m - std[a] for a, m in zip(x, mean, strict=True)]
        high = [None if a not in std else m + std[a] for a, m in zip(x, mean, strict=True)]
        best = run.series("reward/best")
        others = [Series("best", *best, tone="second")] if best[0] else []
        charts.append(
            chart.lines("Reward in training", "reward, mean ± std", [Series("mean", x, mean, low, high), *others], wide=True)
        )
    else:
        absent.append("reward/mean")
    charts += _heldout(run, absent)
    singles = (
        ("kl/mean", "Distance from the reference", "KL divergence, nats", ""),
        ("clip/fraction", "Clipped", "share of edges", ""),
        ("grad/norm", "Gradient norm", "before clipping", ""),
        (
            "ratio/first_max_abs",
            "Ratio check",
            "max |Δ log p| before the update",
            "0 is exact: the trainer replays the sampler bit for bit.",
        ),
        ("reward/zero_variance", "Groups without contrast", "share of groups with equal scores", ""),
    )
    for key, title, unit, note in singles:
        x, y = run.series(key)
        if x:
            charts.append(chart.lines(title, unit, [Series(key, x, y)], floor=0.0, note=note))
        elif key not in RATIO or any(run.series(other)[0] for other in RATIO):
            absent.append(key)
    charts += _seen(run)
    if any((lost := run.series("reward/invalid"))[1]):
        charts.append(
            chart.lines(
                "Could not be scored",
                "share of images",
                [Series("reward/invalid", *lost, tone="second")],
                floor=0.0,
                note="These images take no part in training; see the log for the reward's reason.",
            )
        )
    seconds = [(name, dict(zip(*run.series(f"seconds/{name}"), strict=True))) for name in STAGES]
    seconds = [(name, found) for name, found in seconds if found]
    if seconds:
        x = sorted({a for _, found in seconds for a in found})
        charts.append(
            chart.stack("Time by stage", "seconds", x, [(name, [found.get(a, 0.0) for a in x]) for name, found in seconds])
        )
    else:
        absent.append("seconds/*")
    return f'<div class="charts">{"".join(charts)}</div>' if charts else "", absent


def _seen(run: Run) -> list[str]:
    """What the guards watch: every judge, and how pictures look."""
    names = list(dict.fromkeys(key for row in run.rows for key in row))
    judges = [n for n in names if n.startswith("heldout/") and n not in ("heldout/score", "heldout/low", "heldout/high")]
    charts = [
        chart.lines(
            f"Judged by {name.removeprefix('heldout/')}",
            "mean of the quick evaluation",
            [Series(name, *run.series(name), dots=True)],
        )
        for name in judges
    ]
    seen = [(name.removeprefix("look/"), *run.series(name)) for name in names if name.startswith("look/")]
    shares = [(name, x, [v / y[0] for v in y]) for name, x, y in seen if y and y[0]]
    for title, those in (("How held-out pictures look", LOOKS), ("How training spreads", SPREADS)):
        drawn = [Series(name, x, y, tone=TONES[those.index(name)]) for name, x, y in shares if name in those]
        if drawn:
            note = "A reward that is hacked often shows here first."
            charts.append(chart.lines(title, "share of the first value", drawn, floor=0.0, note=note))
    if any((told := run.series("guard/suspects"))[1]):
        signs = Series("signs", *told, tone="second")
        charts.append(chart.lines("Guards", "signs of reward hacking", [signs], floor=0.0, note="What they were is in the log."))
    return charts


def _heldout(run: Run, absent: list[str]) -> list[str]:
    x, y = run.series("heldout/score")
    if not x:
        # a run that ended before its first quick evaluation was due lacks nothing
        if run.result.get("before") is None or run.result.get("after") is None:
            absent.append("heldout/score")
        return []
    low, high = (dict(zip(*run.series(f"heldout/{k}"), strict=True)) for k in ("low", "high"))
    series = Series("held-out", x, y, [low.get(a) for a in x], [high.get(a) for a in x], dots=len(x) <= 40)
    levels = [
        Level(name, v, t)
        for name, t in (("before", "before"), ("after", "accent"))
        if (v := score(run.result.get(name))[0]) is not None
    ]
    note = "Points: the quick evaluation during training. Dashed: all held-out prompts." if levels else ""
    return [chart.lines("Held-out score", "score, 95 % interval", [series], levels, wide=True, note=note)]
