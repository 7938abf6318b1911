"""Forms a reward function may have beside f(images, prompts, metadata): what it sees, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from .base import waits

Metadata = dict[str, Any]
References = list[np.ndarray]
"""The reference images of one prompt, uint8 [H, W, 3] each; none: an empty list."""


@dataclass(frozen=True)
class Detailed:
    """Scores with what they are made of. values: N numbers, NaN or None where it could not score;  parts: name -> N numbers."""

    values: Any
    parts: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Call(NamedTuple):
    """All that can be told of N images, prompt-major. images: uint8 [N, (T,) H, W, 3];  group: long [N], equal for images that
    compete: leaves of one prompt and one rival class."""

    images: np.ndarray
    prompts: list[str]
    metadata: list[Metadata]
    references: list[References]
    group: np.ndarray


@runtime_checkable
class Form(Protocol):
    """A function that sees more than images, prompts and metadata."""

    def on(self, call: Call) -> Any: ...


@dataclass(frozen=True)
class Groupwise:
    """See `groupwise`."""

    function: Callable[[np.ndarray, str, Metadata], Any]

    @property
    def waits(self) -> bool:
        return waits(self.function)

    def on(self, call: Call) -> Detailed:
        values = np.full(len(call.prompts), np.nan)
        parts: dict[str, np.ndarray] = {}
        for number in dict.fromkeys(call.group.tolist()):
            rows = np.flatnonzero(call.group == number)
            first = int(rows[0])
            told = detailed(self.function(call.images[rows], call.prompts[first], call.metadata[first]))
            values[rows] = column(told.values, len(rows))
            for name, some in told.parts.items():
                parts.setdefault(name, np.full(len(values), np.nan))[rows] = column(some, len(rows))
        return Detailed(values, parts)


@dataclass(frozen=True)
class Referenced:
    """See `referenced`."""

    function: Callable[[np.ndarray, list[str], list[Metadata], list[References]], Any]

    @property
    def waits(self) -> bool:
        return waits(self.function)

    def on(self, call: Call) -> Any:
        return self.function(call.images, call.prompts, call.metadata, call.references)


def groupwise(function: Callable[[np.ndarray, str, Metadata], Any]) -> Groupwise:
    """Marks f(images uint8 [N, (T,) H, W, 3], prompt, metadata) -> N floats as one that compares images of one prompt.

    It is called once a prompt and rival class: leaves of a tree that must not be compared never meet in it.
    """
    return Groupwise(function)


def referenced(function: Callable[[np.ndarray, list[str], list[Metadata], list[References]], Any]) -> Referenced:
    """Marks f(images, prompts, metadata, references) -> N floats; references: for each image the list of its prompt's references,
    uint8 [H, W, 3], which may be empty (return NaN there)."""
    return Referenced(function)


@dataclass(frozen=True)
class Framewise:
    """See `framewise`."""

    function: Callable[[np.ndarray, list[str], list[Metadata]], Any]

    @property
    def waits(self) -> bool:
        return waits(self.function)

    def on(self, call: Call) -> Any:
        return over_frames(self.function, call.images, call.prompts, call.metadata)


def framewise(function: Callable[[np.ndarray, list[str], list[Metadata]], Any]) -> Framewise:
    """Marks f(images uint8 [N, H, W, 3], prompts, metadata) -> N floats as one of single images. A video has the mean of the scores
    of its frames: of 8 of them, or of as many as the user says (`place.Place.frames`).

    >>> import numpy as np
    >>> red = framewise(lambda images, prompts, metadata: images[..., 0].mean((1, 2)))
    >>> video = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 100)])[None]
    >>> red.on(Call(video, ["a sunrise"], [{}], [[]], np.zeros(1, int))).values.tolist()
    [50.0]
    """
    return Framewise(function)


def over_frames(function: Callable[..., Any], images: np.ndarray, *columns: Sequence[Any]) -> Any:
    """function(images, *columns) of images [N, H, W, 3]; of videos [N, T, H, W, 3] the mean of what it says of their frames, over
    those it could score, and so for its parts. columns: lists of N."""
    if images.ndim != 5:
        return function(images, *columns)
    count, frames = images.shape[:2]
    repeated = ([value for value in some for _ in range(frames)] for some in columns)
    told = detailed(function(images.reshape(-1, *images.shape[2:]), *repeated))

    def mean(values: Any) -> np.ndarray:
        each = column(values, count * frames).reshape(count, frames)
        known = ~np.isnan(each)
        total = np.where(known, each, 0).sum(1)
        return np.divide(total, known.sum(1), out=np.full(count, np.nan), where=known.any(1))

    return Detailed(mean(told.values), {name: mean(some) for name, some in told.parts.items()})


def detailed(told: Any) -> Detailed:
    """What a function returned, with its parts if it gave any."""
    return told if isinstance(told, Detailed) else Detailed(told)


def column(values: Any, count: int) -> np.ndarray:
    """One function's numbers as float64 [count], None as NaN.

    Raises: ValueError for another count; TypeError where it is no list of numbers.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
        raise TypeError(f"it returned {type(values).__name__}, not {count} numbers")
    out = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if out.shape != (count,):
        raise ValueError(f"it returned {list(out.shape)} numbers for a group of {count} images; return one an image")
    return out
