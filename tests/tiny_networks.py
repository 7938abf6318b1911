"""Tiny random networks of every family that is exported, of diffusers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from tiny import seeded
from torch import nn


def _unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, attention_head_dim=4, **more
    )


def sd15() -> nn.Module:
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return _unet(cross_attention_dim=12, **kinds)


def sdxl() -> nn.Module:
    return _unet(
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=28,
    )


def sd3() -> nn.Module:
    """As wide as 64 times its depth, which ComfyUI takes for granted; attn2 in block 0, as SD3.5-medium."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=12,
        caption_projection_dim=128,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )


def z_image() -> nn.Module:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[2, 2, 4],
        axes_lens=[16, 16, 16],
    )


def qwen_image() -> nn.Module:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    )


def wan(images: bool = True) -> nn.Module:
    """images: as Wan 2.1 image-to-video, which attends to an image beside the text."""
    more: dict[str, Any] = {"image_dim": 14, "added_kv_proj_dim": 24} if images else {}
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=20,
        num_layers=2,
        **more,
    )


def hunyuan_video() -> nn.Module:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(2, 2, 4),
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "z_image": z_image,
    "qwen_image": qwen_image,
    "wan": wan,
    "wan_t2v": lambda: wan(images=False),
    "hunyuan_video": hunyuan_video,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """With every weight random: those that are born 0 or 1 would hide a swap."""
    with seeded(seed):
        made = MAKERS[name]()
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.randn(p.shape) * 0.2)
    return made.eval().requires_grad_(False)
