"""The networks of the embedded pipeline, untrained."""

from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from flowrl.shapes.tokenizer import END, LENGTH, PAD, START, vocabulary

LATENT = (4, 8, 8)
PATCH = 2
TEXT_WIDTH = 64
WIDTH = 128
LAYERS = 4


def autoencoder() -> AutoencoderKL:
    """64 x 64 x 3 pictures to 8 x 8 x 4 latents; 0.3 M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def text_encoder() -> CLIPTextModelWithProjection:
    """Two layers: the pipeline reads the first one's output as sequence and the second one's, projected, as pooled vector."""
    words = vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        pad_token_id=words[PAD],
        bos_token_id=words[START],
        eos_token_id=words[END],
    )
    return CLIPTextModelWithProjection(config)


def silent_encoder() -> T5EncoderModel:
    """A third text encoder that says exactly nothing: its output is zeros, as the pipeline's own are without a third encoder.

    It is there because diffusers loads a `StableDiffusion3Pipeline` folder without one only if told `text_encoder_3=None`.
    """
    words = vocabulary()
    model = T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=2 * TEXT_WIDTH,
            d_kv=8,
            d_ff=8,
            num_layers=1,
            num_heads=1,
            pad_token_id=words[PAD],
            eos_token_id=words[END],
        )
    )
    model.encoder.final_layer_norm.weight.data.zero_()
    return model


def transformer(layers: int = LAYERS, width: int = WIDTH) -> SD3Transformer2DModel:
    """The velocity network: 16 image tokens (patches of 2 x 2 latents) and the text's, 2.3 M parameters at the defaults.

    Its text width is the sum of the two encoders', so the pipeline pads nothing. A token is a cell of the renderer's grid: what an
    object looks like is one token's affair, only what goes where is between tokens.
    Every modulation and the last layer start at zero (adaLN-Zero), which diffusers leaves to whoever trains from scratch.

    Source: DiT (2212.09748), section 3.2.
    """
    model = SD3Transformer2DModel(
        sample_size=LATENT[1],
        patch_size=PATCH,
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT[1] // PATCH,
        qk_norm="rms_norm",
    )
    for name, module in model.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model
