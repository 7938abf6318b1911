"""What a checkpoint can hold, and the file it is written through."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


class Sink:
    """A file for torch.save that hashes and counts what passes, and keeps a failed write for later.

    An exception inside torch's zip writer would end in its destructor; so the rest is counted and thrown away instead,
    which also tells how many bytes were needed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        count = memoryview(data).nbytes
        self.size += count
        if self.error is None:
            self.hash.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return count

    def flush(self) -> None:
        """torch.save calls it; the real flush is checked after it."""

    def close(self) -> None:
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def storable(value: Any, key: str) -> Any:
    """The value with plain containers and detached tensors. Exact types: numpy's float64 is a float that torch.load refuses."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Mapping):
        bad = [k for k in value if type(k) not in PLAIN]
        if bad:
            raise TypeError(f"{key} has a key of type {type(bad[0]).__name__}: keys of a checkpoint are text or numbers.")
        return {k: storable(v, f"{key}[{k!r}]") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(storable(v, f"{key}[{i}]") for i, v in enumerate(value))
    if type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided and not value.is_meta:
        value = value.detach()
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    raise TypeError(
        f"{key} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot hold: give tensors, numbers, "
        "text, None, and lists, tuples and dicts of them."
    )
