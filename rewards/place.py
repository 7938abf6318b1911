"""Where a reward's network lives, and how it is called: once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
FRAMES = 8
"""Of a video, what a reward of single images is shown unless told otherwise."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Place:
    """What a user may choose for any reward with a network; rewards take it whole.

    device: where the network computes.
    dtype: of its weights; None: the reward's own choice, float32 where the spread of a group is near half precision's (CLIP and its
    kin), bfloat16 for language models.
    batch: images a network call; None: the reward's own choice.
    offload: the network waits on the CPU between calls.
    frames: of a video that any reward is shown, evenly spread from the first to the last; None: all for one that reads motion, and
    for a function of the user's own, else FRAMES.

    Raises: ValueError for a device that is not here, a batch or frames below 1 or a dtype that is not one of float32, bfloat16 and
    float16.
    """

    device: str = "cpu"
    dtype: str | None = None
    batch: int | None = None
    offload: bool = False
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames is {self.frames}; show a reward at least 1 frame of a video")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(f"device {self.device!r} of a reward cannot be used here ({why}); give cpu or leave it out") from error
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give at least 1 image a network call")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; give one of {', '.join(DTYPES)}")

    def house(self, model: M, dtype: str = "float32", batch: int = 64) -> Housed[M]:
        """The network, frozen and in evaluation mode, where it waits. dtype, batch: the reward's own choice."""
        kept = model.eval().requires_grad_(False).to("cpu" if self.offload else self.device, DTYPES[self.dtype or dtype])
        return Housed(kept, self.device, self.batch or batch, self.offload)


@dataclass(frozen=True)
class Housed(Generic[M]):
    """A network and its place.  batch: images a call."""

    model: M
    device: str
    batch: int
    offload: bool = False

    @contextmanager
    def ready(self) -> Iterator[M]:
        """The network on its device and outside a trainer's autocast: half precision moves a cosine by a group's spread."""
        if self.offload:
            self.model.to(self.device)
        try:
            with torch.autocast(self.device.partition(":")[0], enabled=False):
                yield self.model
        finally:
            if self.offload:
                self.model.to("cpu")


def batched(call: Callable[[slice], Tensor], count: int, size: int) -> Tensor:
    """call(cut) of consecutive cuts of at most `size` out of `count` rows, concatenated.

    Raises: ValueError where there are no rows.
    """
    if count < 1:
        raise ValueError("there is nothing to score; give at least one image")
    return torch.cat([call(slice(start, min(start + size, count))) for start in range(0, count, size)])
