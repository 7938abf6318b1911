"""Noise keyed by what it is for: the one definition of randomness in flowrl.

A draw depends on its key alone, so results do not depend on batch sizes, order or the number of processes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def key(seed: int, iteration: int, slot: int, node: int, purpose: str = "rollout") -> int:
    """63-bit hash of (seed, iteration, slot, node, purpose)."""
    digest = hashlib.blake2b(struct.pack("<4q", seed, iteration, slot, node) + purpose.encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(seed: int, iteration: int, slot: int, node: int, purpose: str = "rollout") -> torch.Generator:
    return torch.Generator("cpu").manual_seed(key(seed, iteration, slot, node, purpose))


def normal(shape: Sequence[int], seed: int, iteration: int, slot: int, node: int, purpose: str = "rollout") -> Tensor:
    """Standard normal draw, float32, from a CPU generator: the same on every device."""
    return torch.randn(tuple(shape), generator=generator(seed, iteration, slot, node, purpose), dtype=torch.float32, device="cpu")


def uniform(seed: int, iteration: int, slot: int, node: int, purpose: str = "rollout") -> float:
    """One draw in [0, 1), with 53 bits."""
    return (key(seed, iteration, slot, node, purpose) >> 10) * 2.0**-53


@dataclass(frozen=True)
class Source:
    """All noise of one iteration."""

    seed: int
    iteration: int

    def normal(self, shape: Sequence[int], slot: int, node: int, purpose: str = "rollout") -> Tensor:
        return normal(shape, self.seed, self.iteration, slot, node, purpose)

    def uniform(self, slot: int, node: int, purpose: str = "rollout") -> float:
        return uniform(self.seed, self.iteration, slot, node, purpose)
