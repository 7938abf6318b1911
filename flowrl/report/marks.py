"""Figures in words and marks: how a score, a difference and an interval are written and drawn."""

from __future__ import annotations

from html import escape

from flowrl.report import chart
from flowrl.report.chart import number, ticks

Interval = tuple[float | None, float | None, float | None]  # score, low, high


def tone(difference: float | None) -> str:
    return "same" if not difference else "up" if difference > 0 else "down"


def shown(value: float | None) -> str:
    return "–" if value is None else number(value).replace("-", "−")


def signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value > 0 else "−" if value < 0 else "±") + number(abs(value))


def counted(count: object, thing: str) -> str:
    """The thing in the plural, but for one of it: "prompts"."""
    return thing if count == 1 else f"{thing}s"


def moved(before: float | None, after: float | None, difference: float | None) -> tuple[str, str]:
    """A difference as it is written, and its tone. Less than half a thousandth between figures that look the same is none."""
    if difference is not None and abs(difference) < 5e-4 and shown(before) == shown(after):
        return "+0.000", "same"
    return signed(difference), tone(difference)


def span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def scale(intervals: list[Interval]) -> tuple[float, float]:
    values = [v for interval in intervals for v in interval if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    # Scores that are shares are shown on the whole of [0, 1].
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    air = 0.08 * ((high - low) or abs(high) or 1.0)
    return low - air, high + air


def dumbbell(before: Interval, after: Interval, ends: tuple[float, float], marked: bool = False) -> str:
    """Both scores with their intervals on one axis."""
    low, high = ends

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    parts: list[str] = []
    for name, (value, start, stop) in (("before", before), ("after", after)):
        if start is not None and stop is not None:
            parts.append(f'<i class="bar {name}" style="left:{at(start):.2f}%;width:{max(at(stop) - at(start), 0.4):.2f}%"></i>')
        if value is not None:
            parts.append(f'<i class="dot {name}" style="left:{at(value):.2f}%"></i>')
    marks = ticks(low, high, 6) if marked else []
    for i, value in enumerate(marks):
        edge = " last" if at(value) > 97 else " first" if at(value) < 3 else ""
        parts.append(f'<span class="tick{edge}" style="left:{at(value):.2f}%">{escape(chart.labels(marks)[i])}</span>')
    alt = f"before {shown(before[0])} ({span(*before[1:])}), after {shown(after[0])} ({span(*after[1:])})"
    return f'<div class="range" role="img" aria-label="{escape(alt)}"><b class="axis"></b>{"".join(parts)}</div>'


def independent(before: Interval, after: Interval) -> Interval:
    (b, b0, b1), (a, a0, a1) = before, after
    if b is None or a is None:
        return None, None, None
    if b0 is None or b1 is None or a0 is None or a1 is None:
        return a - b, None, None
    # Distances of the ends add in squares, each side with the ends that move it.
    return a - b, a - b - ((a - a0) ** 2 + (b1 - b) ** 2) ** 0.5, a - b + ((a1 - a) ** 2 + (b - b0) ** 2) ** 0.5


def cells(before: Interval, after: Interval, difference: Interval) -> str:
    """Three cells of a table, each a score over its interval."""
    text, kind = moved(before[0], after[0], difference[0])
    told = f'<td class="{kind}">{text}<small>{span(*difference[1:])}</small></td>'
    return "".join(f"<td>{shown(v[0])}<small>{span(*v[1:])}</small></td>" for v in (before, after)) + told


def section(title: str, sub: str, body: str) -> str:
    """A heading, a sentence (both HTML) and what they introduce; nothing without a body."""
    return f'<section><h2>{title}</h2><p class="sub">{sub}</p>{body}</section>' if body else ""
