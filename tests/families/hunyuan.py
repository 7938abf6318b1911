"""Tiny random HunyuanVideo pipelines of the real classes: 5 frames of 32 x 32 pixels from 4 x 2 x 4 x 4 latents.

The pipelines cut their prompt templates at tokens 95 and 103: the tokenizer has words, and "Describe" as two, so that prompts
begin exactly there.
"""

from __future__ import annotations

import re
from typing import Any

import tiny
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from .case import Case

SPECIAL = ("<pad>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<unk>")
PIECES = r"Desc|ribe|\w+|\n\n|\n|[^\w\s]"
TRANSFORMER = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}
VAE = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "initializer_range": 0.4,
    "max_position_embeddings": 1024,
}
SIGHT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 2,  # 24 x 24 tokens of an image, which the pipeline counts on
    "initializer_range": 0.5,
}


def tokenizer() -> PreTrainedTokenizerFast:
    templates = (pipeline_hunyuan_video, pipeline_hunyuan_video_image2video)
    words = {piece for module in templates for piece in re.findall(PIECES, module.DEFAULT_PROMPT_TEMPLATE["template"])}
    vocabulary = [*SPECIAL, *sorted({*words, *tiny.WORDS})]
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    made.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)])
    names = {
        "bos_token": "<|begin_of_text|>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": SPECIAL[2:6],
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="right", **names)


def clip(vocab: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.5,
            initializer_factor=8.0,
        )
    )


def llava(vocab: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(vocab_size=vocab, pad_token_id=0, **LLAMA)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIGHT),
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=576,
    )
    config.pad_token_id = 0
    return LlavaForConditionalGeneration(config)


def transformer(**changes: Any) -> HunyuanVideoTransformer3DModel:
    made = HunyuanVideoTransformer3DModel(**{**TRANSFORMER, **changes})
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim >= 2:
                p.mul_(2.0 if name.startswith(("context_embedder.proj_in", "proj_out")) else 1.7)
    return made


def vae(sure: bool = False) -> AutoencoderKLHunyuanVideo:
    """sure: of the latents it encodes to, whose spread is then e^-15."""
    made = AutoencoderKLHunyuanVideo(**VAE)
    with torch.no_grad():
        if sure:
            made.quant_conv.weight[4:].zero_()
            made.quant_conv.bias[4:] = -30.0
    return made


def parts(sure: bool = False, **changes: Any) -> dict[str, Any]:
    words = tiny.tokenizer()
    return {
        "tokenizer": tokenizer(),
        "transformer": transformer(**changes),
        "vae": vae(sure),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": clip(len(words)),
        "tokenizer_2": words,
    }


def pipeline(seed: int = 0, **changes: Any) -> HunyuanVideoPipeline:
    with tiny.seeded(seed):
        made = parts(**changes)
        encoder = LlamaModel(LlamaConfig(vocab_size=len(made["tokenizer"]), pad_token_id=0, **LLAMA))
        pipe = HunyuanVideoPipeline(text_encoder=encoder, **made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_pipeline(kind: str, seed: int = 0, **changes: Any) -> HunyuanVideoImageToVideoPipeline:
    """kind: latent_concat or token_replace."""
    channels = {"latent_concat": 9, "token_replace": 4}[kind]
    with tiny.seeded(seed):
        made = parts(in_channels=channels, image_condition_type=kind, **changes)
        processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
        pipe = HunyuanVideoImageToVideoPipeline(text_encoder=llava(len(made["tokenizer"])), image_processor=processor, **made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def skyreels(seed: int = 0) -> HunyuanSkyreelsImageToVideoPipeline:
    with tiny.seeded(seed):
        made = parts(sure=True, in_channels=8)
        encoder = LlamaModel(LlamaConfig(vocab_size=len(made["tokenizer"]), pad_token_id=0, **LLAMA))
        pipe = HunyuanSkyreelsImageToVideoPipeline(text_encoder=encoder, **made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SPEC = {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 24, "negative": "a red square"}
TOLD = {**SPEC, "guidance": 6.0, "true_guidance": 3.0}
CASES = [
    Case("hunyuan-video", pipeline, TOLD),
    Case("hunyuan-video-untold", lambda: pipeline(guidance_embeds=False), {**SPEC, "guidance": 3.0}),
    Case("hunyuan-concat", lambda: image_pipeline("latent_concat"), {**TOLD, "frames": 9}, images=True),
    Case("hunyuan-replace", lambda: image_pipeline("token_replace"), TOLD, images=True),
    Case("skyreels", skyreels, {**TOLD, "guidance": 1.0}, images=True),
]
