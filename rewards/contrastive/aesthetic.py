"""Taste, whatever the prompt: LAION's predictors on CLIP features, and the later one on SigLIP's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.place import Housed, Place

from .encoder import Encoder, clip_encoder, frames_of, vision_encoder
from .weights import filled, shelved, tensors

CLIP, SIGLIP = "openai/clip-vit-large-patch14", "google/siglip-so400m-patch14-384"
MLP = (1024, 128, 64, 16, 1)


class Head(NamedTuple):
    """A predictor as its authors store it.  widths: of its linear layers' features;  layers: their names in the file;
    sha256: of the file, where we hold it."""

    url: str
    widths: tuple[int, ...]
    layers: tuple[str, ...]
    sha256: str | None = None


HEADS: dict[str, Head] = {
    "v2": Head(
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        (768, *MLP),
        tuple(f"layers.{index}." for index in (0, 2, 4, 6, 7)),
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "v1": Head("https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth", (768, 1), ("",)),
    "v2.5": Head(
        "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth",
        (1152, *MLP),
        tuple(f"scoring_head.{index}." for index in (0, 2, 4, 6, 8)),
    ),
}


@dataclass(frozen=True)
class Aesthetic:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> head(f_image(x) / |f_image(x)|) float32 [N]; of a video the mean."""

    encoder: Encoder
    head: Housed[nn.Module]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        with self.encoder.network.ready():
            found = self.encoder.pictures(frames_of(images))
        return self._scores(found, len(prompts)).cpu()

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores [N] of float images [N, (T,) H, W, 3] in [0, 1], differentiable in them, on the images' device."""
        del metadata
        with self.encoder.network.ready():
            found = self.encoder.pictures_with_graph(images.reshape(-1, *images.shape[-3:]))
        return self._scores(found, len(prompts)).to(images.device)

    def _scores(self, found: Tensor, count: int) -> Tensor:
        with self.head.ready() as head:
            return head(found).unflatten(0, (count, -1)).mean((1, 2))


def aesthetic(variant: str | None = None, place: Place | None = None) -> Aesthetic:
    """A rating of an image's looks, nominally 1 to 10: an affine function of its unit CLIP (v2.5: SigLIP) features.

    v2: five linear layers with nothing between them, so w·e + b with |w| = 18, b = 5.24; photographs 3.5 to 7.
    v1: one linear layer, of another and wider scale.  v2.5: |w| = 25.5, b = 1.94; 5.5 and more is good.

    variant: v2 (None), v1 or v2.5, and @FOLDER with the head's file and the encoder's repository in it: clip-vit-large-patch14, or
    siglip-so400m-patch14-384.

    Raises: ValueError for an unknown variant or weights that do not fit; NotLoaded if loading fails.

    Source: christophschuhmann/improved-aesthetic-predictor, LAION-AI/aesthetic-predictor@6d122ad `README.md`,
    discus0434/aesthetic-predictor-v2-5@3125a9e `siglip_v2_5.py`.
    Differs: no dropout, which only training has; the head is in float32 whatever the encoder's dtype. The layers' names of v1
    and v2.5 are read from their code; their files were never opened here.
    """
    name, shelf = shelved("aesthetic", variant)
    name, place = name or "v2", place or Place()
    if name not in HEADS:
        raise ValueError(f"reward aesthetic: there is no variant {name!r}; give one of {', '.join(HEADS)}")
    found = HEADS[name]
    kept = replace(place, dtype="float32").house(head(found, shelf.url(found.url, found.sha256)))
    if name == "v2.5":
        return Aesthetic(vision_encoder("SiglipVisionModel", SIGLIP, None, shelf, place), kept)
    return Aesthetic(clip_encoder(CLIP, CLIP, shelf, place), kept)


def head(kind: Head, path: Path) -> nn.Module:
    """The layers of a file of tensors, in float32.

    Raises: ValueError if they do not fit key for key.
    """
    layers = nn.Sequential(*(nn.Linear(*widths) for widths in pairwise(kind.widths)))
    names = {f"{stored}{part}": f"{index}.{part}" for index, stored in enumerate(kind.layers) for part in ("weight", "bias")}
    # a name it does not know stays as it is, to be refused by it
    return filled(path.name, layers, {names.get(key, key): value.float() for key, value in tensors(path).items()})
