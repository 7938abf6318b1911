"""Encoded prompts: the condition a network call takes, and the store that keeps each distinct prompt's encoding once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .family import Encoding

Asked = tuple[str, tuple[str, ...], bool]
"""A prompt, the files of its images, and whether it is to be guided away from."""


@dataclass(frozen=True)
class Cond:
    """Encodings of N prompts, and of what each is guided away from where guidance is on. A shared one is one object.

    guidance: the scale that was asked for.
    """

    rows: tuple[Encoding, ...]
    negatives: tuple[Encoding, ...] | None = None
    guidance: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, slots: Tensor) -> Cond:
        """The rows of these slots [N], repeats allowed. Slots on the CPU are read without waiting for the device."""
        at = slots.tolist()
        negatives = None if self.negatives is None else tuple(self.negatives[i] for i in at)
        return replace(self, rows=tuple(self.rows[i] for i in at), negatives=negatives)

    def to(self, device: str) -> Cond:
        known: dict[int, Encoding] = {}

        def move(encoding: Encoding) -> Encoding:
            if id(encoding) not in known:
                known[id(encoding)] = {name: part.to(device) for name, part in encoding.items()}
            return known[id(encoding)]

        negatives = None if self.negatives is None else tuple(map(move, self.negatives))
        return replace(self, rows=tuple(map(move, self.rows)), negatives=negatives)

    def batch(self) -> dict[str, Tensor]:
        """The positive rows, [N, ...] by name."""
        return batched(self.rows)

    def negative(self) -> dict[str, Tensor]:
        return batched(self.negatives or ())

    def doubled(self) -> dict[str, Tensor]:
        """[negative; positive] along the batch, [2 N, ...]."""
        return batched((*(self.negatives or ()), *self.rows))


def batched(rows: Sequence[Encoding]) -> dict[str, Tensor]:
    """Rows stacked by name; where their first dimensions differ they are padded with zeros to the longest."""
    return {name: _stacked([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _stacked(parts: list[Tensor]) -> Tensor:
    if len({part.shape for part in parts}) > 1:
        longest = max(len(part) for part in parts)
        parts = [torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])]) for part in parts]
    return torch.stack(parts)


class PromptStore:
    """Keeps encodings by text and images on the CPU, the latest `limit` bytes of them; all of them once it is closed.

    Each prompt is encoded on its own, never in a batch: its bits then depend neither on its company nor on a restart.
    """

    def __init__(self, encode: Callable[[Asked], Encoding], limit: int = 4 << 30) -> None:
        self._encode: Callable[[Asked], Encoding] | None = encode
        self._kept: OrderedDict[Asked, Encoding] = OrderedDict()
        self._limit, self._bytes = limit, 0

    def __call__(self, prompts: Sequence[Asked]) -> tuple[Encoding, ...]:
        """Their encodings; equal prompts share one.

        Raises: ValueError for an unseen prompt once the store is closed.
        """
        found = {asked: self._get(asked) for asked in dict.fromkeys(prompts)}
        self._trim()
        return tuple(found[asked] for asked in prompts)

    def forget(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self._bytes = 0

    def close(self, prompts: Sequence[Asked]) -> None:
        """Encode these as well, keep whatever is stored for good, and drop the encoder."""
        for asked in dict.fromkeys(prompts):
            self._get(asked)
        self._encode = None

    def _get(self, asked: Asked) -> Encoding:
        if asked in self._kept:
            self._kept.move_to_end(asked)
            return self._kept[asked]
        if self._encode is None:
            raise ValueError(
                f"the prompt {asked[0]!r} was not encoded before free_encoders(); pass every prompt you will need, "
                "held-out ones too, to free_encoders(prompts), or keep the text encoders"
            )
        encoding = {name: part.detach().cpu() for name, part in self._encode(asked).items()}
        self._kept[asked] = encoding
        self._bytes += _size(encoding)
        return encoding

    def _trim(self) -> None:
        while self._encode is not None and self._bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(encoding: Encoding) -> int:
    return sum(part.nbytes for part in encoding.values())


def asked(prompts: Sequence[str], images: Sequence[Sequence[Path] | Path | None] | None = None) -> list[Asked]:
    """Prompts with the files of their images: none, one each, or several each."""
    if images is None:
        return [(text, (), False) for text in prompts]
    files = [() if file is None else (file,) if isinstance(file, str | Path) else tuple(file) for file in images]
    return [(text, tuple(str(f) for f in some), False) for text, some in zip(prompts, files, strict=True)]
