"""Scores by content: what a deterministic reward said of an image once, it need not say again."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .base import waits
from .forms import Detailed, Metadata, column, detailed

Function = Callable[[np.ndarray, list[str], list[Metadata]], Any]
Entry = tuple[float, dict[str, float]]


@dataclass(frozen=True)
class Cached:
    """See `cached`. held: the newest `size` answers."""

    function: Function
    size: int
    held: OrderedDict[bytes, Entry] = field(default_factory=OrderedDict[bytes, Entry], repr=False, compare=False)

    @property
    def waits(self) -> bool:
        return waits(self.function)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        keys = [key(images[i], prompts[i], metadata[i]) for i in range(len(prompts))]
        new = [i for i in {k: i for i, k in reversed(list(enumerate(keys)))}.values() if keys[i] not in self.held]
        found = {k: self.held[k] for k in keys if k in self.held}
        if new:
            new.sort()
            found |= self._ask(images, prompts, metadata, keys, new)
        names = dict.fromkeys(name for k in keys for name in found[k][1])
        parts = {name: [found[k][1].get(name, np.nan) for k in keys] for name in names}
        return Detailed([found[k][0] for k in keys], parts)

    def _ask(
        self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], keys: list[bytes], new: list[int]
    ) -> dict[bytes, Entry]:
        told = detailed(self.function(images[new], [prompts[i] for i in new], [metadata[i] for i in new]))
        values = column(told.values, len(new))
        parts = {name: column(some, len(new)) for name, some in told.parts.items()}
        found = {keys[i]: (float(values[n]), {name: float(c[n]) for name, c in parts.items()}) for n, i in enumerate(new)}
        # a failure may be the network's; it is asked again
        self.held.update((k, entry) for k, entry in found.items() if not np.isnan(entry[0]))
        while len(self.held) > self.size:
            self.held.popitem(last=False)
        return found


def cached(function: Function, size: int = 100_000) -> Cached:
    """f, asked once for each (image, prompt, metadata), by a hash of their content. For functions whose score of an image depends
    on nothing else. Images it could not score are asked for again.

    Raises: ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a cache holds at least 1 score")
    return Cached(function, size)


def key(image: np.ndarray, prompt: str, metadata: Metadata) -> bytes:
    """32 bytes that stand for an image and what is told of it."""
    told = json.dumps([image.shape, prompt, metadata], sort_keys=True, default=repr).encode()
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes() + b"\0" + told, digest_size=32).digest()
