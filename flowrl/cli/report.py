"""flowrl report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a run's report again: one HTML file that needs no network.

    Examples:

        flowrl report runs/some-run

        flowrl report runs/some-run --open
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder; give the folder of a run, as training printed it")
    from flowrl.report import write

    path = write(run)
    print(path)
    if show:
        import webbrowser

        webbrowser.open(Path(path).resolve().as_uri())
