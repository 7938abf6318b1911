"""The result: headline, tasks, and the measures that were not trained on. Empty where the run has nothing to show."""

from __future__ import annotations

from html import escape

from flowrl.report.chart import number
from flowrl.report.data import Run, score, table
from flowrl.report.data import number as known
from flowrl.report.marks import Interval, dumbbell, independent, scale, shown, signed, span, tone


def ends_of(run: Run) -> tuple[Interval, Interval, bool]:
    """Held-out score before and after; from the metrics (last flag False) where there is no result."""
    if run.result.get("before") is not None and run.result.get("after") is not None:
        return score(run.result["before"]), score(run.result["after"]), True
    points = [r for r in run.rows if known(r.get("heldout/score")) is not None]
    found = [score({k: r.get(f"heldout/{k}") for k in ("score", "low", "high")}) for r in points]
    before = score(run.result.get("before")) if run.result.get("before") is not None else found[0] if found else (None, None, None)
    return before, found[-1] if found else (None, None, None), False


def hero(run: Run) -> str:
    before, after, final = ends_of(run)
    if before[0] is None or after[0] is None:
        return ""
    gain = score(run.result.get("gain"))
    value = gain[0] if gain[0] is not None else after[0] - before[0]
    paired = f'<span class="ci">{span(*gain[1:])}, paired</span>' if span(*gain[1:]) else ""
    cells = "".join(
        f'<div class="{kind}"><small>{name}</small><span class="big">{shown(v[0])}</span><span class="ci">{span(*v[1:]) or "&nbsp;"}</span></div>'
        + ('<div class="arrow" aria-hidden="true">→</div>' if kind == "was" else "")
        for kind, name, v in (("was", "held-out, before" if final else "held-out, first", before), ("after", "after" if final else "latest", after)))
    return (f'<section class="hero" aria-label="Result">{cells}<div class="gain"><small>difference</small>'
            f'<span class="big {tone(value)}">{signed(value)}</span>{paired}</div>{dumbbell(before, after, scale([before, after]), True)}</section>')


def verdict(run: Run) -> str:
    """One sentence on what the held-out set says."""
    before, after, final = ends_of(run)
    value, low, high = score(run.result.get("gain"))
    if not final or value is None or low is None or high is None:
        return "" if before[0] is None else "Held-out scores so far; the run has no final evaluation yet."
    if low <= 0 <= high:
        return f"The held-out score changed by {signed(value)}, which this many prompts cannot tell from chance ({span(low, high)})."
    return f"The held-out score {'rose' if value > 0 else 'fell'} by {number(abs(value))}; 95 % interval {span(low, high)}, paired over prompts."


def tasks(run: Run) -> str:
    before, after = table(run.result.get("before")), table(run.result.get("after"))
    first, second = table(before.get("tasks")), table(after.get("tasks"))
    gains = table(table(run.result.get("gain")).get("tasks"))
    names = [n for n in first if n in second]
    if not names:
        return ""
    rows = [(n.replace("_", " "), score(first[n]), score(second[n]), score(gains[n]) if n in gains else None, table(second[n]).get("n")) for n in names]
    rows.append(("all", score(before), score(after), score(run.result.get("gain")) if run.result.get("gain") else None, after.get("n")))
    note = "" if gains else " Differences of tasks have intervals as if before and after were independent, which is wider than paired."
    ends = scale([i for r in rows for i in r[1:3]])
    body = "".join(_task(*row, ends, row is rows[-1]) for row in rows)
    return (f'<h2>By task</h2><p class="sub">Held-out score with 95 % intervals over prompts.{note}</p><div class="card"><table><tr><th>task</th>'
            f'<th>before</th><th>after</th><th>difference</th><th class="spark"><span>{ends[0]:.3g}</span>{ends[1]:.3g}</th></tr>{body}</table></div>')


def _task(name: str, before: Interval, after: Interval, gain: Interval | None, n: object, ends: tuple[float, float], total: bool) -> str:
    value, low, high = gain or independent(before, after)
    count = f"<small>{n} prompts</small>" if isinstance(n, int) else ""
    return (f'<tr{" class=total" if total else ""}><td>{escape(name)}{count}</td><td>{shown(before[0])}<small>{span(*before[1:])}</small></td>'
            f'<td>{shown(after[0])}<small>{span(*after[1:])}</small></td><td class="{tone(value)}">{signed(value)}<small>{span(low, high)}</small></td>'
            f'<td class="spark">{dumbbell(before, after, ends)}</td></tr>')


def others(run: Run) -> str:
    names = {"judge": "second judge", "diversity": "diversity"}
    rows: list[str] = []
    for key, title in names.items():
        said = table(run.result.get(key))
        before, after = score(said.get("before")), score(said.get("after"))
        if before[0] is None and after[0] is None:
            continue
        label = f"{title} ({said['name']})" if said.get("name") else title
        value, low, high = score(said["gain"]) if said.get("gain") is not None else independent(before, after)
        rows.append(f'<tr><td>{escape(label)}</td><td>{shown(before[0])}<small>{span(*before[1:])}</small></td><td>{shown(after[0])}'
                    f'<small>{span(*after[1:])}</small></td><td class="{tone(value)}">{signed(value)}<small>{span(low, high)}</small></td></tr>')
    if not rows:
        return ""
    return ('<h2>What was not trained on</h2><p class="sub">A reward can be won by means nobody wanted. A second judge and the spread of images '
            'of one prompt tell.</p><div class="card"><table><tr><th>measure</th><th>before</th><th>after</th><th>difference</th></tr>'
            f'{"".join(rows)}</table></div>')
