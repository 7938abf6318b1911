"""What the shipped pipeline draws under the protocol, measured through diffusers' own pipeline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray

from flowrl.shapes_video import protocol
from flowrl.shapes_video.networks import LATENT
from flowrl.shapes_video.render import FRAMES, SIZE
from flowrl.shapes_video.tokenizer import LENGTH


def load(folder: Path) -> WanPipeline:
    """The pipeline of a folder in float32, without progress bars."""
    pipe = WanPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(seeds: Sequence[int]) -> torch.Tensor:
    """Initial latents [N, 8, 3, 8, 8], each from its own seed."""
    return torch.stack([torch.randn(LATENT, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def videos(
    pipe: WanPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    tokens: int = LENGTH,
    batch: int = 96,
    guidance: float = protocol.GUIDANCE,
) -> NDArray[np.uint8]:
    """Videos [N, 9, 32, 32, 3] of prompts from the noise of seeds; `tokens` is the pipeline's max_sequence_length."""
    out: list[NDArray[np.uint8]] = []
    for i in range(0, len(prompts), batch):
        frames = pipe(
            list(prompts[i : i + batch]),
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=protocol.STEPS,
            guidance_scale=guidance,
            max_sequence_length=tokens,
            latents=noise(seeds[i : i + batch]),
            output_type="np",
        ).frames
        out.append((np.asarray(frames) * 255).round().astype(np.uint8))
    return np.concatenate(out)


def protocol_videos(pipe: WanPipeline, each: int = protocol.VIDEOS, tokens: int = LENGTH) -> NDArray[np.uint8]:
    """The protocol's videos [captions * each, 9, 32, 32, 3], caption-major."""
    rows, seeds = protocol.rows(), protocol.seeds()[:, :each]
    prompts = [row["prompt"] for row in rows for _ in range(each)]
    return videos(pipe, prompts, [int(seed) for seed in seeds.reshape(-1)], tokens)
