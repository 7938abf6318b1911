"""Pieces of the sentences that errors are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import shorten

LONG = 240
"""Characters of a line that an error's first one is read on with."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop; its type where it says nothing.

    One that ends with a colon says nothing yet, as torch's of a state dict: it is read on with the next.
    """
    lines = iter([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])
    said = next(lines)
    while said.endswith(":") and (more := next(lines, None)) is not None:
        said = f"{said} {shorten(more, LONG, placeholder=' …')}"
    return said.rstrip(".: ") or type(error).__name__


def near(name: str, known: Iterable[str]) -> str:
    """The words " (did you mean 'x'?)" for the closest of the known names, "" where none is close."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
