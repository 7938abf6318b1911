"""A policy of videos that needs no diffusers: a velocity network on latents [C, T, H, W], and what the loop asks of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

SHAPE = (3, 5, 4, 6)
SCALE = 4
FPS = 12.5


class Velocity(nn.Module):
    """u = W x + words, of float32 [N, 3, 5, 4, 6]; a convolution over space and time keeps neighbouring frames alike."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3, 3, 3, padding=1)
        self.tint = nn.Linear(4, 3)

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor) -> Tensor:
        tint = self.tint(words) * (1 + sigma)[:, None]
        return self.mix(x) + tint[:, :, None, None, None]

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), Path(folder) / "weights.pt")


@dataclass(frozen=True)
class Words:
    """Rows float32 [N, 4]."""

    rows: Tensor

    def take(self, slots: Tensor) -> Words:
        return Words(self.rows[slots])

    def to(self, device: str) -> Words:
        return Words(self.rows.to(device))


@dataclass
class VideoPolicy:
    """5 frames of 16 x 24, FPS a second. network: trained as a whole."""

    spec: PolicySpec
    network: Velocity
    path: Any = paths.flow
    fps: float = FPS
    guidance: float = 1.0
    head: None = None
    adapted: bool = False
    pipe: Any = field(init=False)

    def __post_init__(self) -> None:
        self.pipe = SimpleNamespace(transformer=self.network)

    def encode(self, prompts: Sequence[str], guidance: float | None = None, images: Any = None) -> Words:
        draws = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=4) for text in prompts]
        return Words(torch.tensor(np.stack(draws), dtype=torch.float32))

    def predict(self, x: Tensor, sigma: Tensor, cond: Words) -> Tensor:
        return self.network(x, sigma.float(), cond.rows)

    def sigmas(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def latent_shape(self) -> tuple[int, ...]:
        return SHAPE

    def images(self, x0: Tensor, cond: Any = None) -> Tensor:
        large = nn.functional.interpolate(x0, scale_factor=(1, SCALE, SCALE), mode="trilinear")
        return large.sigmoid().permute(0, 2, 3, 4, 1)

    @torch.no_grad()
    def decode(self, x0: Tensor, cond: Any = None) -> Tensor:
        return (self.images(x0) * 255).round().to(torch.uint8)

    def decode_rows(self) -> int:
        return 64

    def lane(self, sigma: float) -> int:
        return 0

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.network.named_parameters())

    def free_encoders(self, prompts: Sequence[str] = (), images: Any = None) -> None:
        pass

    def rows_that_fit(self) -> int:
        return 16

    @contextmanager
    def reference(self) -> Iterator[None]:
        raise ValueError("this policy is trained as a whole")
        yield


def policy(spec: PolicySpec, device: str = "cpu", *, seed: int = 0, **kwargs: Any) -> VideoPolicy:
    """In place of `flowrl.models.load_policy`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return VideoPolicy(spec, Velocity())


def steady(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Brightness of the last frame over that of the first. Needs whole videos and their rate."""
    assert images.ndim == 5 and images.dtype == np.uint8 and all(m["fps"] == FPS for m in metadata), (images.shape, metadata[:1])
    return (images[:, -1].mean((1, 2, 3)) / 255 - images[:, 0].mean((1, 2, 3)) / 255).tolist()
