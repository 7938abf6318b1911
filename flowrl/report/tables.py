"""The result: headline, tasks, and the measures that were not trained on. Empty where the run has nothing to show."""

from __future__ import annotations

from html import escape

from flowrl.report.chart import number
from flowrl.report.data import Run, score, table
from flowrl.report.data import number as known
from flowrl.report.marks import Interval, cells, counted, dumbbell, independent, moved, scale, section, shown, signed, span


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
    if gain[0] is None:
        gain = (after[0] - before[0], None, None)
    text, kind = moved(before[0], after[0], gain[0])
    paired = f"{span(*gain[1:])}, paired" if span(*gain[1:]) else ""
    first, second = ("held-out, before", "after") if final else ("held-out, first", "latest")
    return (
        f'<section class="hero" aria-label="Result">{_figure("was", first, shown(before[0]), span(*before[1:]))}'
        f'<div class="arrow" aria-hidden="true">→</div>{_figure("after", second, shown(after[0]), span(*after[1:]))}'
        f"{_figure(f'gain {kind}', 'difference', text, paired)}"
        f"{dumbbell(before, after, scale([before, after]), True)}</section>"
    )


def _figure(kind: str, name: str, value: str, interval: str) -> str:
    return (
        f'<div class="{kind}"><small>{name}</small><b class="big">{value}</b><span class="ci">{interval or "&nbsp;"}</span></div>'
    )


def verdict(run: Run) -> str:
    """One sentence on what the held-out set says."""
    before, after, final = ends_of(run)
    value, low, high = score(run.result.get("gain"))
    if not final:
        return "" if before[0] is None else "Held-out scores so far; the run has no final evaluation yet."
    if value is None:
        return ""
    if low is None or high is None:
        text, kind = moved(before[0], after[0], value)
        said = "did not change" if kind == "same" else f"changed by {text}"
        why = "one prompt has no interval" if table(run.result["after"]).get("n") == 1 else "no interval is known"
        return f"The held-out score {said}; {why}."
    interval = span(low, high)
    if low <= 0 <= high:
        return f"The held-out score changed by {signed(value)}, which this many prompts cannot tell from chance ({interval})."
    way = "rose" if value > 0 else "fell"
    return f"The held-out score {way} by {number(abs(value))}; 95 % interval {interval}, paired over prompts."


def tasks(run: Run) -> str:
    before, after = table(run.result.get("before")), table(run.result.get("after"))
    first, second = table(before.get("tasks")), table(after.get("tasks"))
    gain = table(run.result.get("gain"))
    gains = table(gain.get("tasks"))
    names = [n for n in first if n in second]
    if not names:
        return ""
    lines = [(n.replace("_", " "), first[n], second[n], gains.get(n)) for n in names] + [("all", before, after, gain or None)]
    ends = scale([score(v) for line in lines for v in line[1:3]])
    rows = ""
    for name, old, new, paired in lines:
        n = table(new).get("n")
        count = f"<small>{n} {counted(n, 'prompt')}</small>" if isinstance(n, int) else ""
        columns = cells(score(old), score(new), independent(score(old), score(new)) if paired is None else score(paired))
        kind = ' class="total"' if name == "all" else ""
        drawn = dumbbell(score(old), score(new), ends)
        rows += f'<tr{kind}><td>{escape(name)}{count}</td>{columns}<td class="spark">{drawn}</td></tr>'
    note = "" if gains else " Differences of tasks have intervals as if before and after were independent: wider than paired."
    axis = f'<th class="spark"><span>{ends[0]:.3g}</span>{ends[1]:.3g}</th>'
    head = f"<tr><th>task</th><th>before</th><th>after</th><th>difference</th>{axis}</tr>"
    sub = f"Held-out score with 95 % intervals over prompts.{note}"
    return section("By task", sub, f'<div class="card"><table>{head}{rows}</table></div>')


def others(run: Run) -> str:
    rows = ""
    judges = run.result.get("judges")
    told = [("further judge", table(one)) for one in judges] if isinstance(judges, list) else []
    for title, said in (*told, ("diversity", table(run.result.get("diversity")))):
        before, after = score(said.get("before")), score(said.get("after"))
        if before[0] is None and after[0] is None:
            continue
        label = f"{title} ({said['name']})" if said.get("name") else title
        difference = score(said["gain"]) if said.get("gain") is not None else independent(before, after)
        rows += f"<tr><td>{escape(label)}</td>{cells(before, after, difference)}</tr>"
    head = "<tr><th>measure</th><th>before</th><th>after</th><th>difference</th></tr>"
    sub = "A reward can be won by means nobody wanted. Judges beside it and the spread of images of one prompt tell."
    return section("Seen beside it", sub, f'<div class="card"><table>{head}{rows}</table></div>' if rows else "")
