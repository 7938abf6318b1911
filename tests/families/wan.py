"""Tiny random Wan pipelines of the real classes: 5 frames of 32 x 32 pixels from 4 x 2 x 4 x 4 latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tiny import WORDS, seeded
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

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
    "base_dim": 4,
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
            if p.ndim >= 2 and "scale_shift_table" not in name:
                p.mul_(2.0 if "text_embedder" in name else 1.7)


def vae(**changes: Any) -> AutoencoderKLWan:
    made = AutoencoderKLWan(**{**VAE, **changes})
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(0.7)
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
