"""FLUX.1: told its guidance (dev), not told (schnell), and editing a picture (Kontext)."""

from __future__ import annotations

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from tiny import VAE, WORDS, lively, seeded, text_encoder, tokenizer
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from .case import Case

TRANSFORMER = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
DEEP = {
    **VAE,
    "block_out_channels": (4, 4, 8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 6,
    "up_block_types": ("UpDecoderBlock2D",) * 6,
    "norm_num_groups": 1,
}
"""32 pixels a latent, so that one of Kontext's own resolutions is about 256 tokens; small groups would blow up rounding."""


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS)]
    return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def t5_encoder(vocab: int, width: int = 24) -> T5EncoderModel:
    config = T5Config(vocab_size=vocab, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_encoder_decoder=False)
    config.initializer_factor = 1.0
    return T5EncoderModel(config)


def pipeline(guided: bool, edits: bool = False, seed: int = 0) -> FluxPipeline | FluxKontextPipeline:
    kind = FluxKontextPipeline if edits else FluxPipeline
    with seeded(seed):
        words, pieces = tokenizer(), t5_tokenizer()
        transformer = FluxTransformer2DModel(**TRANSFORMER, guidance_embeds=guided)
        vae = AutoencoderKL(**(DEEP if edits else VAE))
        clip, t5 = CLIPTextModel(text_encoder(len(words)).config), t5_encoder(len(pieces))
        lively(transformer, vae)
        if edits:
            vae.decoder.conv_out.weight.data.div_(3.0)  # a deep decoder of 4 channels is lively enough
    pipe = kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        vae=vae,
        text_encoder=clip,
        tokenizer=words,
        text_encoder_2=t5,
        tokenizer_2=pieces,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SPEC = {"max_sequence_length": 12, "height": 32, "width": 48}
CASES = [
    Case("flux-dev", lambda: pipeline(True), {**SPEC, "guidance": 3.5, "true_guidance": 3.0, "negative": "a blue square"}),
    Case("flux-schnell", lambda: pipeline(False), SPEC),
    Case(
        "flux-kontext",
        lambda: pipeline(True, edits=True),
        {**SPEC, "height": 128, "width": 192, "guidance": 2.5, "true_guidance": 2.0},
        images=True,
        size=(150, 100),
    ),
]
