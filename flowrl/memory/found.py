"""A card by the name a user gives: short, of the hub, or a folder in diffusers format."""

from __future__ import annotations

import json
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .calls import FAMILIES, scale
from .card import Card, Part
from .cards import CARDS

SMALLEST = 256
"""Sides below are those of a small model of one's own, trained at what its network was made for."""


def card(model: str) -> Card:
    """Raises: ValueError for a name that is neither in the table nor a folder, and for a folder of a family that is not there."""
    for one in CARDS.values():
        if model.lower() in (one.name, one.hub.lower()):
            return one
    from flowrl.models import EMBEDDED, embedded

    folder = embedded(model) if model in EMBEDDED else Path(model).expanduser()
    if folder.is_dir():
        return of_folder(folder, model)
    near = get_close_matches(model.rpartition("/")[2].lower(), CARDS, n=2, cutoff=0.4)
    hint = f"; nearest: {' and '.join(near)}" if near else ""
    raise ValueError(
        f"model {model!r} is neither in the planner's table nor a folder here{hint}; flowrl models lists the table, and any other "
        "model is planned from its downloaded folder"
    )


def of_folder(folder: Path, name: str) -> Card:
    """The card of a folder that save_pretrained wrote, from its configs alone. What no config holds (prompt length, shapes,
    guidance) is that of the table's first model with the same pipeline.

    Raises: ValueError for a folder that lacks a config, or of a pipeline the planner does not know.
    """
    index = _read(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in FAMILIES:
        raise ValueError(f"{folder} holds a {pipeline}, which the planner does not know; it knows {', '.join(FAMILIES)}")
    like = next(one for one in CARDS.values() if one.pipeline == pipeline)
    kinds = {key: kind[1] for key, kind in index.items() if isinstance(kind, list) and kind[1] is not None}

    def part(key: str, tokens: int = 0) -> Part:
        config = {k: v for k, v in _read(folder / key / "config.json").items() if not k.startswith("_")}
        return Part(kinds[key], config, tokens)

    lengths = {one.kind: one.tokens for one in like.encoders}
    encoders = [
        part(key, min(lengths.get(kind, like.text), like.text))
        for key, kind in kinds.items()
        if key.startswith(("text_encoder", "image_encoder"))
    ]
    network = FAMILIES[pipeline].network
    experts = sum(key in (network, f"{network}_2") for key in kinds)
    made = replace(
        like, name=name, hub=name, licence="", network=part(network), encoders=tuple(encoders), vae=part("vae"), networks=experts,
        billions=0.0, source=f"configs of {name}", unsourced=(),
    )  # fmt: skip
    native = made.network.config.get("sample_size") or SMALLEST
    side = native * scale(made) if isinstance(native, int) else SMALLEST
    return made if side >= SMALLEST else replace(made, shapes=((side, side, 1),), text=_text(made))


def _text(made: Card) -> int:
    """Tokens of the prompt. In SD3 they are those of CLIP, which a small one has fewer of, and then of T5."""
    clip = [e.config["max_position_embeddings"] for e in made.encoders if "max_position_embeddings" in e.config]
    return made.text - (77 - min(clip)) if made.pipeline.startswith("StableDiffusion3") and clip else made.text


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; give a folder in diffusers format, whole with its configs")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); download or save the model again") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} holds a {type(told).__name__} where an object is expected; download or save the model again")
    return told
