"""Recipes: functions that return a Recipe, by name, and `train`, which runs one."""

from __future__ import annotations

from collections.abc import Callable

from flowrl.recipe import Recipe

from .shapes import shapes
from .shapes_video import shapes_video
from .style import style

TABLE: dict[str, Callable[[], Recipe]] = {"shapes": shapes, "shapes_video": shapes_video}


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises: ValueError for a name that is not in TABLE; `style` has arguments and is called as a function.
    """
    if name == "style":
        raise ValueError(
            "recipe 'style' wants a folder of images and a trigger word: flowrl train style --images FOLDER --trigger WORD"
        )
    if name not in TABLE:
        raise ValueError(
            f"recipe {name!r} does not exist; there are: {', '.join(TABLE)}, style. A YAML file of settings ends in .yaml"
        )
    return TABLE[name]()


__all__ = ["TABLE", "named", "shapes", "shapes_video", "style"]
