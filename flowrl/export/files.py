"""The files of a run for ComfyUI: one a network, named after the run's folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.folder import write_atomic

from . import comfy, names
from .diffusers import LORA_FILE, adapter
from .metadata import About, describe, serialise

EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}
"""Wan 2.2's networks as ComfyUI's users call them; each is loaded, and given its adapter, by a node of its own."""


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Adapter:
    """One network's: as `flowrl.export.diffusers.adapter` gives it, with the class name of the network."""

    kind: str
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]


def adapters(modules: Mapping[str, nn.Module]) -> dict[str, Adapter]:
    """Of the trained networks of a policy, by their names."""
    return {name: Adapter(type(network).__name__, *adapter(network)) for name, network in modules.items()}


def file_names(title: str, modules: Collection[str]) -> dict[str, str]:
    """Network -> file name. diffusers' own file keeps the name by which it is found in the same folder."""
    own = stem(title)
    own = f"{own}-comfyui" if f"{own}.safetensors".endswith(LORA_FILE) else own
    if len(modules) == 1:
        return dict.fromkeys(modules, f"{own}.safetensors")
    return {name: f"{own}_{EXPERTS.get(name, name)}.safetensors" for name in modules}


def stem(title: str) -> str:
    """The name of a run's folder as the beginning of a file's."""
    return re.sub(r"[^\w.+-]+", "-", title).strip("-.") or "flowrl"


def write_comfy(
    folder: Path, found: Mapping[str, Adapter], about: About, dtype: torch.dtype | None = None, strength: float = 1.0
) -> list[Path]:
    """For ComfyUI's models/loras: strength 1 there is `strength` times the trained update. dtype None: the trained one, float32.

    Raises: ValueError for a network whose layout in ComfyUI is not known, and what `comfy.convert` raises.
    """
    made: dict[str, bytes] = {}
    files = file_names(about.title, found)
    for name, one in found.items():
        weights, kind = scaled(one.weights, strength), family(one.kind)
        tensors = comfy.convert(weights, one.config, kind)
        # alpha stays float32: a rounded one would scale every update
        tensors = {k: v if k.endswith(".alpha") else held(k, v, dtype).contiguous() for k, v in tensors.items()}
        own = replace(about, title=Path(files[name]).stem)
        made[files[name]] = serialise(tensors, describe(own, kind, (name, one.kind), comfy.pairs(weights, one.config), one.config))
    folder.mkdir(parents=True, exist_ok=True)
    return [write_atomic(folder / file, data) for file, data in made.items()]


def family(kind: str) -> names.Family:
    """Raises: ValueError for a class of network that has no row in keys.yaml."""
    found = names.of_network(kind)
    if found is None:
        raise ValueError(f"how ComfyUI names the modules of {kind} is not known; use the file for diffusers")
    return found


def scaled(weights: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The adapter whose full strength is `strength` of this one."""
    if strength == 1:
        return dict(weights)
    return {k: v * strength if k.endswith(comfy.HALVES[1]) else v for k, v in weights.items()}


def held(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Raises: ValueError where the dtype cannot hold the value."""
    if dtype is None or not value.is_floating_point():
        return value
    made = value.to(dtype)
    if not made.isfinite().all():
        raise ValueError(f"{name} has values that {str(dtype)[6:]} cannot hold; use --dtype bf16 or fp32")
    return made
