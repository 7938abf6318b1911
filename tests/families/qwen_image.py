"""Tiny random Qwen-Images: one that draws, one that edits a picture, one that edits several."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny import seeded
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from .case import Case
from .qwen_words import MARKS, PROMPTS, qwen_tokenizer

SPOKEN = (
    "system user assistant Describe the key features of the input image color shape size texture objects background then explain "
    "how the user s text instruction should alter or modify the image Generate a new image that meets the user s requirements "
    "while maintaining consistency with the original input where appropriate by detailing the quantity text spatial relationships "
    "of the objects and background Picture"
)
"""Words of the pipelines' templates: as bytes they would be most of the sequence."""

TRANSFORMER = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1] * 7,
    "num_res_blocks": 0,
    "temperal_downsample": [False] * 6,
    "latents_mean": (-0.7, 0.1, 0.9, -0.2),
    "latents_std": (2.8, 1.4, 2.3, 0.8),
}
"""Divides by 64: the editors see every picture at about 1024 x 1024, which then is 64 tokens at most."""


def encoder(words: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    mark = dict(zip(MARKS, words.convert_tokens_to_ids(list(MARKS)), strict=True))
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 16,
                "fullatt_block_indexes": [0],
            },
            image_token_id=mark["<|image_pad|>"],
            video_token_id=mark["<|video_pad|>"],
            vision_start_token_id=mark["<|vision_start|>"],
            vision_end_token_id=mark["<|vision_end|>"],
        )
    ).eval()


def parts(zero_cond_t: bool = False) -> dict[str, Any]:
    with seeded(0):
        words = qwen_tokenizer((SPOKEN, *PROMPTS))
        transformer = QwenImageTransformer2DModel(**TRANSFORMER, zero_cond_t=zero_cond_t)
        vae, text = AutoencoderKLQwenImage(**VAE), encoder(words)
        shaken(transformer, vae, text)
    shift = {"use_dynamic_shifting": True, "max_image_seq_len": 8192, "max_shift": 0.9, "shift_terminal": 0.02}
    scheduler = FlowMatchEulerDiscreteScheduler(**shift)
    return {"scheduler": scheduler, "vae": vae, "text_encoder": text, "tokenizer": words, "transformer": transformer}


def processor(words: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """At most 16 tokens a picture."""
    sight = Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    return Qwen2VLProcessor(sight, words, Qwen2VLVideoProcessor())


def shaken(transformer: nn.Module, vae: nn.Module, text: nn.Module) -> None:
    """Weights with which time, texts and pictures matter: fresh ones hardly move the output."""
    with torch.no_grad():
        for p in transformer.parameters():
            if p.ndim > 1:
                p.normal_(0, 1.2 / p.shape[1] ** 0.5)
        vae.decoder.conv_out.weight.mul_(3.0)
        for p in text.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.4)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_image() -> QwenImagePipeline:
    return quiet(QwenImagePipeline(**parts()))


def edit() -> QwenImageEditPipeline:
    made = parts()
    return quiet(QwenImageEditPipeline(**made, processor=processor(made["tokenizer"])))


def edit_plus() -> QwenImageEditPlusPipeline:
    """As Qwen-Image-Edit-2511: the references' tokens are told time 0."""
    made = parts(zero_cond_t=True)
    return quiet(QwenImageEditPlusPipeline(**made, processor=processor(made["tokenizer"])))


SPEC = {"height": 256, "width": 384, "guidance": 3.5, "negative": " "}
CASES = [
    Case("qwen-image", qwen_image, {**SPEC, "max_sequence_length": 64}, PROMPTS),
    Case("qwen-image-edit", edit, SPEC, PROMPTS, images=1, size=(48, 96), turned=True, saving=(False,)),
    Case("qwen-image-edit-plus", edit_plus, SPEC, PROMPTS, images=1, more=1, size=(48, 96), turned=True),
]
