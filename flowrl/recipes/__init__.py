"""Recipes: functions that return a Recipe, by name, and `train`, which runs one."""

from __future__ import annotations

from collections.abc import Callable

from flowrl.recipe import Recipe

from .shapes import shapes

TABLE: dict[str, Callable[[], Recipe]] = {"shapes": shapes}


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises: ValueError for a name that is not in TABLE.
    """
    if name not in TABLE:
        raise ValueError(f"recipe {name!r} does not exist; there are: {', '.join(TABLE)}. A YAML file of settings ends in .yaml")
    return TABLE[name]()


__all__ = ["TABLE", "named", "shapes"]
