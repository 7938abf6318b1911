"""Likeness to reference images, under features of the image alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.rewards import pictures
from flowrl.rewards.forms import Call
from flowrl.rewards.place import Place

from .aesthetic import CLIP, SIGLIP
from .encoder import Encoder, clip_encoder, frames_of, vision_encoder
from .prepare import IMAGENET_MEAN, IMAGENET_STD, Preparation, short_side
from .weights import Shelf, shelved

DINOV2, DINOV2_SIZE = "facebook/dinov2-base", 518
DINOV2_PREPARED = Preparation(short_side(DINOV2_SIZE), (DINOV2_SIZE, DINOV2_SIZE), IMAGENET_MEAN, IMAGENET_STD)
ENCODERS: dict[str, Callable[[Shelf, Place], Encoder]] = {
    "clip": lambda shelf, place: clip_encoder(CLIP, CLIP, shelf, place),
    "siglip": lambda shelf, place: vision_encoder("SiglipVisionModel", SIGLIP, None, shelf, place),
    "dinov2": lambda shelf, place: vision_encoder("Dinov2Model", DINOV2, DINOV2_PREPARED, shelf, place),
}
REDUCE = ("max", "mean")


@dataclass(frozen=True)
class Similarity:
    """cos(f(x), f(r)) reduced over references r; of a video the mean over its frames; NaN where there is no reference.

    reduce: max or mean;  own: references [R, D] of its own, unit length, used instead of the prompts'; None: there are none.
    """

    encoder: Encoder
    reduce: str = "max"
    own: Tensor | None = None

    @torch.no_grad()
    def on(self, call: Call) -> Any:
        with self.encoder.network.ready():
            found = self.encoder.pictures(frames_of(call.images)).unflatten(0, (len(call.prompts), -1))
            sets = [self.own] * len(found) if self.own is not None else self._sets(call.references)
        scores = [float("nan") if some is None else self._near(frames, some) for frames, some in zip(found, sets, strict=True)]
        return torch.tensor(scores)

    def _sets(self, references: list[list[np.ndarray]]) -> list[Tensor | None]:
        """Features of each image's references; the images of a group share theirs, which are encoded once."""
        row: dict[bytes, int] = {}
        distinct: list[np.ndarray] = []
        rows: list[list[int]] = []
        for some in references:
            rows.append([])
            for one in some:
                at = row.setdefault(repr(one.shape).encode() + one.tobytes(), len(distinct))
                if at == len(distinct):
                    distinct.append(one)
                rows[-1].append(at)
        if not distinct:
            return [None] * len(references)
        features = self.encoder.pictures(distinct)
        return [features[at] if at else None for at in rows]

    def _near(self, frames: Tensor, references: Tensor) -> float:
        cosines = frames @ references.to(frames.device).T
        return float((cosines.amax(1) if self.reduce == "max" else cosines.mean(1)).mean())


def similarity(variant: str | None = None, place: Place | None = None) -> Similarity:
    """Cosine of the unit features of an image and of its references, the largest or the mean over them; in [-1, 1].

    clip: projected features of OpenAI's ViT-L/14;  siglip: pooled ones of so400m-patch14-384;  dinov2: class token of ViT-B/14
    at 518 x 518, cut from the centre.

    variant: MODEL[:max or mean][:FOLDER of reference pictures][@FOLDER of models], from the left; None: dinov2:max with each
    prompt's own references.

    Raises: ValueError for an unknown model, reduction or a folder without pictures; FileNotFoundError for a missing folder;
    NotLoaded if loading fails.

    Source: CLIP, SigLIP and DINOv2 as transformers 5 has them; Adv-GRPO's DINO similarity.
    Differs: Adv-GRPO's evaluation leaves the features' length in; here both are of unit length.
    """
    told, shelf = shelved("similarity", variant)
    model, _, rest = (told or "dinov2").partition(":")
    reduce, _, folder = rest.partition(":") if rest.partition(":")[0] in ("", *REDUCE) else ("max", "", rest)
    if model not in ENCODERS:
        raise ValueError(f"reward similarity: there is no model {model!r}; give one of {', '.join(ENCODERS)}")
    images = _folder(Path(folder)) if folder else None
    encoder = ENCODERS[model](shelf, place or Place())
    made = Similarity(encoder, reduce or "max")
    return made if images is None else with_references(made, images)


def with_references(made: Similarity, images: list[np.ndarray]) -> Similarity:
    """The same with references uint8 [H, W, 3] of its own, for every prompt.

    Raises: ValueError if there are none.
    """
    with made.encoder.network.ready():
        return Similarity(made.encoder, made.reduce, made.encoder.pictures(images).cpu())


def _folder(path: Path) -> list[np.ndarray]:
    if not path.is_dir():
        raise FileNotFoundError(f"reward similarity: {path} is not a folder of reference pictures, nor max or mean")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in pictures.SUFFIXES)
    if not found:
        raise ValueError(f"reward similarity: there is no picture in {path}; known are {', '.join(sorted(pictures.SUFFIXES))}")
    return [pictures.read(file) for file in found]
