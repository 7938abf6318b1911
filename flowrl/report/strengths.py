"""The adapter at several strengths, a row a prompt."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from flowrl.report.data import inside, table
from flowrl.report.images import tag
from flowrl.report.marks import section


def grid(run: Path) -> str:
    """Nothing where the run drew none: it is not done, or trained no adapter."""
    said = _read(run / "samples" / "strengths" / "index.json")
    strengths, rows = said.get("strengths"), said.get("rows")
    if not isinstance(strengths, list) or not isinstance(rows, list) or not rows:
        return ""
    columns = [str(value) for value in strengths]
    head = "".join(f'<b class="{"own" if value == "1" else ""}">{escape(value)}</b>' for value in columns)
    body = "".join(_row(run, table(row), columns) for row in rows)
    sub = "Held-out prompts from the same starting noise. 0 is the model as it was, 1 what was trained; more goes further that way."
    return section(
        "The LoRA by strength", sub, f'<div class="strengths" style="--n:{len(columns)}"><span></span>{head}{body}</div>'
    )


def _row(run: Path, row: dict[str, Any], columns: list[str]) -> str:
    prompt, files = str(row.get("prompt", "")), table(row.get("files"))
    cells = ""
    for value in columns:
        name = files.get(value)
        file = inside(run, f"strengths/{name}" if isinstance(name, str) else None)
        cells += f"<div>{tag(file, f'{prompt}, strength {value}')}</div>"
    return f"<p>{escape(prompt)}</p>{cells}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
