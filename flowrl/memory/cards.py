"""The models, by name. Config values that are not written here are the defaults of diffusers 0.42 and transformers 5."""

from __future__ import annotations

from . import parts
from .card import Card, Part, Shape

STABILITY = "Stability AI Community (free below 1 M USD revenue a year)"
BFL = "FLUX.1 [dev] Non-Commercial"
APACHE = "Apache-2.0"
FILMS: tuple[Shape, ...] = ((480, 832, 33), (240, 416, 17))
SD3_ENCODERS = (parts.CLIP_L_PROJECTED, parts.CLIP_G, parts.T5_SHORT)
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
_SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_WAN_I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
COUNTED = "class defaults; number of parameters as published"

UNETS = (
    Card(
        "sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline", "CreativeML OpenRAIL-M",
        Part("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}), (parts.CLIP_L,), parts.KL_4, 77, 0.86,
        source=COUNTED,
    ),
    Card(
        "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", "CreativeML OpenRAIL++-M",
        Part("UNet2DConditionModel", _SDXL), (parts.CLIP_L, parts.CLIP_G), parts.KL_4, 77, 2.57,
        shapes=((1024, 1024, 1),), source="SDXL (2307.01952); number of parameters as published",
    ),
)  # fmt: skip
SD3 = (
    Card(
        "sd3-medium", "stabilityai/stable-diffusion-3-medium-diffusers", "StableDiffusion3Pipeline", STABILITY,
        Part("SD3Transformer2DModel", _SD3), SD3_ENCODERS, parts.KL_16, 333, 2.03, source="2403.03206 (depth 24, width 1536)",
    ),
    Card(
        "sd3.5-medium", "stabilityai/stable-diffusion-3.5-medium", "StableDiffusion3Pipeline", STABILITY,
        Part(
            "SD3Transformer2DModel",
            {**_SD3, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"},
        ),
        SD3_ENCODERS, parts.KL_16, 333, 2.24, source="public copies of its transformer/config.json in two inference libraries",
    ),
    Card(
        "sd3.5-large", "stabilityai/stable-diffusion-3.5-large", "StableDiffusion3Pipeline", STABILITY,
        Part(
            "SD3Transformer2DModel",
            {
                "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
                "qk_norm": "rms_norm",
            },
        ),
        SD3_ENCODERS, parts.KL_16, 333, 8.06, source="2403.03206 (depth 38); number of parameters as published",
    ),
)  # fmt: skip
FLUX = (
    Card(
        "flux.1-dev", "black-forest-labs/FLUX.1-dev", "FluxPipeline", BFL,
        Part("FluxTransformer2DModel", {"guidance_embeds": True}), (parts.CLIP_L, parts.T5), parts.KL_16, 512, 11.9, guided=False,
        source=COUNTED,
    ),
    Card(
        "flux.1-kontext-dev", "black-forest-labs/FLUX.1-Kontext-dev", "FluxKontextPipeline", BFL,
        Part("FluxTransformer2DModel", {"guidance_embeds": True}), (parts.CLIP_L, parts.T5), parts.KL_16, 512, 11.9, guided=False,
        edits=True, source=COUNTED,
    ),
    Card(
        "flux.2-klein-4b", "black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", APACHE,
        Part(
            "Flux2Transformer2DModel",
            {
                "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
        ),
        (parts.QWEN3_4B,), parts.KL_FLUX2, 512, 3.88, guided=False,
        source="two public reimplementations (5 double and 20 single blocks, 24 heads of 128); number of parameters as published",
    ),
)  # fmt: skip
OTHERS = (
    Card(
        "z-image", "Tongyi-MAI/Z-Image", "ZImagePipeline", APACHE,
        Part("ZImageTransformer2DModel"), (parts.QWEN3_4B,), parts.KL_16, 512, 6.15, source=COUNTED,
    ),
    Card(
        "z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", APACHE,
        Part("ZImageTransformer2DModel"), (parts.QWEN3_4B,), parts.KL_16, 512, 6.15, guided=False, source=COUNTED,
    ),
    Card(
        "qwen-image", "Qwen/Qwen-Image", "QwenImagePipeline", APACHE,
        Part("QwenImageTransformer2DModel"),
        (Part("Qwen2_5_VLForConditionalGeneration", parts.QWEN25_VL, 546),), parts.KL_QWEN, 512, 20.4,
        source=f"{COUNTED}; 34 tokens of the encoder are its template",
    ),
    Card(
        "qwen-image-edit", "Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", APACHE,
        Part("QwenImageTransformer2DModel"),
        (Part("Qwen2_5_VLForConditionalGeneration", parts.QWEN25_VL, 1800),), parts.KL_QWEN, 1600, 20.4, edits=True,
        source=COUNTED, unsourced=("tokens of an edited picture in the encoder and in the network's prompt",),
    ),
)  # fmt: skip
VIDEOS = (
    Card(
        "wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", APACHE,
        Part("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}), (parts.UMT5,),
        parts.KL_WAN, 512, 1.42, shapes=FILMS, source="2503.20314 (width 1536, 12 heads, 30 layers)",
    ),
    Card(
        "wan2.1-t2v-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanPipeline", APACHE,
        Part("WanTransformer3DModel"), (parts.UMT5,), parts.KL_WAN, 512, 14.3, shapes=FILMS, source="2503.20314; class defaults",
    ),
    Card(
        "wan2.1-i2v-14b-480p", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "WanImageToVideoPipeline", APACHE,
        Part("WanTransformer3DModel", _WAN_I2V), (parts.UMT5, parts.CLIP_VISION_H), parts.KL_WAN, 512, 16.4, edits=True,
        shapes=FILMS, source="2503.20314; diffusers' conversion script; number of parameters as published",
    ),
    Card(
        "wan2.2-t2v-a14b", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "WanPipeline", APACHE,
        Part("WanTransformer3DModel"), (parts.UMT5,), parts.KL_WAN, 512, 14.3, networks=2, shapes=FILMS,
        source="two experts of the 14 B network",
    ),
    Card(
        "hunyuanvideo", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", "Tencent Hunyuan Community",
        Part("HunyuanVideoTransformer3DModel"), (parts.LLAMA_8B, parts.CLIP_L), parts.KL_HUNYUAN, 256, 12.8, guided=False,
        shapes=FILMS, source=f"{COUNTED} (13 B)", unsourced=("the vocabulary of its Llama",),
    ),
)  # fmt: skip
CARDS: dict[str, Card] = {card.name: card for card in (*UNETS, *SD3, *FLUX, *OTHERS, *VIDEOS)}
SECTIONS: dict[str, tuple[Card, ...]] = {"Images": (*SD3, *FLUX, *OTHERS, *UNETS), "Videos": VIDEOS}
