"""The networks of the embedded video pipeline, untrained."""

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from flowrl.shapes_video.tokenizer import END, PAD, vocabulary

CHANNELS = 8
LATENT = (CHANNELS, 3, 8, 8)
TEXT_WIDTH = 64
WIDTH = 128
LAYERS = 4


def autoencoder() -> AutoencoderKLWan:
    """9 frames of 32 x 32 x 3 to 3 x 8 x 8 latents of 8 channels (frame 0, frames 1 to 4, frames 5 to 8); 0.5 M parameters."""
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def text_encoder() -> UMT5EncoderModel:
    """Two layers over the tokens of `tokenizer`; 0.1 M parameters."""
    words = vocabulary()
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=words[PAD],
            eos_token_id=words[END],
            decoder_start_token_id=words[PAD],
        )
    )


@torch.no_grad()
def transformer(layers: int = LAYERS, width: int = WIDTH) -> WanTransformer3DModel:
    """The velocity network: 48 video tokens (patches of 1 x 2 x 2 latents), 1.2 M parameters at the defaults.

    Every gate and modulation and the last layer start at zero (adaLN-Zero), which diffusers leaves to whoever trains from scratch.

    Source: DiT (2212.09748), section 3.2.
    """
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=4 * width,
        num_layers=layers,
        rope_max_seq_len=32,
    )
    for table in (model.scale_shift_table, *(block.scale_shift_table for block in model.blocks)):
        table.zero_()
    for linear in (model.proj_out, model.condition_embedder.time_proj):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model
