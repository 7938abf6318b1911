"""A row of the conformance table: a tiny random pipeline of the real classes, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """make: builds the pipeline.  spec: fields of PolicySpec, with the guidance of the guided case.  images: how many pictures each
    prompt comes with; more: further ones of the second.  size: of a picture, (height, width); turned: those of the second prompt
    are turned by 90 degrees.  saving: the settings of activation checkpointing that are tried."""

    name: str
    make: Callable[[], Any]
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prompts: tuple[str, str] = ("a red circle", "two blue square left of a green circle")
    images: int = 0
    more: int = 0
    size: tuple[int, int] = (32, 32)
    turned: bool = False
    saving: tuple[bool, ...] = (False, True)
