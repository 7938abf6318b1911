"""What the planner must know of a model: its parts as classes with their config values, and the shapes it is trained at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, int, int]
"""(height, width, frames) in pixels; an image has one frame."""


@dataclass(frozen=True)
class Part:
    """A component: the name of a class of diffusers or transformers, and the config values that differ from the class's defaults.

    tokens: what an encoder reads of one prompt, its longest.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    tokens: int = 0


@dataclass(frozen=True)
class Card:
    """A model a newcomer trains.

    name: short;  hub: its name there;  pipeline: class in diffusers;  network: what is trained, `networks` of them (experts);
    billions: published parameters of one network, 0 where nothing was published that could be checked;
    guided: sampled with classifier-free guidance, which doubles the rows of a call;  edits: takes an image besides the prompt;
    text: tokens of the prompt in the network's call;  shapes: the first is what it is trained at, smaller ones follow;
    source: of the config values;  unsourced: those taken without a source at hand.
    """

    name: str
    hub: str
    pipeline: str
    licence: str
    network: Part
    encoders: tuple[Part, ...]
    vae: Part
    text: int
    billions: float = 0.0
    networks: int = 1
    guided: bool = True
    edits: bool = False
    shapes: tuple[Shape, ...] = ((512, 512, 1),)
    source: str = ""
    unsourced: tuple[str, ...] = ()

    @property
    def video(self) -> bool:
        return self.shapes[0][2] > 1
