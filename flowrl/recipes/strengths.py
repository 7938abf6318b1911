"""The adapter at several strengths: a few held-out prompts, drawn from the same noise at each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from PIL import Image

from flowrl.data import Prompts
from flowrl.folder import RunFolder, write_atomic
from flowrl.heldout import judge
from flowrl.loop import Parts, Session, within_memory
from flowrl.models.lora import strength
from flowrl.sizes import Sizes

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
PROMPTS, VIDEOS = 4, 2
"""A video takes minutes where an image takes seconds."""


@contextmanager
def at(policy: Any, value: float) -> Iterator[None]:
    """Every network's adapter at this strength; at 0 the base, bitwise."""
    with ExitStack() as stack:
        for network in policy.modules.values():
            stack.enter_context(strength(network, value))
        yield


def shown(policy: Any) -> int:
    """How many prompts."""
    return PROMPTS if policy.fps is None else VIDEOS


def drawn(parts: Parts[Any], session: Session, held: Prompts) -> dict[float, np.ndarray]:
    """Strength -> uint8 [P, (T,) H, W, 3], one picture a prompt, in every process; with the weights that are exported."""
    spec = parts.recipe.evaluate
    few = range(len(held))

    def attempt(sizes: Sizes) -> dict[float, np.ndarray]:
        out = {}
        for value in STRENGTHS:
            with session.weights.using(parts.method.export), at(parts.policy, value):
                seen = judge(parts.policy, held, {}, 1, spec.steps, sizes, parts.world, guidance=spec.guidance, show=few)
            out[value] = np.stack([seen.pictures[i, 0].numpy() for i in few])
        return out

    return within_memory(session, attempt)


def save_strengths(folder: RunFolder, held: Prompts, pictures: Mapping[float, np.ndarray]) -> None:
    """samples/strengths/<prompt>_<strength>.png, of videos the middle frame, and index.json, which the report reads."""
    place = folder.samples / "strengths"
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(held.text):
        files = {}
        for value, several in pictures.items():
            one = several[i] if several.ndim == 4 else several[i, several.shape[1] // 2]
            files[f"{value:g}"] = f"{i}_{value:g}.png"
            Image.fromarray(one).save(place / files[f"{value:g}"])
        rows.append({"prompt": prompt, "files": files})
    said = {"strengths": [f"{value:g}" for value in pictures], "rows": rows}
    write_atomic(place / "index.json", json.dumps(said, ensure_ascii=False).encode())
