"""Any network that is a velocity field as a policy: points, actions, images of one's own; no pipeline, no diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.samplers import Path as Law
from flowrl.samplers import paths, schedules

from .guidance import linear
from .prompts import Asked, Cond, PromptStore, asked

ROWS = 96
"""Rows of a training call; where memory ends before, the loop halves them."""


@dataclass(frozen=True)
class Digits:
    """States as images from which a reward reads them back: one pixel an element, 24 bits of [low, high].

    Red is what an eye sees, green and blue are finer digits. Called as a policy's `decode`: x0 [N, *d] -> uint8 [N, H, W, 3], where
    H x W is d itself in two dimensions and else first x rest. Values outside are clamped.

    Raises: ValueError for an empty range.
    """

    shape: tuple[int, ...]
    low: float = -4.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"digits of [{self.low}, {self.high}]: give low below high, around all values a state can take")

    def __call__(self, x0: Tensor) -> Tensor:
        share = (x0.double() - self.low) / (self.high - self.low)
        number = (share.clamp(0, 1) * (2**24 - 1)).round().long()
        rows = self.shape[0] if len(self.shape) > 1 else 1
        digits = torch.stack([number >> 16, number >> 8 & 255, number & 255], -1)
        return digits.to(torch.uint8).view(len(x0), rows, -1, 3)

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float64 [N, *d], to half of (high - low) / (2^24 - 1)."""
        number = images.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        return (self.low + (self.high - self.low) * number / (2**24 - 1)).reshape(len(images), *self.shape)


def _tensor(value: object, what: str, remedy: str) -> Tensor:
    """Raises: TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} returned a {type(value).__name__}; {remedy}")
    return value


class FieldPolicy:
    """A network as a policy, trained as a whole: u = network(x [N, *d], sigma [N], cond [N, D]) in the path's parametrisation
    (flow: the velocity v = x1 - x0, sigma 1 is noise).

    Only parameters that require a gradient are trained; a frozen reference is a second copy of them.
    encode: prompts -> [N, D], called with one prompt at a time and remembered (None: D = 0).
    decode: x0 [N, *d] -> images [N, H, W, 3] or [N, T, H, W, 3], uint8, or float in [0, 1] with a graph for methods that follow the
      reward's gradient. None: `Digits` of [-4, 4].
    schedule: steps -> the levels, float64 [steps + 1] from 1 to 0.
    guidance: above 1, negative + guidance (positive - negative), of the prompt `negative`.

    Raises: ValueError for a shape without elements, or a network without anything to train; TypeError for what is no network, and
    where `encode`, `decode` or the network return no tensor.
    """

    adapted = False
    fps = None

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        *,
        path: Law = paths.flow,
        encode: Callable[[list[str]], Tensor] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        schedule: Callable[[int], Tensor] = schedules.linear_shift,
        guidance: float = 1.0,
        negative: str = "",
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"the network is a {type(network).__name__}; give a torch.nn.Module")
        self.network, self.path, self.guidance, self.negative = network, path, guidance, negative
        self._shape, self._schedule, self._read = tuple(shape), schedule, encode
        if not self._shape or min(self._shape) < 1:
            raise ValueError(f"a state of shape {list(shape)} has no elements; give the dims of one state, as (2,) or (3, 64, 64)")
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError(f"no parameter of {type(network).__name__} requires a gradient; call requires_grad_(True) on some")
        self._decode = Digits(self._shape) if decode is None else decode
        self._store = PromptStore(self._encode)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _encode(self, wanted: Asked) -> dict[str, Tensor]:
        """Raises: ValueError for an encoding that is not one row."""
        if self._read is None:
            return {"cond": torch.zeros(0)}
        with torch.no_grad():
            row = _tensor(self._read([wanted[0]]), f"encode([{wanted[0]!r}])", "give a tensor [N, ...], a row for each prompt")
        if row.ndim < 2 or len(row) != 1:
            raise ValueError(f"encode([{wanted[0]!r}]) returned shape {list(row.shape)}; return [1, D], a row for each prompt")
        return {"cond": row[0].float()}

    def encode(
        self,
        prompts: Sequence[str],
        guidance: float | None = None,
        images: Sequence[Sequence[Path] | Path | None] | None = None,
    ) -> Cond:
        """guidance None: the policy's own. images are the rewards' business."""
        scale = self.guidance if guidance is None else guidance
        rows = self._store(asked(prompts))
        negatives = self._store(asked([self.negative] * len(rows))) if scale > 1 else None
        return Cond(rows, negatives, scale).to(str(self.device))

    def free_encoders(self, prompts: Sequence[str] = (), images: Any = None) -> None:
        """Encode these and the negative prompt; others are refused from now on, and `encode` is forgotten."""
        self._store.close(asked([*prompts, self.negative]))
        self._read = None

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        positive = self._ask(x, sigma, cond.batch()["cond"])
        if cond.negatives is None:
            return positive
        return linear(positive, self._ask(x, sigma, cond.negative()["cond"]), cond.guidance, x, sigma)

    def _ask(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """The network, in the type of its weights.

        Raises: ValueError for an answer that is no velocity of these states.
        """
        kind = next(self.network.parameters()).dtype
        u = _tensor(self.network(x.to(kind), sigma.to(x.device, kind), cond.to(kind)), "the network", "return a velocity, a tensor")
        if u.shape != x.shape:
            raise ValueError(f"the network answered {list(u.shape)} to states of {list(x.shape)}; return a velocity of their shape")
        return u.float()

    def sigmas(self, steps: int) -> Tensor:
        return self._schedule(steps)

    def latent_shape(self) -> tuple[int, ...]:
        return self._shape

    def _drawn(self, x0: Tensor) -> Tensor:
        return _tensor(self._decode(x0), "decode", "return images, a tensor [N, H, W, 3]")

    def decode(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """uint8 [N, H, W, 3] or [N, T, H, W, 3]."""
        with torch.no_grad():
            drawn = self._drawn(x0)
        return drawn if drawn.dtype == torch.uint8 else (drawn.clamp(0, 1) * 255).round().to(torch.uint8)

    def images(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """float32 in [0, 1].

        Raises: ValueError where a graph is wanted and `decode` returns bytes.
        """
        drawn = self._drawn(x0)
        if drawn.dtype != torch.uint8:
            return drawn.float()
        if torch.is_grad_enabled() and x0.requires_grad:
            raise ValueError(
                "this method follows the reward's gradient through the images, and decode returns uint8; give FieldPolicy a decode "
                "that returns floats in [0, 1]"
            )
        return drawn.float() / 255

    def decode_rows(self) -> int:
        return ROWS

    def lane(self, sigma: float) -> int:
        return 0

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    def rows_that_fit(self) -> int:
        return ROWS

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Raises: ValueError: there is no adapter to switch off; a frozen reference is a weight set."""
        raise ValueError("a FieldPolicy has no adapter to switch off; keep a frozen weight set")
        yield
