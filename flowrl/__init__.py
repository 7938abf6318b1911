"""Online RL for diffusion and flow generators: every method is a composition, one loop trains them all."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrl.models import load_policy as load_policy
    from flowrl.train import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "load_policy", "train"]


class _CallableModule(ModuleType):
    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.train(*args, **kwargs)


class _Package(ModuleType):
    # `train` is a module of this package and the function users call. Importing a submodule sets it as an attribute here and would
    # hide the function, or not, depending on who imported what first; so the module is made callable when it arrives.
    def __setattr__(self, name: str, value: object) -> None:
        if name == "train" and type(value) is ModuleType:
            value.__class__ = _CallableModule
        ModuleType.__setattr__(self, name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name == "train":
        return importlib.import_module("flowrl.train")
    if name == "load_policy":
        return importlib.import_module("flowrl.models").load_policy
    raise AttributeError(f"module 'flowrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
