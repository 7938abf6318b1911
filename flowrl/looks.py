"""How pictures look, in a few numbers that change when a reward is hacked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowrl.rewards.videos import chosen

LEVELS = 8
"""Steps a colour channel is counted in for the entropy."""
THUMB = 8
FRAMES = 8
"""Of a video so many are looked at."""


def looks(images: np.ndarray) -> dict[str, np.ndarray]:
    """Of images uint8 [N, H, W, 3], of videos [N, T, H, W, 3] the mean over FRAMES frames: name -> float64 [N].

    saturation: mean of (max - min) / max of the channels, 0 grey to 1.
    edges: mean length of the brightness' gradient between neighbouring pixels, brightness in [0, 1].
    entropy: of the colours at 8 levels a channel, in bits, 0 for one colour to 9.

    Source: of what to look at: UniRL's report of an OCR reward, under which edges fell by 60 % and colour entropy by 54 %.
    """
    if images.ndim == 5:
        each = [looks(images[:, t]) for t in chosen(images.shape[1], FRAMES)]
        return {name: np.mean([told[name] for told in each], 0) for name in each[0]}
    x = images.astype(np.float64) / 255
    top = x.max(-1)
    saturation = np.where(top > 0, (top - x.min(-1)) / np.where(top > 0, top, 1), 0).mean((1, 2))
    grey = x @ np.array([0.299, 0.587, 0.114])
    down, right = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]
    # a line of pixels has no neighbours both ways
    edges = np.hypot(down, right).mean((1, 2)) if down.size else np.zeros(len(images))
    return {"saturation": saturation, "edges": edges, "entropy": np.array([_entropy(i) for i in images])}


def _entropy(image: np.ndarray) -> float:
    step = (image // (256 // LEVELS)).astype(np.int64).reshape(-1, 3)
    share = np.bincount(step @ np.array([LEVELS**2, LEVELS, 1]), minlength=LEVELS**3) / len(step)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() + 0.0)


def seen(pixels: Tensor) -> Tensor:
    """`thumbs` of images [N, H, W, 3], and of videos [N, T, H, W, 3] those of FRAMES frames one after the other, over the root of
    their number: distances of videos are root mean squares over frames, on the scale of images."""
    if pixels.ndim == 4:
        return thumbs(pixels)
    each = [thumbs(pixels[:, t]) for t in chosen(pixels.shape[1], FRAMES)]
    return torch.cat(each, 1) / len(each) ** 0.5


def thumbs(pixels: Tensor) -> Tensor:
    """Images uint8 [..., H, W, 3] as float32 [..., D]: their colours at 8 x 8, in [0, 1]."""
    flat = pixels.reshape(-1, *pixels.shape[-3:]).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.adaptive_avg_pool2d(flat, THUMB)
    return small.reshape(*pixels.shape[:-3], -1)


def spread(features: Tensor, valid: Tensor) -> float:
    """Mean Euclidean distance between images of one prompt: features [P, L, D], valid [P, L]; NaN where no prompt has two."""
    distance = torch.cdist(features.double(), features.double())
    pair = valid[:, :, None] & valid[:, None] & ~torch.eye(valid.shape[1], dtype=torch.bool)
    return float(distance[pair].mean()) if pair.any() else float("nan")
