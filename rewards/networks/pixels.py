"""Pictures as networks want them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Pictures = TypeVar("Pictures", np.ndarray, Tensor)


def framed(images: Pictures) -> Pictures:
    """[N, (T,) H, W, 3] -> [N * T, H, W, 3]."""
    return images.reshape(-1, *images.shape[-3:])


def over_frames(values: Tensor, count: int) -> Tensor:
    """[N * T] -> [N, T]."""
    return values.unflatten(0, (count, -1))


@dataclass(frozen=True)
class Square:
    """The short side scaled to `size` (bicubic), the middle cut out, normalised by mean and std of pixels in [0, 1]."""

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def pictures(self, frames: np.ndarray) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, size, size], scaled by Pillow, which rounds to 8 bits."""
        transforms = importlib.import_module("torchvision.transforms")
        image = importlib.import_module("PIL.Image")
        steps = transforms.Compose(
            [
                transforms.Resize(self.size, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(self.size),
                transforms.ToTensor(),
                transforms.Normalize(self.mean, self.std),
            ]
        )
        return torch.stack([steps(image.fromarray(frame)) for frame in frames])

    def tensors(self, frames: Tensor) -> Tensor:
        """The same of float [N, H, W, 3] in [0, 1], differentiable, without the rounding."""
        functional = importlib.import_module("torchvision.transforms.functional")
        bicubic = functional.InterpolationMode.BICUBIC
        scaled = functional.resize(frames.permute(0, 3, 1, 2).float(), self.size, bicubic, antialias=True)
        # bicubic overshoots, and 8 bits do not
        cut = functional.center_crop(scaled, [self.size, self.size]).clamp(0, 1)
        return functional.normalize(cut, list(self.mean), list(self.std))
