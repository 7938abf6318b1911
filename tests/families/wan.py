"""Tiny random Wan pipelines of the real classes: 5 frames of 32 x 32 pixels from 4 x 2 x 4 x 4 latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny import WORDS, seeded
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from .case import Case

TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
}
VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": [0.3, -0.2, 0.1, 0.4],
    "latents_std": [1.5, 0.8, 1.2, 2.0],
}


def tokenizer() -> T5Tokenizer:
    """Words of WORDS and their letters, as sentencepiece writes them."""
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *sorted({letter for word in WORDS for letter in word})]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    return T5Tokenizer(vocab=[*special, *((piece, -1.0 - i / 100) for i, piece in enumerate(pieces))], extra_ids=0)


def text_encoder(vocab: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=vocab, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0)
    )


def lively(network: nn.Module) -> None:
    """Scale fresh weights until answers are of the order of 1 and prompts matter."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("pos_embed"):
                p.normal_()  # fresh ones are 0
            elif p.ndim >= 2 and "scale_shift_table" not in name:
                p.mul_(2.0 if "text_embedder" in name else 1.7)


def vae(**changes: Any) -> AutoencoderKLWan:
    made = AutoencoderKLWan(**{**VAE, **changes})
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(0.4)
    return made


def transformer(**changes: Any) -> WanTransformer3DModel:
    made = WanTransformer3DModel(**{**TRANSFORMER, **changes})
    lively(made)
    return made


def pipeline(experts: int = 1, boundary: float | None = None, expand: bool = False, seed: int = 0) -> WanPipeline:
    with seeded(seed):
        words = tokenizer()
        pipe = WanPipeline(
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            vae=vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=transformer(),
            transformer_2=transformer() if experts == 2 else None,
            boundary_ratio=boundary,
            expand_timesteps=expand,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_encoder() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8,
            initializer_range=0.5, initializer_factor=4.0,
        )
    )  # fmt: skip


def image_pipeline(kind: str, seed: int = 0) -> WanImageToVideoPipeline:
    """kind: "2.1", "last" (2.1 with the last frame), "2.2" or "5b"."""
    sees = {"in_channels": 12, "image_dim": 16, "added_kv_proj_dim": 24}
    changes = {"2.1": sees, "last": {**sees, "pos_embed_seq_len": 5 * 2}, "2.2": {"in_channels": 12}, "5b": {}}[kind]
    with seeded(seed):
        words = tokenizer()
        processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        pipe = WanImageToVideoPipeline(
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            vae=vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            image_processor=processor if "image_dim" in changes else None,
            image_encoder=image_encoder() if "image_dim" in changes else None,
            transformer=transformer(**changes),
            transformer_2=transformer(**changes) if kind == "2.2" else None,
            boundary_ratio=0.8 if kind == "2.2" else None,
            expand_timesteps=kind == "5b",
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SPEC = {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 16, "guidance": 4.0}
CASES = [
    Case("wan2.1", pipeline, {**SPEC, "negative": "a red square"}),
    Case("wan2.2", lambda: pipeline(2, 0.8), {**SPEC, "guidance_2": 2.5}),
    Case("wan2.2-5b", lambda: pipeline(expand=True), SPEC),
    Case("wan2.1-image", lambda: image_pipeline("2.1"), SPEC, images=True),
    Case("wan2.2-image", lambda: image_pipeline("2.2"), {**SPEC, "guidance_2": 2.5}, images=True),
    Case("wan2.2-5b-image", lambda: image_pipeline("5b"), SPEC, images=True),
]
