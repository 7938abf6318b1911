"""A finished run, exported again: from its lora/ and its run.yaml."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flowrl import settings
from flowrl.folder import RunFolder
from flowrl.models import EMBEDDED, embedded, load_policy
from flowrl.models.lora import NETWORK
from flowrl.recipe import Recipe
from flowrl.said import first_line

from .diffusers import load_lora, opened, read_lora, replacing, saved, write_lora
from .files import Adapter, held, scaled, stem, write_comfy
from .merged import write_merged
from .metadata import PART, PIPELINE, About

KINDS = ("comfy", "diffusers", "merged")


def about(recipe: Recipe, pipeline: str = "", iterations: int | None = None, resolution: tuple[int, int] | None = None) -> About:
    """What a run's files say of it; they are named after its folder, as many runs have one name. resolution: (width, height) of its
    images, where the recipe leaves it to the model."""
    spec, told = recipe.policy, f"Trained by flowrl with {recipe.method.name}"
    if spec.width and spec.height:
        resolution = (spec.width, spec.height)
    trigger = recipe.data.style.trigger.strip() if recipe.data.style else ""
    done = f"{told}, {iterations} iterations." if iterations is not None else f"{told}."
    title = Path(recipe.run.folder).resolve().name if recipe.run.folder else recipe.run.name
    return About(title, spec.model, trigger, resolution, done, pipeline)


def export_run(
    run: str | Path, kinds: Collection[str], out: str | Path | None = None, dtype: torch.dtype | None = None, strength: float = 1.0
) -> list[Path]:
    """Write a run's weights into a folder (None: <run>/export). kinds: of KINDS.  dtype None: as they are.

    comfy: <folder>.safetensors, for ComfyUI's models/loras.  diffusers: the folder <folder>-diffusers, for pipe.load_lora_weights.
    merged: the whole network with the update in it, as a folder for diffusers and as a file for ComfyUI's models/diffusion_models.

    Raises: FileNotFoundError for no run; ValueError for a run without adapter where one is asked for, and for what cannot be held.
    """
    folder = RunFolder.open(run)
    recipe = settings.load(folder.path / "run.yaml")
    place = Path(out) if out is not None else folder.path / "export"
    if not recipe.policy.lora.rank and set(kinds) != {"merged"}:
        raise ValueError(f"{folder.path} trained the whole network (lora.rank 0), so there is no adapter; export it with --merged")
    said = _said(folder)
    sides = next(iter(said.values()), {}).get("modelspec.resolution", "").split("x")
    resolution = (int(sides[0]), int(sides[1])) if len(sides) == 2 and all(side.isdecimal() for side in sides) else None
    recipe = replace(recipe, run=replace(recipe.run, folder=str(folder.path)))  # where it is now
    told = about(recipe, next(iter(said.values()), {}).get(PIPELINE, ""), _iterations(folder), resolution)
    written: list[Path] = []
    if "comfy" in kinds or "diffusers" in kinds:
        found = {name: read_lora(folder.lora, name) for name in saved(folder.lora)}
        told, kind = _classes(recipe.policy.model, told, said, list(found))
        if "comfy" in kinds:
            given = {name: Adapter(kind[name], *one) for name, one in found.items()}
            written += write_comfy(place, given, told, dtype, strength)
        if "diffusers" in kinds:
            written.append(_diffusers(place / f"{stem(told.title)}-diffusers", told.pipeline, found, dtype, strength))
    if "merged" in kinds:
        written += write_merged(place, _networks(recipe, folder), told, dtype, strength)
    return written


def _diffusers(
    folder: Path, pipeline: str, found: Mapping[str, tuple[Any, Any]], dtype: torch.dtype | None, strength: float
) -> Path:
    import diffusers

    ready = {n: ({k: held(k, v, dtype) for k, v in scaled(w, strength).items()}, config) for n, (w, config) in found.items()}
    with replacing(folder) as place:
        write_lora(getattr(diffusers, pipeline), ready, place)
    return folder


def _networks(recipe: Recipe, folder: RunFolder) -> dict[str, nn.Module]:
    """The trained networks, each with its adapter beside it; not quantised, as whole weights are wanted."""
    import diffusers

    spec = recipe.policy
    if spec.lora.rank:
        policy = load_policy(replace(spec, quantize=None, offload=(), lora=replace(spec.lora, start=None)))
        load_lora(policy, folder.lora)
        return policy.modules
    places = [folder.lora] if (folder.lora / "config.json").is_file() else sorted(p for p in folder.lora.glob("*") if p.is_dir())
    if not places:
        raise ValueError(f"{folder.lora} holds no network: the run has not ended yet; finish it with flowrl train --resume")
    made = {}
    for place in places:
        kind = json.loads((place / "config.json").read_text())["_class_name"]
        own = "unet" if kind == "UNet2DConditionModel" else "transformer"
        made[own if place == folder.lora else place.name] = getattr(diffusers, kind).from_pretrained(place)
    return made


def _said(folder: RunFolder) -> dict[str, Mapping[str, str]]:
    """Network -> what the file for ComfyUI that the run itself wrote says of it."""
    out: dict[str, Mapping[str, str]] = {}
    for path in sorted(folder.lora.glob("*.safetensors")):
        with opened(path) as file:
            told = file.metadata() or {}
        if PART in told:
            out[told[PART]] = told
    return out


def _classes(model: str, told: About, said: Mapping[str, Mapping[str, str]], modules: list[str]) -> tuple[About, dict[str, str]]:
    """Class names of the pipeline and of its networks: from the run's own files, or from the model's index."""
    if told.pipeline and all(NETWORK in said.get(name, {}) for name in modules):
        return told, {name: said[name][NETWORK] for name in modules}
    index = _index(model)
    return replace(told, pipeline=str(index["_class_name"])), {n: str(index.get(n, (0, "a network it lacks"))[1]) for n in modules}


def _index(model: str) -> Mapping[str, Any]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    where = str(embedded(model)) if model in EMBEDDED else str(Path(model).expanduser()) if Path(model).exists() else model
    try:
        return cast(Mapping[str, Any], DiffusionPipeline.load_config(where))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(
            f"the run's model {model!r} is neither a folder here nor within reach ({reason}), and its index says which network the "
            "adapter is of; bring it back or go online"
        ) from error


def _iterations(folder: RunFolder) -> int | None:
    try:
        done = json.loads((folder.path / "result.json").read_text()).get("iterations")
    except (OSError, ValueError, AttributeError):
        return None
    return done if isinstance(done, int) else None
