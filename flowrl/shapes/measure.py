"""What the shipped pipeline draws under the protocol, measured through diffusers' own pipeline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from numpy.typing import NDArray

from flowrl.shapes import protocol, verify
from flowrl.shapes.networks import LATENT
from flowrl.shapes.world import Row


def load(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of a folder in float32, without progress bars."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(seeds: Sequence[int]) -> torch.Tensor:
    """Initial latents [N, 4, 8, 8], each from its own seed."""
    return torch.stack([torch.randn(LATENT, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def pictures(
    pipe: StableDiffusion3Pipeline, prompts: Sequence[str], seeds: Sequence[int], tokens: int = 16, batch: int = 84
) -> NDArray[np.uint8]:
    """Pictures [N, 64, 64, 3] of prompts from the noise of seeds; `tokens` is the pipeline's max_sequence_length."""
    out: list[NDArray[np.uint8]] = []
    for i in range(0, len(prompts), batch):
        images = pipe(
            list(prompts[i : i + batch]),
            num_inference_steps=protocol.STEPS,
            guidance_scale=protocol.GUIDANCE,
            max_sequence_length=tokens,
            latents=noise(seeds[i : i + batch]),
            output_type="np",
        ).images
        out.append((np.asarray(images) * 255).round().astype(np.uint8))
    return np.concatenate(out)


def strict(pipe: StableDiffusion3Pipeline, rows: Sequence[Row], seeds: NDArray[np.int64], tokens: int = 16) -> NDArray[np.float64]:
    """Strict scores [captions, images] of rows with seeds [captions, images]."""
    each = seeds.shape[1]
    repeated = [row for row in rows for _ in range(each)]
    images = pictures(pipe, [row["prompt"] for row in repeated], [int(s) for s in seeds.reshape(-1)], tokens)
    return verify.score(images, repeated).reshape(len(rows), each)
