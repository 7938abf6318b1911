"""Tokens: from the environment, never from a spec, never into a message."""

from __future__ import annotations

import os

VARIABLE = "FLOWRL_TOKEN"


def token(variable: str = VARIABLE) -> str | None:
    """The token in an environment variable; None where it is unset or empty.

    Raises: ValueError, without the value, if it holds more than visible ASCII characters.
    """
    value = os.environ.get(variable, "").strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"the token in {variable} holds spaces or characters outside ASCII; give letters, digits and punctuation")
    return value or None


def hidden(text: str, value: str | None) -> str:
    """A foreign message on one line, short, without the token."""
    line = " ".join((text.replace(value, "***") if value else text).split())
    return "".join(c for c in line if c.isprintable())[:300]
