"""What a file says of itself: the keys that ComfyUI's and other interfaces show."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from flowrl.models.lora import NETWORK

from .names import Family

SPEC = "1.0.1"
COMFYUI = "https://github.com/comfyanonymous/ComfyUI"
SDXL = ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")
PIPELINE, PART = "flowrl.pipeline", "flowrl.part"
DEEP = re.compile(r"\.transformer_blocks\.[1-9]")


@dataclass(frozen=True)
class About:
    """Of a run. title: the name of its folder.  model: the base it was trained from.  trigger: the words that ask for it, "" for
    none.  resolution: (width, height) in pixels.  told: a sentence on how it was trained.  pipeline: diffusers' class of it.
    date: of the training, None for now."""

    title: str
    model: str
    trigger: str = ""
    resolution: tuple[int, int] | None = None
    told: str = ""
    pipeline: str = ""
    date: datetime | None = None


def describe(
    about: About, family: Family, part: tuple[str, str], modules: Collection[str], config: Mapping[str, Any] | None
) -> dict[str, str]:
    """Metadata of a file. part: name and class of the network.  modules: names of what the file changes.  config: of the adapter,
    None for whole weights.

    Source: ModelSpec 1.0.1 (Stability-AI/ModelSpec README); names of architectures and ss_ keys as kohya-ss/sd-scripts writes them
    (`library/sai_model_spec.py`, `train_network.py`), of families it does not train our own.
    """
    # only SDXL's attention has more than one transformer block
    wide = family.name == "sd" and any(DEEP.search(name) for name in modules)
    architecture, base = SDXL if wide else (family.architecture, family.base)
    date = about.date or datetime.now(UTC)
    said = {
        "modelspec.sai_model_spec": SPEC,
        "modelspec.architecture": architecture + ("" if config is None else "/lora"),
        "modelspec.implementation": COMFYUI,
        "modelspec.title": about.title,
        "modelspec.description": about.told,
        "modelspec.date": date.isoformat(timespec="seconds"),
        "modelspec.resolution": "" if about.resolution is None else "x".join(map(str, about.resolution)),
        "modelspec.trigger_phrase": about.trigger,
        "modelspec.merged_from": about.model if config is None else "",
        PIPELINE: about.pipeline,
        PART: part[0],
        NETWORK: part[1],
        "ss_base_model_version": base,
        "ss_sd_model_name": about.model,
        "ss_output_name": about.title,
        "ss_training_comment": about.told,
        "ss_resolution": "" if about.resolution is None else f"({about.resolution[0]}, {about.resolution[1]})",
        "ss_tag_frequency": json.dumps({about.title: {about.trigger: 1}}) if about.trigger else "",
    }
    if config is not None:
        said |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(config["r"]),
            "ss_network_alpha": str(config["lora_alpha"]),
        }
    return {key: value for key, value in said.items() if value}


def serialise(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> bytes:
    """A safetensors file in memory, with modelspec.hash_sha256 of its tensors added: of every byte behind the header."""
    from safetensors.torch import save

    bare = save(dict(tensors))
    data = bare[8 + int.from_bytes(bare[:8], "little") :]
    return save(dict(tensors), {**said, "modelspec.hash_sha256": f"0x{hashlib.sha256(data).hexdigest()}"})
