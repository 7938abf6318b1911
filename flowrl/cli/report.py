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
    from flowrl.folder import RunFolder
    from flowrl.report import write

    path = write(RunFolder.open(run).path)
    print(path)
    if show:
        import webbrowser

        webbrowser.open(Path(path).resolve().as_uri())
