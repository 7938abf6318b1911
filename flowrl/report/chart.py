"""Small charts as inline SVG with HTML labels: lines scale with the page, text does not. No script; values show on hover.

The drawing fills a box of 1000 x 1000 that is stretched; strokes keep their width (vector-effect).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

POINTS = 160  # hover targets and vertices a chart: more than pixels is waste


@dataclass(frozen=True)
class Series:
    """Points to join. low, high: a band around them. tone: a colour of the style sheet (accent, second, before, t0..t3)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    tone: str = "accent"
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float
    tone: str = "before"


def number(value: float) -> str:
    """A figure as a reader wants it: about three digits."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` round values within [low, high], by steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 25.0):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [k * step for k in range(first, last + 1)]
    return [low, high]


def labels(values: Sequence[float]) -> list[str]:
    """Tick labels with as many decimals as tell them apart."""
    largest = max(map(abs, values), default=0.0)
    if largest and (largest < 1e-3 or largest >= 1e6):
        return [number(v) for v in values]
    step = min((b - a for a, b in pairwise(values)), default=largest) or 1.0
    decimals = next((d for d in range(6) if abs(round(step, d) - step) < 1e-9 + step * 1e-6), 6)
    return [f"{v:,.{decimals}f}" for v in values]


def thin(series: Series) -> Series:
    """At most POINTS points: means over equal runs of neighbours, the band widened to the runs' extremes."""
    run = math.ceil(len(series.x) / POINTS)
    if run <= 1:
        return series
    cuts = [slice(i, i + run) for i in range(0, len(series.x), run)]

    def mean(values: Sequence[float]) -> list[float]:
        return [sum(values[c]) / len(values[c]) for c in cuts]

    def edge(values: Sequence[float | None] | None, pick: int) -> list[float | None] | None:
        known = None if values is None else [sorted(v for v in values[c] if v is not None) for c in cuts]
        return None if known is None else [k[pick] if k else None for k in known]

    return Series(series.name, mean(series.x), mean(series.y), edge(series.low, 0), edge(series.high, -1), series.tone, series.dots)


@dataclass(frozen=True)
class Frame:
    """The ranges of both axes, and where a value lies in the box of 1000."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return 1000 * (value - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        return 1000 - 1000 * (value - self.y0) / (self.y1 - self.y0)


def frame(series: Sequence[Series], levels: Sequence[Level] = (), floor: float | None = None) -> Frame:
    """Ranges that hold everything with a little air. floor: the y axis starts there at the latest."""
    xs = [x for s in series for x in s.x]
    bands = [b for s in series for band in (s.low, s.high) if band for b in band if b is not None]
    ys = [*(y for s in series for y in s.y), *bands, *(level.y for level in levels)]
    low, high = min(ys), max(ys)
    if floor is not None:
        low = min(low, floor)
    if high == low:
        # A flat line sits at the foot if it is zero, in the middle otherwise.
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    air = 0.06 * (high - low)
    low = low if floor is not None and low >= floor else low - air
    x0, x1 = min(xs), max(xs)
    return Frame(x0 if x1 > x0 else x0 - 0.5, x1 if x1 > x0 else x1 + 0.5, low, high + air)


def line_path(f: Frame, x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{f.x(a):.1f},{f.y(b):.1f}" for a, b in zip(x, y, strict=True))


def area_path(f: Frame, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    there = [f"{f.x(a):.1f},{f.y(b):.1f}" for a, b in zip(x, high, strict=True)]
    back = [f"{f.x(a):.1f},{f.y(b):.1f}" for a, b in zip(reversed(x), reversed(low), strict=True)]
    return "M" + "L".join([*there, *back]) + "Z"


def marks(f: Frame, series: Series) -> str:
    """The band, the line and the dots of a series."""
    drawn: list[str] = []
    if series.low is not None and series.high is not None:
        ends = [
            (x, lo, hi) for x, lo, hi in zip(series.x, series.low, series.high, strict=True) if lo is not None and hi is not None
        ]
        if series.dots:
            stems = "".join(f"M{f.x(x):.1f},{f.y(lo):.1f}V{f.y(hi):.1f}" for x, lo, hi in ends)
            drawn.append(f'<path class="whisker {series.tone}" d="{stems}"/>')
        elif ends:
            drawn.append(f'<path class="band {series.tone}" d="{area_path(f, *map(list, zip(*ends, strict=True)))}"/>')
    drawn.append(f'<path class="line {series.tone}" d="{line_path(f, series.x, series.y)}"/>')
    if series.dots or len(series.x) == 1:
        # A stroke of no length with round ends is a dot that stays round when the box is stretched.
        spots = "".join(f"M{f.x(x):.1f},{f.y(y):.1f}h.01" for x, y in zip(series.x, series.y, strict=True))
        drawn.append(f'<path class="dots {series.tone}" d="{spots}"/>')
    return "".join(drawn)


def lines(
    title: str,
    unit: str,
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    *,
    floor: float | None = None,
    wide: bool = False,
    note: str = "",
) -> str:
    """A chart of one or more series over the iterations. unit: what the y axis counts."""
    # Thinned points lie inside the first and last iteration; the axis shows those.
    whole = frame(series)
    series = [thin(s) for s in series]
    f = replace(frame(series, levels, floor), x0=whole.x0, x1=whole.x1)
    drawn = "".join(marks(f, s) for s in reversed(series))
    drawn += "".join(f'<path class="level {v.tone}" d="M0,{f.y(v.y):.1f}H1000"/>' for v in levels)
    told = {x: [_said(s, x) for s in series if x in set(s.x)] for x in sorted({x for s in series for x in s.x})}
    spots = {x: [(s.tone, f.y(y)) for s in series for a, y in zip(s.x, s.y, strict=True) if a == x] for x in told}
    keys = [(s.tone, s.name) for s in series] + [(v.tone + " dash", f"{v.name} {number(v.y)}") for v in levels]
    summary = "; ".join(
        f"{s.name} from {number(s.y[0])} at iteration {s.x[0]:.0f} to {number(s.y[-1])} at iteration {s.x[-1]:.0f}" for s in series
    )
    return figure(title, unit, f, drawn, _hits(f, told, spots), keys, summary, number(series[0].y[-1]), wide=wide, note=note)


def stack(title: str, unit: str, x: Sequence[float], parts: Sequence[tuple[str, Sequence[float]]], *, wide: bool = False) -> str:
    """A chart of parts that add up, the first at the foot."""
    thinned = [thin(Series(name, x, y, tone=f"t{i}")) for i, (name, y) in enumerate(parts)]
    x = thinned[0].x
    tops: list[list[float]] = [[0.0] * len(x)]
    for s in thinned:
        tops.append([a + b for a, b in zip(tops[-1], s.y, strict=True)])
    f = frame([Series("all", x, tops[-1])], floor=0.0)
    drawn = "".join(f'<path class="fill {s.tone}" d="{area_path(f, x, tops[i], tops[i + 1])}"/>' for i, s in enumerate(thinned))
    told = {a: [*(_said(s, a) for s in reversed(thinned)), f"total {number(tops[-1][i])}"] for i, a in enumerate(x)}
    spots = {a: [("ink", f.y(tops[-1][i]))] for i, a in enumerate(x)}
    shares = ", ".join(f"{s.name} {number(sum(s.y) / len(s.y))}" for s in thinned)
    keys = [(s.tone, s.name) for s in thinned]
    return figure(
        title, unit, f, drawn, _hits(f, told, spots), keys, f"mean {unit} an iteration: {shares}", number(tops[-1][-1]), wide=wide
    )


def figure(
    title: str,
    unit: str,
    f: Frame,
    drawn: str,
    hits: str,
    keys: Sequence[tuple[str, str]],
    summary: str,
    now: str,
    *,
    wide: bool = False,
    note: str = "",
) -> str:
    ys, xs = ticks(f.y0, f.y1), [v for v in ticks(f.x0, f.x1, 5) if v == int(v)]
    grid = "".join(f'<path class="grid" d="M0,{f.y(v):.1f}H1000"/>' for v in ys)
    left = "".join(f'<span style="top:{f.y(v) / 10:.2f}%">{escape(t)}</span>' for v, t in zip(ys, labels(ys), strict=True))
    foot = "".join(f'<span style="left:{f.x(v) / 10:.2f}%">{v:.0f}</span>' for v in xs)
    legend = "".join(f'<li><i class="key {tone}"></i>{escape(name)}</li>' for tone, name in keys)
    return (
        f'<figure class="chart{" wide" if wide else ""}"><figcaption><b>{escape(title)}</b><span class="now">{escape(now)}</span>'
        f'</figcaption><div class="unit">{escape(unit)}</div>'
        f'<div class="plot" role="img" aria-label="{escape(title)}: {escape(summary)}">'
        f'<div class="ys" aria-hidden="true">{left}</div>'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f'{grid}{drawn}</svg><div class="hits" aria-hidden="true">{hits}</div></div><div class="xs" aria-hidden="true">{foot}</div>'
        f'<div class="xname">iteration</div><ul class="legend">{legend}</ul>{f"<p>{escape(note)}</p>" if note else ""}</figure>'
    )


def _said(series: Series, x: float) -> str:
    i = list(series.x).index(x)
    low, high = (None if b is None else b[i] for b in (series.low, series.high))
    span = f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
    return f"{series.name} {number(series.y[i])}{span}"


def _hits(f: Frame, told: dict[float, list[str]], spots: dict[float, list[tuple[str, float]]]) -> str:
    """One invisible column a point, half way to its neighbours, that shows a guide, dots and the values."""
    places = [f.x(x) / 10 for x in told]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), 100.0]
    out: list[str] = []
    for i, (x, said) in enumerate(told.items()):
        width = max(edges[i + 1] - edges[i], 0.01)
        at = 100 * (places[i] - edges[i]) / width
        dots = "".join(f'<i class="{tone}" style="left:{at:.1f}%;top:{y / 10:.2f}%"></i>' for tone, y in spots[x])
        text = "".join(f"<span>{escape(s)}</span>" for s in said)
        side = " r" if places[i] > 50 else ""
        out.append(
            f'<div style="left:{edges[i]:.2f}%;width:{width:.2f}%"><u style="left:{at:.1f}%"></u>{dots}'
            f'<p class="tip{side}" style="--at:{at:.1f}%"><b>iteration {x:.0f}</b>{text}</p></div>'
        )
    return "".join(out)
