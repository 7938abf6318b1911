"""Components that several models share."""

from __future__ import annotations

from .card import Part

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_L = Part("CLIPTextModel", _CLIP_L, 77)
CLIP_L_PROJECTED = Part("CLIPTextModelWithProjection", _CLIP_L, 77)
CLIP_G = Part(
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    77,
)
CLIP_VISION_H = Part(
    "CLIPVisionModel",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    257,
)
_T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
T5 = Part("T5EncoderModel", {**_T5, "vocab_size": 32128}, 512)
T5_SHORT = Part("T5EncoderModel", T5.config, 256)
UMT5 = Part("UMT5EncoderModel", {**_T5, "vocab_size": 256384}, 512)
QWEN3_4B = Part(
    "Qwen3Model",
    {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    512,
)
QWEN25_VL = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
LLAMA_8B = Part(
    "LlamaModel",
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128320,
    },
    351,  # 256 of the prompt after 95 of its template
)

_KL = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
KL_4 = Part("AutoencoderKL", _KL)
KL_16 = Part("AutoencoderKL", {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False})
KL_FLUX2 = Part("AutoencoderKLFlux2")
KL_QWEN = Part("AutoencoderKLQwenImage")
KL_WAN = Part("AutoencoderKLWan")
KL_HUNYUAN = Part("AutoencoderKLHunyuanVideo")
