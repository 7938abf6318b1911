"""Pictures as an encoder wants them. Where a picture is resized and cut is worked out from its size, apart from its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Fitted(NamedTuple):
    """A picture resized to height x width, of which the window begins at (top, left); negative where it is padded."""

    height: int
    width: int
    top: int
    left: int


Fit = Callable[[int, int], Fitted]
"""Of a picture's height and width."""
Half = Callable[[int], int]
"""What is cut at the top or left of an excess."""


def floor_half(excess: int) -> int:
    """As transformers cuts."""
    return excess // 2


def even_half(excess: int) -> int:
    """As torchvision and open_clip cut: half a pixel goes to the even neighbour."""
    return round(excess / 2)


def short_side(size: int, half: Half = floor_half) -> Fit:
    """The short side becomes `size`, the long one keeps the ratio (rounded down), and the centre is cut out.

    Source: transformers 5 `get_resize_output_image_size`, torchvision `Resize(int)`; both agree.
    """

    def fit(height: int, width: int) -> Fitted:
        short = min(height, width)
        return _centred(int(size * height / short), int(size * width / short), (size, size), half)

    return fit


def covering(size: tuple[int, int], half: Half = even_half) -> Fit:
    """The smallest picture that covers a window that is not square. Source: open_clip 3.3 `ResizeKeepRatio(longest=0)`."""

    def fit(height: int, width: int) -> Fitted:
        ratio = min(height / size[0], width / size[1])
        return _centred(round(height / ratio), round(width / ratio), size, half)

    return fit


def long_side(size: tuple[int, int]) -> Fit:
    """The largest picture that lies within the window, which is padded around it.

    Source: HPSv2 `ResizeMaxSize`; open_clip 3.3 `ResizeKeepRatio(longest=1)`, `CenterCropOrPad`.
    Differs: a side never vanishes; theirs fail where it rounds to 0. HPSv2 leaves out the padding of a picture whose long side
    is 224 already, on which its network then fails.
    """

    def fit(height: int, width: int) -> Fitted:
        ratio = max(height / size[0], width / size[1])
        return _centred(max(1, round(height / ratio)), max(1, round(width / ratio)), size, even_half)

    return fit


def exact(size: tuple[int, int]) -> Fit:
    """Stretched to the window, whatever its ratio: SigLIP."""
    return lambda height, width: Fitted(*size, 0, 0)


def _centred(height: int, width: int, size: tuple[int, int], half: Half) -> Fitted:
    top, left = (half(e) if e >= 0 else -(-e // 2) for e in (height - size[0], width - size[1]))
    return Fitted(height, width, top, left)


@dataclass(frozen=True)
class Preparation:
    """uint8 [H, W, 3] of any sizes -> float32 [N, 3, *size], (x / 255 - mean) / std after resizing and cutting.

    smooth: bicubic, else bilinear, both with Pillow's wide filter when shrinking;  fill: grey level of the padding.
    """

    fit: Fit
    size: tuple[int, int]
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    smooth: bool = True
    fill: int = 0

    def __call__(self, frames: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        pixels = np.stack([self._window(frame) for frame in frames])
        return self._normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div(255))

    def with_graph(self, images: Tensor) -> Tensor:
        """The same of float images [N, 3, H, W] in [0, 1], differentiable in them.

        Differs: Pillow rounds to 8 bits after resizing, which moves most pixels by half a level of 255.
        """
        at, (height, width) = self.fit(*images.shape[-2:]), self.size
        if images.shape[-2:] != (at.height, at.width):
            mode = "bicubic" if self.smooth else "bilinear"
            images = nn.functional.interpolate(images, (at.height, at.width), mode=mode, antialias=True)
        # bicubic overshoots, and 8 bits do not
        around = (-at.left, at.left + width - at.width, -at.top, at.top + height - at.height)
        return self._normalised(nn.functional.pad(images.clamp(0, 1), around, value=self.fill / 255))

    def _window(self, frame: np.ndarray) -> np.ndarray:
        at = self.fit(*frame.shape[:2])
        resample = Image.Resampling.BICUBIC if self.smooth else Image.Resampling.BILINEAR
        window = Image.new("RGB", (self.size[1], self.size[0]), (self.fill,) * 3)
        window.paste(Image.fromarray(frame).resize((at.width, at.height), resample), (-at.left, -at.top))
        return np.asarray(window)

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(list(some), dtype=x.dtype, device=x.device).view(3, 1, 1) for some in (self.mean, self.std))
        return x.sub(mean).div(std)


def of_open_clip(config: Mapping[str, Any]) -> Preparation:
    """From open_clip's `preprocess_cfg`: size, mean, std, interpolation, resize_mode, fill_color."""
    given = config["size"]
    size = (given, given) if isinstance(given, int) else (given[0], given[1])
    fits = {"longest": long_side, "squash": exact, "shortest": covering}
    short, square = config["resize_mode"] == "shortest", size[0] == size[1]
    fit = short_side(size[0], even_half) if short and square else fits[config["resize_mode"]](size)
    # open_clip's covering resize is bicubic whatever its configuration says
    smooth = config["interpolation"] != "bilinear" or (short and not square)
    return Preparation(fit, size, tuple(config["mean"]), tuple(config["std"]), smooth, int(config.get("fill_color", 0)))


def of_processor(config: Mapping[str, Any]) -> Preparation:
    """From the preprocessor_config.json of a CLIP or SigLIP processor of transformers.

    Raises: ValueError for a size, crop or filter it does not know.
    """
    size, crop, filters = config.get("size"), config.get("crop_size"), {2: False, 3: True}
    smooth = filters.get(int(config.get("resample", 3)))
    short = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    square = crop if isinstance(crop, int) or crop is None else (crop["height"] if crop["height"] == crop["width"] else None)
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    if smooth is not None and short is not None and short == square and config.get("do_center_crop", True):
        return Preparation(short_side(short), (short, short), mean, std, smooth)
    if smooth is not None and isinstance(size, Mapping) and "height" in size and not config.get("do_center_crop"):
        window = (int(size["height"]), int(size["width"]))
        return Preparation(exact(window), window, mean, std, smooth)
    raise ValueError(
        f"the image processor has size {size}, crop_size {crop} and resample {config.get('resample')}; known are a shortest edge "
        "cut to a square of the same size, and an exact height and width, both bicubic (3) or bilinear (2)"
    )
