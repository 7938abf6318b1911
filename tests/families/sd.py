"""Stable Diffusion 1.5 (predicts the noise; DDIM, and the PNDM that its checkpoint brings), 2.1 (predicts v) and SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny import VAE, seeded, text_encoder, tokenizer
from transformers import CLIPTextModel

from .case import Case

UNET: Mapping[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
XL: Mapping[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
    "cross_attention_dim": 32,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}
BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
OWN: Mapping[str, Any] = {**BETAS, "clip_sample": False, "set_alpha_to_one": False}
"""As Stable Diffusion's own scheduler_config.json has them."""


def scheduler(kind: Any, **more: object) -> Any:
    """from_config, so that what a class does not take is kept along, as in the checkpoints."""
    return kind.from_config({**OWN, **more})


def parts(seed: int, xl: bool) -> dict[str, Any]:
    vae = {**VAE, "shift_factor": None, "scaling_factor": 0.18}
    if xl:
        vae |= {"latents_mean": (0.3, -0.2, 0.1, 0.0), "latents_std": (0.9, 1.1, 1.0, 1.2), "scaling_factor": 0.7}
    with seeded(seed):
        unet, words = UNet2DConditionModel(**{**UNET, **(XL if xl else {})}), tokenizer()
        decoder, first, second = AutoencoderKL(**vae), CLIPTextModel(text_encoder(len(words)).config), text_encoder(len(words))
        decoder.decoder.conv_out.weight.data.mul_(3.0)
        for name, p in unet.named_parameters():
            if "attn2" in name and p.ndim == 2:
                p.data.mul_(0.5 if xl else 1.5)  # SDXL's text is not normalised: more of it, and rounding grows faster than 1e-5
    found = {"unet": unet, "vae": decoder, "text_encoder": first, "tokenizer": words}
    return {**found, "text_encoder_2": second, "tokenizer_2": words} if xl else found


def sd(kind: Any = DDIMScheduler, seed: int = 0, **more: object) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        **parts(seed, False),
        scheduler=scheduler(kind, **more),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(kind: Any = EulerDiscreteScheduler, seed: int = 0) -> StableDiffusionXLPipeline:
    steps = scheduler(kind, timestep_spacing="leading")
    pipe = StableDiffusionXLPipeline(**parts(seed, True), scheduler=steps, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


V: Mapping[str, Any] = {
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "num_train_timesteps": 300,  # a multiple of the 3 steps
}
CASES = [
    Case("sd1.5", sd, {"guidance": 5.0, "guidance_rescale": 0.4}),
    Case("sd1.5-pndm", lambda: sd(PNDMScheduler, skip_prk_steps=True), {"guidance": 3.0, "negative": "a blue square", "width": 48}),
    Case("sd2.1-v", lambda: sd(DDIMScheduler, 1, **V), {"guidance": 4.0}),
    Case("sdxl", sdxl, {"guidance": 4.0}),
    Case("sdxl-negative", lambda: sdxl(DDIMScheduler), {"guidance": 4.0, "negative": "a blue square", "height": 48, "width": 32}),
]
