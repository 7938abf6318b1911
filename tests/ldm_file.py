"""A Stable Diffusion checkpoint as one file, by the names that its authors' code gives the weights.

Written from the layout of CompVis/latent-diffusion's modules, not from diffusers' converter, which the tests put to it.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from flowrl.export.merged import native
from flowrl.export.names import of_network

NORMS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm"}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_name(name: str, levels: int) -> str:
    """Levels of the decoder count from the finest, and the middle's modules are numbered from one."""
    for theirs, ours in NORMS.items():
        name = name.replace(theirs, ours)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for theirs, ours in ATTENTION.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = r"up_blocks\.(\d)\."
    name = re.sub(up + r"resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", name)
    return re.sub(up + r"upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)


def vae(model: Any) -> dict[str, Tensor]:
    """first_stage_model: the projections of its attention are 1 x 1 convolutions."""
    out, levels = {}, len(model.config.block_out_channels)
    for name, value in model.state_dict().items():
        project = "mid_block.attentions" in name and value.ndim == 2
        out[f"first_stage_model.{_vae_name(name, levels)}"] = value[..., None, None] if project else value
    return out


def unet(model: Any) -> dict[str, Tensor]:
    """model.diffusion_model, by the table of names that exports are written with."""
    kind = of_network(type(model).__name__)
    assert kind is not None
    made = native(model.state_dict(), kind, model.config)
    return {f"model.diffusion_model.{key.removeprefix('model.diffusion_model.')}": value for key, value in made.items()}


def clip(model: Any) -> dict[str, Tensor]:
    """cond_stage_model: transformers' own names below a `text_model`."""
    inner = getattr(model, "text_model", model)
    return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in inner.state_dict().items()}


def whole(pipe: Any) -> dict[str, Tensor]:
    """Every weight of a StableDiffusionPipeline."""
    found = {**unet(pipe.unet), **vae(pipe.vae), **clip(pipe.text_encoder)}
    return {key: value.detach().clone().contiguous() for key, value in found.items()}
