"""Online RL for diffusion and flow generators: every method is a composition, one loop trains them all."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrl.loading import load_policy as load_policy
    from flowrl.recipes.run import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "load_policy", "train"]

_HOME = {"load_policy": "flowrl.loading", "train": "flowrl.recipes.run"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flowrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
