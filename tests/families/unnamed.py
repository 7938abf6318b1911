"""Families without a file of their own, and one pipeline whose conventions nobody could guess."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tiny import VAE, WORDS, seeded
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .case import Case

LENGTH = 8


def words() -> PreTrainedTokenizerFast:
    """Words of WORDS, for decoders such as Gemma and GLM."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS])}
    whole = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", padding_side="right"
    )


def pieces() -> T5Tokenizer:
    every = ["▁", *(f"▁{word}" for word in WORDS), *sorted({letter for word in WORDS for letter in word})]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    return T5Tokenizer(vocab=[*special, *((piece, -1.0 - i / 100) for i, piece in enumerate(every))], extra_ids=0)


def t5(vocab: int) -> T5EncoderModel:
    config = T5Config(vocab_size=vocab, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0)
    return T5EncoderModel(config)


def decoder(kind: type[Any], config: type[Any], vocab: int) -> Any:
    """A tiny Gemma 2 or GLM."""
    return kind(
        config(
            vocab_size=vocab,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
            initializer_range=0.5,
        )
    )


def lively(*parts: nn.Module, scale: float = 1.7) -> None:
    with torch.no_grad():
        for part in parts:
            for name, p in part.named_parameters():
                if p.ndim >= 2 and "scale_shift" not in name:
                    p.mul_(scale)


def vae(**changes: Any) -> AutoencoderKL:
    made = AutoencoderKL(**{**VAE, **changes})
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(3.0)
    return made


def flow(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**settings)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lumina2() -> Lumina2Pipeline:
    """Negated answers, time 1 - t, text padded to a length with a mask."""
    with seeded(0):
        network = Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(64, 16, 16),
            cap_feat_dim=16,
        )
        lively(network, scale=1.5)
        names = words()
        # eight pixels a latent, whatever its autoencoder: with another it draws another size than it is asked for
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        coder = vae(block_out_channels=(8, 16, 16, 16), **kinds)
        return quiet(Lumina2Pipeline(network, flow(shift=6.0), coder, decoder(Gemma2Model, Gemma2Config, len(names)), names))


def chroma() -> ChromaPipeline:
    """Packed latents, position ids without a batch, an attention mask."""
    with seeded(2):
        network = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
        lively(network, scale=2.0)
        names = pieces()
        scheduler = flow(use_dynamic_shifting=True)
        return quiet(ChromaPipeline(scheduler, vae(), t5(len(names)), names, network))


def ltx() -> LTXPipeline:
    """A video as packed tokens, sizes as numbers, two predictions in one call."""
    with seeded(3):
        network = LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        )
        lively(network, scale=2.0)
        decoder_ = AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            patch_size=1,
        )
        lively(decoder_.decoder, scale=1.5)
        names = pieces()
        scheduler = flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
        return quiet(LTXPipeline(scheduler, decoder_, t5(len(names)), names, network))


def sana() -> SanaPipeline:
    """A multistep flow scheduler, which is replaced; a complex instruction before the prompt is switched off by its length."""
    with seeded(4):
        network = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
        )
        lively(network, scale=1.5)
        coder = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.5,
        )
        lively(coder.decoder, scale=2.0)
        names = words()
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        return quiet(SanaPipeline(names, decoder(Gemma2Model, Gemma2Config, len(names)), coder, network, scheduler))


def pixart() -> PixArtSigmaPipeline:
    """A variance-preserving diffusion that predicts its noise and a variance, which is dropped; DPM-Solver is replaced."""
    with seeded(5):
        network = PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        )
        lively(network, scale=2.0)
        names = pieces()
        scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02)
        return quiet(PixArtSigmaPipeline(names, t5(len(names)), vae(shift_factor=None), network, scheduler))


CASES = [
    Case("lumina2", lumina2, {"guidance": 4.0, "height": 32, "width": 32, "max_sequence_length": 32}),
    # diffusers 0.42.1 drops the attention mask of Chroma's single blocks under checkpointing
    Case("chroma", chroma, {"guidance": 4.0, "height": 32, "width": 32, "max_sequence_length": LENGTH}, saving=(False,)),
    Case("ltx", ltx, {"guidance": 3.0, "height": 32, "width": 32, "frames": 9, "max_sequence_length": LENGTH}),
    Case("sana", sana, {"guidance": 4.5, "height": 32, "width": 32, "max_sequence_length": LENGTH}),
]
WHOLE = Case("pixart", pixart, {"guidance": 4.5, "height": 32, "width": 32, "max_sequence_length": LENGTH})
"""diffusers puts no adapters into its network."""
