"""Nearness to reference images: LPIPS, which wants the same picture, and Gram matrices, which want the same style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flowrl.rewards.forms import Metadata, Referenced, References, referenced
from flowrl.rewards.networks.pixels import framed, over_frames
from flowrl.rewards.networks.stages import Gram, Lpips, distances, styles
from flowrl.rewards.networks.weights import package, place_of
from flowrl.rewards.place import Housed, Place, batched

LEAST_SIDE = 32
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Near:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> minus the mean distance to `references`, float32 [N] <= 0. Built by
    `lpips` and `gram`; distances are sums of squares between what the network says of two images."""

    network: Housed[Lpips] | Housed[Gram]
    references: tuple[np.ndarray, ...]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Tensor:
        del prompts, metadata
        return towards(self.network, images, self.references)

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores [N] of float images [N, (T,) H, W, 3] in [0, 1], differentiable in them, on their device."""
        del prompts, metadata
        with self.network.ready():
            scores = _nearness(self.network, framed(images).to(self.network.device), self.references)
        return over_frames(scores, len(images)).mean(1).to(images.device)


def lpips(variant: str | None = None, place: Place | None = None) -> Near | Referenced:
    """Minus LPIPS to reference images, 0 for the same picture, about -0.7 for another; mean over references and over frames.

    sum over five stages of the mean over pixels of sum_c w_c (a_c - b_c)^2, a and b feature maps of unit length a pixel.
    References are scaled to cover the image and cut to its size.

    variant: [WEIGHTS][@FOLDER]. WEIGHTS: alex (default) or vgg, torchvision's network with the heads that the package lpips brings,
    or FILE.safetensors with conv{i}.weight, conv{i}.bias and lin{i}.weight (5 convolutions are AlexNet, 13 VGG16). FOLDER: images
    that are everyone's references, and then it knows its gradient; without it each prompt's own references, NaN where it has none.

    Raises: ValueError for weights that do not fit or images below 32 pixels a side; FileNotFoundError where weights or references
    are missing; ModuleNotFoundError without torchvision, or without lpips where its heads are wanted.

    Source: LPIPS (1801.03924), version 0.1; richzhang/PerceptualSimilarity `lpips/lpips.py`.
    Differs: minus the distance, as higher is better.
    """
    weights, folder = _variant("lpips", variant)
    return _form((place or Place()).house(distances(weights or "alex"), batch=16), folder)


def gram(variant: str | None = None, place: Place | None = None) -> Near | Referenced:
    """Minus the distance of style to reference images, 0 for the same; mean over references and over frames.

    sum over the stages of ||G - G_ref||^2, G = F F^T / (C H W) of the feature maps at relu1_2, 2_2, 3_3, 4_3 and 5_3 of VGG16 (or
    the five of AlexNet): blind to where things are. References are scaled to cover the image and cut to its size, so that strokes
    keep their width.

    variant, Raises: as `lpips`; WEIGHTS is vgg by default, no package is needed beyond torchvision, and heads in FILE are not read.

    Source: Gatys et al. (1508.06576) eq. 3-5, with their 1/(4 N^2 M^2) and layer weights replaced by G / (C H W) and ones.
    """
    weights, folder = _variant("gram", variant)
    return _form((place or Place()).house(styles(weights or "vgg"), batch=16), folder)


def towards(network: Housed[Any], images: np.ndarray, references: Sequence[np.ndarray]) -> Tensor:
    """Minus the mean distance of each image to all references, float32 [N]; NaN without references."""
    if not len(references):
        return torch.full((len(images),), torch.nan)
    frames = framed(images)
    with network.ready():

        def call(cut: slice) -> Tensor:
            return _nearness(network, torch.from_numpy(frames[cut]).to(network.device).float() / 255, references)

        return over_frames(batched(call, len(frames), network.batch), len(images)).mean(1).cpu()


def covering(reference: np.ndarray, height: int, width: int) -> Tensor:
    """A reference uint8 [h, w, 3] as [1, 3, height, width] in [0, 1]: scaled to cover that size, its middle cut out."""
    x = torch.from_numpy(np.ascontiguousarray(reference)).permute(2, 0, 1)[None].float() / 255
    factor = max(height / x.shape[-2], width / x.shape[-1])
    size = [max(height, round(x.shape[-2] * factor)), max(width, round(x.shape[-1] * factor))]
    if size != list(x.shape[-2:]):
        x = functional.interpolate(x, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _nearness(network: Housed[Any], frames: Tensor, references: Sequence[np.ndarray]) -> Tensor:
    """Minus the mean distance of frames [N, H, W, 3] in [0, 1] to the references."""
    height, width = frames.shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"images are {height} x {width}; the network needs {LEAST_SIDE} pixels a side or more")
    kind = next(network.model.parameters()).dtype
    said = network.model(frames.permute(0, 3, 1, 2).to(kind))
    total = frames.new_zeros(len(frames), dtype=torch.float32)
    for reference in references:
        with torch.no_grad():
            wanted = network.model(covering(reference, height, width).to(network.device, kind))
        for mine, its in zip(said, wanted, strict=True):
            total = total + (mine.float() - its.float()).square().sum(1)
    return -total / len(references)


def _form(network: Housed[Any], folder: Path | None) -> Near | Referenced:
    if folder is not None:
        return Near(network, _pictures(folder))

    def scores(images: np.ndarray, prompts: list[str], metadata: list[Metadata], references: list[References]) -> Tensor:
        del prompts, metadata
        out = torch.full((len(images),), torch.nan)
        # images of one prompt share their references
        shared: dict[tuple[int, ...], list[int]] = {}
        for row, some in enumerate(references):
            shared.setdefault(tuple(map(id, some)), []).append(row)
        with torch.no_grad():
            for rows in shared.values():
                out[rows] = towards(network, images[rows], references[rows[0]])
        return out

    return referenced(scores)


def _pictures(folder: Path) -> tuple[np.ndarray, ...]:
    image = package("lpips", "PIL.Image", "pillow")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(f"there are no images ({', '.join(PICTURES)}) in {folder}; put the references there")
    return tuple(np.array(image.open(file).convert("RGB")) for file in files)


def _variant(reward: str, variant: str | None) -> tuple[str, Path | None]:
    """(weights, "" for the reward's own choice; folder of references)"""
    weights, _, folder = (variant or "").partition("@")
    path = place_of(reward, folder)
    if path is not None and not path.is_dir():
        raise FileNotFoundError(f"reward {reward}: {folder!r} is a file; after @ comes a folder of images")
    return weights, path
