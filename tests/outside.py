"""Prompts and small real weights that lie beside a checkout, never in it; tests that want them skip where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"
SHARED = Path(os.environ.get("FLOWRL_SHARED", _BESIDE))
"""data/ and weights/, as their READMEs describe them."""


def needs(path: str) -> pytest.MarkDecorator:
    """Skips a test unless `path` below SHARED is there."""
    return pytest.mark.skipif(not (SHARED / path).exists(), reason=f"there is no {path} beside this checkout (FLOWRL_SHARED)")


def wanted(path: str) -> Path:
    """`path` below SHARED; skips the test where it is not."""
    if not (SHARED / path).exists():
        pytest.skip(f"there is no {path} beside this checkout (FLOWRL_SHARED)")
    return SHARED / path
