"""Real images: those of each prompt, or a folder that belongs to none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from flowrl.rewards import pictures
from flowrl.rewards.base import Samples

from .learning import generator, some

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def folder(path: str | Path) -> tuple[np.ndarray, ...]:
    """The images of a folder by name, uint8 [H, W, 3] each, sizes as they come; transparent ones on white.

    Raises: FileNotFoundError for no such folder; ValueError for one without images, or with a file that is none.
    """
    place = Path(path)
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {place}; give one with reference images ({', '.join(IMAGES)})")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"{place} holds no images ({', '.join(IMAGES)}); put the reference images there")
    return tuple(_read(file) for file in files)


def _read(file: Path) -> np.ndarray:
    try:
        return pictures.read(file)
    except OSError as error:  # also what Pillow raises for what is no image
        raise ValueError(f"{file} cannot be read as an image ({error}); take it out or save it again") from error


class Generated(NamedTuple):
    """The scored images of Samples. images: uint8 [n, T, H, W, 3], one frame where they are no videos;  prompt [n]: index."""

    images: Tensor
    prompt: Tensor

    @property
    def frames(self) -> Tensor:
        return self.images.flatten(0, 1)


def generated(samples: Samples) -> Generated:
    scored = samples.scored.cpu()
    images = samples.pixels[scored.to(samples.pixels.device)].cpu()
    return Generated(images.unsqueeze(1) if images.ndim == 4 else images, scored.nonzero()[:, 0])


def keys(samples: Samples, drawn: Generated) -> list[str]:
    """The prompt of every frame: what chooses its patches."""
    return [str(samples.prompts[p]) for p in drawn.prompt.tolist() for _ in range(drawn.images.shape[1])]


class Real(NamedTuple):
    """Reference images and what keys the choices made in them. prompt: index of the prompt each belongs to, -1: to none."""

    images: Sequence[np.ndarray]
    keys: Sequence[str]
    prompt: Sequence[int]


def real(samples: Samples, held: Sequence[np.ndarray], most: int, seed: int, iteration: int) -> Real:
    """At most `most` references, drawn for the iteration: of `held` if there are any, else of the samples' own.

    Raises: ValueError where there are none.
    """
    told = [(image, f"folder {i}", -1) for i, image in enumerate(held)] or [
        (image, f"{i} of {prompt}", p)
        for p, (prompt, own) in enumerate(zip(samples.prompts, samples.references or (), strict=False))
        for i, image in enumerate(own)
    ]
    if not told:
        raise ValueError(
            "an adversarial reward compares with real images, and these prompts have none; give a folder (adversarial:FOLDER), or "
            "prompts with an image each"
        )
    chosen = [told[i] for i in some(len(told), most, generator("real", seed, iteration)).tolist()]
    return Real([image for image, _, _ in chosen], [key for _, key, _ in chosen], [p for _, _, p in chosen])


def choice(seed: int, iteration: int, key: str, patches: int, wanted: int) -> Tensor:
    """Which patches of an image are looked at: [min(wanted, patches)] indices, the same for all images of a key (a prompt) in an
    iteration, so that a score is a function of the image."""
    return some(patches, wanted, generator("patches", seed, iteration, key))
