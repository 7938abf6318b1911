"""Processes: who am I, and the few collectives a run needs. One process is the same code with nothing to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

T = TypeVar("T")
KINDS = (torch.OutOfMemoryError, ValueError, OSError)
"""Errors that keep their kind where another process raises them again; any other becomes a RuntimeError."""


@dataclass(frozen=True)
class World:
    """rank of this process among size; device it computes on."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> None:
        """Add every tensor over all processes, in place. Entries that are zero in all but one process stay exact."""
        if self.size > 1:
            for t in tensors:
                torch_dist.all_reduce(t)

    def any(self, flag: bool) -> bool:
        """True everywhere if it is true somewhere."""
        if self.size == 1:
            return flag
        vote = torch.tensor(float(flag), device=self.device)
        self.sum(vote)
        return bool(vote > 0)

    def same(self, value: float) -> float:
        """The main process's value, everywhere: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        told = torch.tensor(value if self.main else 0.0, dtype=torch.float64, device=self.device)
        self.sum(told)
        return float(told)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, everywhere."""
        if self.size == 1:
            return [value]
        out: list[T] = [value] * self.size
        torch_dist.all_gather_object(out, value)
        return out

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process raises inside is raised by all, so that none is left waiting for it. No other collective runs inside."""
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failed = error
        told = self.gather(None if failed is None else (_kind(failed), str(failed)))
        if failed is not None:
            raise failed
        for rank, said in enumerate(told):
            if said is not None:
                raise KINDS[said[0]](said[1]) if said[0] < len(KINDS) else RuntimeError(f"process {rank} failed: {said[1]}")

    def stop(self) -> None:
        if self.size > 1 and torch_dist.is_initialized():
            torch_dist.destroy_process_group()


def _kind(error: Exception) -> int:
    return next((i for i, kind in enumerate(KINDS) if isinstance(error, kind)), len(KINDS))


def start(device: str = "auto") -> World:
    """Join the processes that `torchrun` or `accelerate launch` started; alone otherwise. device "auto": cuda where there is one.

    Raises: ValueError for a device this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f'device "{device}" was asked for, but torch sees no CUDA device; use --set run.device=cpu')
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        torch.cuda.set_device(device)
    if size > 1 and not torch_dist.is_initialized():
        torch_dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(minutes=30))
    return World(rank, size, device)
