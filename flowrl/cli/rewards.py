"""flowrl rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flowrl.rewards.row import Row

LEVELS = {
    "real": "scored images with its own weights in our tests, or is a rule that needs none",
    "arithmetic": "formula and preprocessing tested; its weights were never loaded in our tests",
}
COLUMNS = ("name", "evidence", "weights", "memory", "licence", "measures")
CHECK = "check"
WIDE = 120
"""Columns of a terminal that shows licences and memory too; both are in `flowrl rewards NAME`."""


def rewards(
    name: Annotated[str | None, typer.Argument(help='One reward, to be explained; "check": see the second argument.')] = None,
    spec: Annotated[str | None, typer.Argument(metavar="[NAME]", help="After check: the reward to load and try.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One line a reward, fields parted by tabs, for other programs.")] = False,
    device: Annotated[str, typer.Option(help="Where check puts the reward's network.")] = "cpu",
) -> None:
    """List every reward with its licence, its size and what our tests show of it; explain one; or check one on this machine.

    check downloads what the reward needs, loads it key for key, lets it order six drawn pairs and prints a line to report.

    Examples:

        flowrl rewards

        flowrl rewards pickscore

        flowrl rewards check pickscore --device cuda
    """
    from rich.console import Console

    console = Console(highlight=False)
    if name == CHECK:
        _check(spec, device)
    elif spec is not None:
        raise ValueError(f"{spec!r} is one name too many; give one reward, or write: flowrl rewards check {spec}")
    elif name is not None:
        explain(name, console)
    elif plain:
        _plain()
    else:
        listing(console)


def levels() -> dict[str, str]:
    """name -> the best that tests showed of it, as pytest --evidence wrote it."""
    import json
    from importlib.resources import files

    shown = json.loads((files("flowrl.rewards") / "evidence.json").read_text(encoding="utf-8"))
    return {name: next(kind for kind in LEVELS if kind in kinds) for name, kinds in shown.items()}


def _size(gigabytes: float) -> str:
    return "-" if not gigabytes else f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{max(1, round(1000 * gigabytes))} MB"


def _cells(name: str, row: Row, shown: Mapping[str, str]) -> tuple[str, ...]:
    return name, shown.get(name, "-"), _size(row.weights), _size(row.memory), row.licence.partition(" (")[0] or "-", row.about


def _plain() -> None:
    from flowrl.rewards.table import SECTIONS

    shown = levels()
    print("\t".join((*COLUMNS, "section", "variants", "range", "hacks")))
    for title, rows in SECTIONS.items():
        for name, row in rows.items():
            print("\t".join((*_cells(name, row, shown), title, row.variants, row.range, row.hacks)))


def listing(console: Console) -> None:
    """The table, by sections."""
    from rich.table import Table
    from rich.text import Text

    from flowrl.rewards.table import SECTIONS

    shown, narrow = levels(), console.width < WIDE
    kept = [i for i, title in enumerate(COLUMNS) if not (narrow and title in ("memory", "licence"))]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for title in (COLUMNS[i] for i in kept):
        wide = title in ("licence", "measures")
        table.add_column(title, justify="right" if title in ("weights", "memory") else "left", no_wrap=not wide)
    for title, rows in SECTIONS.items():
        table.add_row()
        table.add_row(Text(title, style="bold"))
        for name, row in rows.items():
            cells = _cells(name, row, shown)
            table.add_row(*(Text(cells[i]) for i in kept))
    console.print(table)
    console.print()
    for kind, means in LEVELS.items():
        console.print(f"[bold]{kind}[/bold]  {means}")
    console.print("Yours: file.py:function or module:function. One in detail: flowrl rewards NAME")


def explain(name: str, console: Console) -> None:
    """All that is known of one reward.

    Raises: ValueError for a name that is no reward's, with the nearest.
    """
    from rich.table import Table
    from rich.text import Text

    from flowrl.rewards.names import known

    row = known(name)
    shown = levels().get(name)
    console.print(Text(name, style="bold"))
    console.print(Text(row.about))
    facts = {
        "variants": f"{name}:VARIANT, {row.variants}" if row.variants else "",
        "range": row.range,
        "licence": row.licence,
        "download": _size(row.weights) if row.weights else "nothing",
        "memory": f"{_size(row.memory)} on a GPU" if row.memory else "",
        "needs": f"pip install {row.needs}" if row.needs else "",
        "of videos": "every frame" if row.whole else "the mean of 8 frames; rewards.frames sets another number",
        "known hacks": row.hacks,
        "source": row.source,
        "evidence": f"{shown}: {LEVELS[shown]}" if shown else "none",
        "try": row.example or f"flowrl score images/ --reward {name}",
    }
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for what, said in facts.items():
        if said:
            table.add_row(Text(what, style="bright_black"), Text(said))
    console.print(table)


def _check(spec: str | None, device: str) -> None:
    if spec is None:
        raise ValueError("check what? write: flowrl rewards check NAME (flowrl rewards lists the names)")
    from flowrl.rewards import Place
    from flowrl.rewards.check import check

    done = check(spec, Place(device))
    print(done.line)
    if not done.passed:
        raise typer.Exit(1)
