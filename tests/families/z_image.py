"""A tiny random Z-Image."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny import VAE, seeded
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from .case import Case
from .qwen_words import PROMPTS, qwen_tokenizer

TRANSFORMER = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": (4, 6, 6),
    "axes_lens": (256, 16, 16),
}


def z_image() -> ZImagePipeline:
    """32 x 32 images from 4 x 8 x 8 latents."""
    with seeded(0):
        words = qwen_tokenizer(PROMPTS)
        text = Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
        transformer, vae = ZImageTransformer2DModel(**TRANSFORMER), AutoencoderKL(**VAE)
        encoder = Qwen3Model(text).eval()
        shaken(transformer, encoder)
        vae.decoder.conv_out.weight.data.mul_(3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    pipe = ZImagePipeline(scheduler, vae, encoder, words, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shaken(transformer: nn.Module, encoder: nn.Module) -> None:
    """Weights with which time and texts matter: fresh ones hardly move the output."""
    with torch.no_grad():
        for name, p in transformer.named_parameters():
            if p.ndim == 1 and "norm" not in name:
                p.normal_(0, 0.2)
            elif "pad_token" in name:
                p.normal_(0, 1)
            elif p.ndim > 1:
                p.normal_(0, 1.2 / p.shape[1] ** 0.5)
        for p in encoder.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.4)


SPEC = {"height": 32, "width": 32, "max_sequence_length": 64}
CASES = [
    Case("z-image", z_image, {**SPEC, "guidance": 2.0, "negative": "a blue square"}, PROMPTS),
    Case("z-image-capped", z_image, {**SPEC, "guidance": 0.8, "guidance_cap": 1.02, "guidance_interval": (0.7, 1.0)}, PROMPTS),
]
