"""A user's own model as a subject."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from flowrl.models import EMBEDDED, embedded, load_policy
from flowrl.recipe import PolicySpec

from .subject import STEPS, Subject

PROMPTS = ("a photo of a red apple", "three small boats on a lake at night")
GUIDED = 4.0
"""The guidance that is compared where none is set: the model's own may be none."""
WHOLE = 200_000_000
"""Most parameters of a network that is also tried as a whole: its gradients have to fit beside it."""


def subject_of(spec: PolicySpec, work: Path, device: str = "cpu") -> Subject:
    """`spec.model`, drawn at the spec's size and guidance. work: an empty folder.

    A model whose pipeline needs an image is shown drawn ones.

    Raises: ValueError for a model that cannot be loaded.
    """
    # the pipeline is drawn by a process in a folder of its own
    there = Path(spec.model).expanduser()
    model = str(embedded(spec.model)) if spec.model in EMBEDDED else str(there.resolve()) if there.exists() else spec.model
    spec = replace(spec, model=model, steps=STEPS)
    build = partial(load_policy, device=device)
    policy = build(spec)
    if spec.guidance is None and not policy.family.embeds:
        spec = replace(spec, guidance=GUIDED)
        policy.spec = spec
    images: list[Path | None] = [None] * len(PROMPTS)
    if policy.family.pictures[0]:
        images = [picture(work / f"image{i}.png", i) for i in range(len(PROMPTS))]
    whole = sum(p.numel() for network in policy.modules.values() for p in network.parameters()) <= WHOLE
    full = whole and spec.quantize is None and spec.dtype == "float32"
    subject = Subject(Path(model), build, spec, PROMPTS, images, work, full=full)
    subject.adapted = policy
    return subject


def picture(path: Path, seed: int, size: int = 256) -> Path:
    """Soft blots of colour, the same for the same seed."""
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path
