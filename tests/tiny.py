"""Tiny random models of the real classes, so that tests run the code paths of the large ones in seconds.

Weights are scaled so that images have contrast, prompts matter and guidance shows: a parity test on grey images proves nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ("a", "red", "blue", "green", "circle", "square", "two", "three", "left", "of")
PROMPTS = ("a red circle", "two blue square left of a green circle")
TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 12,
    "qk_norm": "rms_norm",
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 1.5305,
    "shift_factor": 0.3,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def tokenizer() -> CLIPTokenizer:
    """Words of WORDS, anything else is the end token; 16 tokens a prompt."""
    vocab = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *sorted({c for w in WORDS for c in w})])}
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        vocab.setdefault(parts[-1], len(vocab))
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def text_encoder(vocab: int, hidden: int = 16) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=32,
            projection_dim=hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.5,
            initializer_factor=8.0,
        )
    )


def sd3_scheduler(dynamic: bool = False) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)


def sd3_pipeline(
    seed: int = 0, dual: bool = False, scheduler: FlowMatchEulerDiscreteScheduler | None = None
) -> StableDiffusion3Pipeline:
    """32 x 32 images from 4 x 8 x 8 latents, no T5. dual: attn2 in block 0, as SD3.5-medium. scheduler None: shift 3."""
    with seeded(seed):
        words = tokenizer()
        transformer = SD3Transformer2DModel.from_config({**TRANSFORMER, "dual_attention_layers": (0,) if dual else ()})
        vae = AutoencoderKL(**VAE)
        first, second = text_encoder(len(words)), text_encoder(len(words))
        lively(transformer, vae)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler or sd3_scheduler(),
        vae=vae,
        text_encoder=first,
        tokenizer=words,
        text_encoder_2=second,
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lively(transformer: nn.Module, vae: nn.Module) -> None:
    """Scale fresh weights until outputs are of the order of 1."""
    with torch.no_grad():
        for name, p in transformer.named_parameters():
            if p.ndim >= 2:
                p.mul_(3.0 if "proj_out" in name or "context_embedder" in name else 1.7)
        vae.decoder.conv_out.weight.mul_(3.0)


def save_sd3(folder: Path, seed: int = 0, dynamic: bool = False) -> Path:
    sd3_pipeline(seed, scheduler=sd3_scheduler(dynamic)).save_pretrained(folder)
    return folder


def excite(parameters: list[tuple[str, nn.Parameter]], scale: float = 0.3, seed: int = 7) -> None:
    """Fill trainable weights with keyed noise, so that an adapter (whose B starts at 0) does something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in parameters:
            p.copy_(torch.randn(p.shape, generator=draw) * scale)


PLAIN = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
torch.set_num_threads(1)
for case in json.load(open(sys.argv[1])):
    index = json.load(open(case["model"] + "/model_index.json"))
    absent = {part: None for part in ("text_encoder_3", "tokenizer_3") if index[part] == [None, None]}
    pipe = StableDiffusion3Pipeline.from_pretrained(case["model"], dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    if "lora" in case:
        pipe.load_lora_weights(case["lora"])
    start = torch.from_numpy(np.load(case["latents"]))
    for kind in ("np", "latent"):
        np.save(f"{case['out']}.{kind}.npy", np.asarray(pipe(latents=start.clone(), output_type=kind, **case["call"]).images))
    np.save(f"{case['out']}.sigmas.npy", pipe.scheduler.sigmas.numpy())
assert not [name for name in sys.modules if name.split(".")[0] == "flowrl"], "flowrl was imported"
"""


def run_plain(cases: list[dict[str, object]], folder: Path) -> None:
    """Run diffusers' own pipeline on every case in a process that cannot see flowrl; results are <out>.{np,latent,sigmas}.npy."""
    script, table = folder / "plain.py", folder / "cases.json"
    script.write_text(PLAIN)
    table.write_text(json.dumps(cases))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(script), str(table)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
