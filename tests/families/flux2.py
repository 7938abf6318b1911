"""FLUX.2 klein: base, distilled, and editing a picture."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tiny import VAE, WORDS, lively, seeded
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from .case import Case

TRANSFORMER: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 3 * 16,
    "axes_dims_rope": (4, 4, 4, 4),
    "mlp_ratio": 1.0,
    "guidance_embeds": False,
}
AUTOENCODER = {name: value for name, value in VAE.items() if name not in ("scaling_factor", "shift_factor")}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Letters, and the words of WORDS as they follow a space."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        whole = "Ġ"
        for letter in word:
            if (whole, letter) not in merges:
                merges.append((whole, letter))
            whole += letter
            vocab.setdefault(whole, len(vocab))
    words = Qwen2Tokenizer(vocab=vocab, merges=merges)
    words.chat_template = TEMPLATE
    return words


def qwen3(vocab: int, layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            initializer_range=0.3,
        )
    )


def klein(distilled: bool = False, seed: int = 0) -> Flux2KleinPipeline:
    with seeded(seed):
        words = qwen_tokenizer()
        transformer, vae = Flux2Transformer2DModel(**TRANSFORMER), AutoencoderKLFlux2(**AUTOENCODER)
        text = qwen3(len(words), 28)  # the pipeline reads layers 9, 18 and 27
        lively(transformer, vae)
        with torch.no_grad():
            vae.bn.running_mean.normal_(std=0.3)
            vae.bn.running_var.uniform_(0.5, 1.5)
    pipe = Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        is_distilled=distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SPEC = {"max_sequence_length": 24, "height": 32, "width": 48}
CASES = [
    Case("flux2-klein-base", klein, {**SPEC, "guidance": 4.0}),
    Case("flux2-klein", lambda: klein(True, seed=1), {**SPEC, "guidance": 4.0}),
    Case("flux2-klein-edit", klein, {**SPEC, "guidance": 3.0, "edit": True}, images=True, size=(70, 90)),
]
