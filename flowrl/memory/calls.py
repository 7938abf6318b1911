"""Pipeline classes: what their network is called with on the meta device, and which of its layers an adapter changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .card import Card, Shape

STRIDE = 4
"""Frames a latent, after the first."""
OUT = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = (*OUT, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
IMAGE_TOKENS = 257
"""Of the picture's encoding in Wan's image-to-video."""


@dataclass(frozen=True)
class Inputs:
    """Makes empty meta tensors of `rows` rows in the network's dtype."""

    rows: int
    dtype: torch.dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.rows, *shape, device="meta", dtype=dtype or self.dtype)

    def times(self) -> Tensor:
        return self(dtype=torch.float32)

    def ids(self, tokens: int, axes: int) -> Tensor:
        return torch.empty(tokens, axes, device="meta", dtype=self.dtype)


Arguments = dict[str, Any]
Call = Callable[[Card, Any, Shape, Inputs], Arguments]


@dataclass(frozen=True)
class Family:
    """call(card, config, shape, inputs) -> keyword arguments;  targets: of the adapter;  network: its component's name."""

    call: Call
    targets: tuple[str, ...]
    network: str = "transformer"


def scale(card: Card) -> int:
    """Pixels a latent in height and width."""
    return 2 ** (len(card.vae.config.get("block_out_channels", "four")) - 1)


def latent(card: Card, shape: Shape) -> tuple[int, int, int]:
    """(frames, height, width) of latents."""
    height, width, frames = shape
    return (frames - 1) // STRIDE + 1, height // scale(card), width // scale(card)


def _sd3(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    _, h, w = latent(card, shape)
    return {
        "hidden_states": new(config.in_channels, h, w), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.joint_attention_dim),
        "pooled_projections": new(config.pooled_projection_dim),
    }  # fmt: skip


def _packed(card: Card, shape: Shape) -> tuple[int, int, int]:
    """(height, width, tokens) of 2 x 2 latents a token; an edited picture comes along as as many tokens again."""
    _, h, w = latent(card, shape)
    return h // 2, w // 2, (2 if card.edits else 1) * (h // 2) * (w // 2)


def _flux(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    _, _, tokens = _packed(card, shape)
    return {
        "hidden_states": new(tokens, config.in_channels), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.joint_attention_dim),
        "pooled_projections": new(config.pooled_projection_dim),
        "img_ids": new.ids(tokens, 3), "txt_ids": new.ids(card.text, 3),
        "guidance": new.times() if config.guidance_embeds else None,
    }  # fmt: skip


def _flux2(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    _, _, tokens = _packed(card, shape)
    return {
        "hidden_states": new(tokens, config.in_channels), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.joint_attention_dim),
        "img_ids": new(tokens, 4), "txt_ids": new(card.text, 4), "guidance": new.times() if config.guidance_embeds else None,
    }  # fmt: skip


def _z_image(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    _, h, w = latent(card, shape)
    return {
        "x": [*new(config.in_channels, 1, h, w)], "t": new.times(), "cap_feats": [*new(card.text, config.cap_feat_dim)],
    }  # fmt: skip


def _qwen(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    h, w, tokens = _packed(card, shape)
    pictures = [(1, h, w)] * (tokens // (h * w))
    return {
        "hidden_states": new(tokens, config.in_channels), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.joint_attention_dim), "img_shapes": [pictures] * new.rows,
    }  # fmt: skip


def _wan(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    image = {} if config.image_dim is None else {"encoder_hidden_states_image": new(IMAGE_TOKENS, config.image_dim)}
    return {
        "hidden_states": new(config.in_channels, *latent(card, shape)), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.text_dim), **image,
    }  # fmt: skip


def _hunyuan(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    return {
        "hidden_states": new(config.in_channels, *latent(card, shape)), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.text_embed_dim),
        "encoder_attention_mask": new(card.text, dtype=torch.bool), "pooled_projections": new(config.pooled_projection_dim),
        "guidance": new.times() if config.guidance_embeds else None,
    }  # fmt: skip


def _unet(card: Card, config: Any, shape: Shape, new: Inputs) -> Arguments:
    _, h, w = latent(card, shape)
    more = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        more = {"added_cond_kwargs": {"text_embeds": new(pooled), "time_ids": new(6)}}
    return {
        "sample": new(config.in_channels, h, w), "timestep": new.times(),
        "encoder_hidden_states": new(card.text, config.cross_attention_dim), **more,
    }  # fmt: skip


FAMILIES: dict[str, Family] = {
    "StableDiffusion3Pipeline": Family(_sd3, tuple(f"attn.{name}" for name in JOINT)),
    "FluxPipeline": Family(_flux, JOINT),
    "FluxKontextPipeline": Family(_flux, JOINT),
    "Flux2KleinPipeline": Family(_flux2, (*JOINT, "to_qkv_mlp_proj", "single_transformer_blocks.N.attn.to_out")),
    "ZImagePipeline": Family(_z_image, tuple(f"attention.{name}" for name in OUT)),
    "QwenImagePipeline": Family(_qwen, JOINT),
    "QwenImageEditPipeline": Family(_qwen, JOINT),
    "WanPipeline": Family(_wan, OUT),
    "WanImageToVideoPipeline": Family(_wan, (*OUT, "add_k_proj", "add_v_proj")),
    "HunyuanVideoPipeline": Family(_hunyuan, JOINT),
    "StableDiffusionPipeline": Family(_unet, OUT, "unet"),
    "StableDiffusionXLPipeline": Family(_unet, OUT, "unet"),
}
"""Attention projections of every block."""


def targets(card: Card, network: nn.Module) -> list[str]:
    """The layers an adapter changes; a name with N stands for one in each block."""
    given = FAMILIES[card.pipeline].targets
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    found = []
    for target in given:
        if "N" not in target:
            found.append(target)
            continue
        head, tail = target.split("N")
        found += [name for name in linear if name.startswith(head) and name.endswith(tail)]
    return found


def latents(vae: Any, shape: Shape, side: int) -> Tensor:
    """What the decoder is given for one image or video, in float32. side: pixels a latent."""
    height, width, frames = shape
    channels = getattr(vae.config, "latent_channels", None) or vae.config.z_dim
    flat = type(vae).__name__ in ("AutoencoderKL", "AutoencoderKLFlux2")
    time = () if flat else ((frames - 1) // STRIDE + 1,)
    return torch.empty(1, channels, *time, height // side, width // side, device="meta")
