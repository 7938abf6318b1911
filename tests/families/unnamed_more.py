"""More families without a file: guidance told to the network, a guider, sigmas that rise, shifted levels of a diffusion, lists."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMochi,
    ClassifierFreeGuidance,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from tiny import VAE, seeded, text_encoder, tokenizer
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from .case import Case
from .unnamed import LENGTH, flow, lively, pieces, quiet, t5, vae, words

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def speaking(content: str, before: int = 0) -> PreTrainedTokenizerFast:
    """Words with a chat template that shows what users say, after as many words.  content: how a message's text is found."""
    names, first = words(), "a " * before
    names.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}" + first + "{{ " + content + " }}{% endif %}{% endfor %}"
    )
    return names


def flux2() -> Flux2Pipeline:
    """Guidance told to the network; latents taken as a picture and kept as tokens."""
    with seeded(6):
        network = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            mlp_ratio=1.0,
            timestep_guidance_channels=16,
        )
        lively(network, scale=2.0)
        coder = AutoencoderKLFlux2(**{name: part for name, part in VAE.items() if name not in ("scaling_factor", "shift_factor")})
        with torch.no_grad():
            coder.decoder.conv_out.weight.mul_(3.0)
            coder.bn.running_mean.normal_(std=0.3)
            coder.bn.running_var.uniform_(0.5, 1.5)
        names = speaking("m['content'][0]['text']")
        text = MistralConfig(vocab_size=len(names), num_hidden_layers=31, head_dim=8, **TEXT)  # layers 10, 20 and 30 are read
        sight = PixtralVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        )
        encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=sight, image_token_index=3))
        return quiet(Flux2Pipeline(flow(use_dynamic_shifting=True), coder, encoder, names, network))


def hunyuan15() -> HunyuanVideo15Pipeline:
    """A guider; channels for a first frame behind the state, empty here; its 1985 tokens of text and sight made few."""
    with seeded(7):
        network = HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=1.0,
            text_embed_dim=16,
            text_embed_2_dim=16,
            image_embed_dim=8,
            rope_axes_dim=(2, 2, 4),
        )
        lively(network, scale=2.0)
        coder = AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8, 8),
            layers_per_block=1,
        )
        lively(coder.decoder, scale=1.2)
        names = speaking("m['content']", before=108)  # which are cut off again
        config = Qwen2_5_VLTextConfig(
            vocab_size=len(names),
            num_hidden_layers=3,
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            **TEXT,
        )
        glyphs, guider = ByT5Tokenizer(), ClassifierFreeGuidance(6.0)
        texts = (t5(len(glyphs)), glyphs)
        pipe = HunyuanVideo15Pipeline(Qwen2_5_VLTextModel(config), names, network, coder, flow(shift=5.0), *texts, guider)
        pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 16, 4, 4
        return quiet(pipe)


def mochi() -> MochiPipeline:
    """Sigmas that rise to 1 at data, answers that point to it, a schedule of its own."""
    with seeded(8):
        network = MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=4,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=LENGTH,
        )
        lively(network, scale=2.0)
        coder = AutoencoderKLMochi(
            latent_channels=4,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=None,
            latents_std=None,
        )
        lively(coder.decoder, scale=1.2)
        names = pieces()
        return quiet(MochiPipeline(flow(invert_sigmas=True), coder, t5(len(names)), names, network))


def cogvideox() -> CogVideoXPipeline:
    """Levels of a diffusion that end without any signal, from a sampler that looks back; u = v; integer times."""
    with seeded(9):
        network = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=LENGTH,
            use_rotary_positional_embeddings=True,
        )
        lively(network, scale=2.0)
        coder = AutoencoderKLCogVideoX(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_height=32,
            sample_width=32,
        )
        lively(coder.decoder, scale=1.5)
        names = pieces()
        levels = {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction", **levels)
        return quiet(CogVideoXPipeline(names, t5(len(names)), coder, network, scheduler))


def hidream() -> HiDreamImagePipeline:
    """Four encoders, one of whose answers has the layers before the rows; the answer is negated; experts in the feed-forward.

    Its pictures have 128 x 128 latents whatever is asked, made 8 x 8 here.
    """
    with seeded(10):
        network = HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 16],
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=[0, 1],
        )
        lively(network, scale=2.0)
        letters, names, chat = tokenizer(), pieces(), words()
        llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(chat), num_hidden_layers=2, **TEXT))
        clips = [text_encoder(len(letters)), letters, text_encoder(len(letters)), letters]
        pipe = HiDreamImagePipeline(flow(shift=3.0), vae(), *clips, t5(len(names)), names, llama, chat, network)
        pipe.default_sample_size = 8
        return quiet(pipe)


CASES = [
    Case("flux2-dev", flux2, {"guidance": 4.0, "height": 32, "width": 48, "max_sequence_length": 16}),
    Case("mochi", mochi, {"guidance": 4.5, "height": 32, "width": 32, "frames": 7, "max_sequence_length": LENGTH}),
    Case("cogvideox", cogvideox, {"guidance": 6.0, "height": 32, "width": 32, "frames": 9, "max_sequence_length": LENGTH}),
]
HERE = [
    Case("hunyuan-video-1.5", hunyuan15, {"guidance": 3.0, "height": 32, "width": 32, "frames": 5}),
    Case("hidream", hidream, {"guidance": 5.0, "height": 32, "width": 32, "max_sequence_length": LENGTH}),
]
"""Made small by attributes that no folder keeps, so that they are compared in one process only."""
