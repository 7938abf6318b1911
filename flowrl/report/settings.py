"""What was run: configuration, time and versions."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from flowrl.report.data import STAGES, Run, table
from flowrl.report.data import number as known
from flowrl.report.marks import section


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        return [pair for k, v in table(value).items() for pair in flat(v, f"{name}.{k}" if name else k)]
    if isinstance(value, list) and len(value) == 1:
        return flat(value[0], name)
    if isinstance(value, list) and any(isinstance(v, Mapping | list) for v in value):
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{name}.{i}" if name else str(i))]
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None or value == {} else str(value)
    return [(name, text)]


def listing(title: str, pairs: list[tuple[str, str]]) -> str:
    body = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f'<div class="config"><h3>{escape(title)}</h3><dl>{body}</dl></div>'


def configuration(run: Run) -> str:
    cards = [
        listing(name, flat(value)) if isinstance(value, Mapping | list) else listing(name, [("", str(value))])
        for name, value in run.config.items()
        if value not in ({}, [])
    ]
    sub = "run.yaml, fully resolved; <code>flowrl train run.yaml</code> repeats the run."
    return section("Configuration", sub, f'<div class="configs">{"".join(cards)}</div>' if cards else "")


def timing(run: Run) -> str:
    totals = {name: sum(run.series(f"seconds/{name}")[1]) for name in (*STAGES, "total")}
    whole = totals.pop("total") or sum(totals.values())
    pairs = [(name, f"{value:,.1f} s · {value / whole:.0%}") for name, value in totals.items() if value and whole]
    if whole:
        pairs.append(("all iterations", f"{whole:,.1f} s"))
        pairs.append(("one iteration", f"{whole / len(run.rows):.2f} s"))
    minutes = known(run.result.get("minutes"))
    if minutes is not None:
        pairs.append(("whole run", f"{minutes:.1f} min"))
    versions = [(str(k), str(v)) for k, v in table(run.result.get("versions")).items()]
    cards = (listing("Time", pairs) if pairs else "") + (listing("Versions", versions) if versions else "")
    return section("Time and versions", "", f'<div class="configs">{cards}</div>' if cards else "")
