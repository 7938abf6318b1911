"""Stage `flow`: the velocity network, trained on imperfect captions that a frozen text encoder reads."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from flowrl.shapes.loop import Job, trapezoid
from flowrl.shapes_video import verify
from flowrl.shapes_video.autoencoder import decode, prescribed
from flowrl.shapes_video.mislabel import mislabel
from flowrl.shapes_video.networks import LATENT, LAYERS, WIDTH, transformer
from flowrl.shapes_video.render import render
from flowrl.shapes_video.text import embed, token_ids
from flowrl.shapes_video.tokenizer import LENGTH
from flowrl.shapes_video.world import TAGS, Row, captions, some

BATCH = 32
POOL = 12_000  # videos that are drawn once
WORDINGS = 4  # imperfect captions of each video; a visit takes one of them
EMPTY = 0.1  # share of captions replaced by ""
LONG = 0.04  # share of batches whose captions are padded to LONG_LENGTH instead of LENGTH
LONG_LENGTH = 512  # what diffusers pads to unless told otherwise
# sigma = sigmoid(N(MEAN, SPREAD^2)), as in the embedded image model.
MEAN, SPREAD = 1.0, 1.4
RATE = 2e-3  # AdamW
# The rate: up to step WARM, constant to the share HOLD of all steps, down to FLOOR of it at the share LAND, flat to the end.
WARM, HOLD, LAND, FLOOR, STEPS = 100, 0.525, 0.8, 0.03, 4_000
DECAY = 0.998  # of the moving average
SAMPLING_STEPS = 20
SHIFT = 3.0  # of the schedule, as Wan's at small sizes
VIDEOS = 2  # of each caption, when it is measured on the way
PART = 96  # videos sampled at once


@dataclass(frozen=True)
class Pool:
    """latents [N, 8, 3, 8, 8] float16, captions [N, WORDINGS] as rows of words [M, LENGTH, 64]; the last of these is ""."""

    latents: Tensor
    captions: Tensor
    words: Tensor


def network(seed: int, layers: int = LAYERS, width: int = WIDTH) -> nn.ModuleDict:
    """An untrained `transformer`."""
    torch.manual_seed(seed)
    return nn.ModuleDict({"transformer": transformer(layers, width)})


@torch.no_grad()
def listen(net: nn.Module, words: Tensor) -> None:
    """Has the transformer's receiving layer see (x - mean) / deviation of each input over the captions' own tokens."""
    said = words[(words != 0).any(-1)]
    linear = net.condition_embedder.text_embedder.linear_1
    linear.weight /= said.std(0).clamp(min=0.05)
    linear.bias.copy_(-linear.weight @ said.mean(0))


def _said(it: Row, rng: np.random.Generator, known: Mapping[str, int]) -> str:
    """An imperfect caption of a row; no caption of a held-out composition is ever shown, not even as a wrong one."""
    while (text := mislabel(it, rng)["prompt"]) not in known:
        pass
    return text


@torch.no_grad()
def pool(encoder: UMT5EncoderModel, seed: int, size: int | None = None) -> Pool:
    """`size` (None: POOL) videos of training captions; each depends on (seed, index) alone."""
    size = size or POOL
    rows = some(captions("train"), size, seed)
    texts = sorted(it["prompt"] for it in captions("train"))
    index = {text: i for i, text in enumerate(texts)}
    latents, said = [], []
    for first in range(0, size, 500):
        part = range(first, min(first + 500, size))
        latents.append(prescribed(np.stack([render(rows[i], np.random.default_rng((seed, 1, i))) for i in part])).half())
        for i in part:
            rng = np.random.default_rng((seed, 2, i))
            said.append([index[_said(rows[i], rng, index)] for _ in range(WORDINGS)])
    return Pool(torch.cat(latents), torch.tensor(said), embed(encoder, token_ids([*texts, ""])))


@dataclass(frozen=True)
class Batch:
    """A step's data: x0, x1 [B, 8, 3, 8, 8], sigma [B], words [B, LENGTH or LONG_LENGTH, 64]."""

    x0: Tensor
    x1: Tensor
    sigma: Tensor
    words: Tensor


def batch(data: Pool, step: int, seed: int) -> Batch:
    """A step's data from the pool; all its randomness depends on (seed, step)."""
    rng = torch.Generator().manual_seed(seed * 2**33 + 2**32 + step)
    videos = torch.randint(len(data.latents), (BATCH,), generator=rng)
    said = data.captions[videos, torch.randint(WORDINGS, (BATCH,), generator=rng)]
    said = torch.where(torch.rand(BATCH, generator=rng) < EMPTY, len(data.words) - 1, said)
    words = data.words[said]
    if float(torch.rand((), generator=rng)) < LONG:
        words = nn.functional.pad(words, (0, 0, 0, LONG_LENGTH - LENGTH))
    sigma = (MEAN + SPREAD * torch.randn(BATCH, generator=rng)).sigmoid()
    return Batch(data.latents[videos].float(), torch.randn(BATCH, *LATENT, generator=rng), sigma, words)


def velocity_loss(net: nn.Module, data: Batch) -> Tensor:
    """Mean of |u(x_sigma) - (x1 - x0)|^2 with x_sigma = (1 - sigma) x0 + sigma x1; the network is told 1000 sigma."""
    at = data.sigma.view(-1, 1, 1, 1, 1)
    u = net(
        hidden_states=(1 - at) * data.x0 + at * data.x1,
        timestep=1000 * data.sigma,
        encoder_hidden_states=data.words,
        return_dict=False,
    )[0]
    return nn.functional.mse_loss(u, data.x1 - data.x0)


@torch.no_grad()
def sample(net: nn.Module, words: Tensor, x: Tensor) -> Tensor:
    """Latents by SAMPLING_STEPS Euler steps from noise x, without guidance."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(SAMPLING_STEPS)
    for t in scheduler.timesteps:
        u = net(hidden_states=x, timestep=t.expand(len(x)), encoder_hidden_states=words, return_dict=False)[0]
        x = scheduler.step(u, t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def videos(net: nn.Module, model: AutoencoderKLWan, encoder: UMT5EncoderModel, prompts: Sequence[str], seed: int) -> np.ndarray:
    """One video [9, 32, 32, 3] of each prompt."""
    noise = torch.randn(len(prompts), *LATENT, generator=torch.Generator().manual_seed(seed))
    words = embed(encoder, token_ids(prompts))
    parts = [sample(net, words[i : i + PART], noise[i : i + PART]) for i in range(0, len(prompts), PART)]
    return decode(model, torch.cat(parts))


def measured(net: nn.Module, model: AutoencoderKLWan, encoder: UMT5EncoderModel, rows: list[Row], seed: int) -> dict[str, float]:
    """Of VIDEOS videos a row: strict accuracy overall and of every task; `moves`, where only the motion counts; `soft`."""
    rows = rows * VIDEOS
    drawn = videos(net, model, encoder, [it["prompt"] for it in rows], seed)
    right = verify.score(drawn, rows)
    tags = np.array([it["tag"] for it in rows])
    out = {"overall": right, "moves": verify.moves(drawn, rows), "soft": verify.score(drawn, rows, "soft")}
    return {k: float(v.mean()) for k, v in out.items()} | {name: float(right[tags == name].mean()) for name in TAGS}


def job(nets: nn.ModuleDict, averages: nn.ModuleDict, data: Pool, steps: int, seed: int) -> Job:
    """The stage without its evaluation; `nets` have been through `listen`."""

    def loss(step: int) -> Tensor:
        return velocity_loss(nets["transformer"], batch(data, step, seed))

    # fused: one pass over the parameters, ten times faster than the loop on a CPU.
    optimizer = torch.optim.AdamW(nets.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return Job(nets, [optimizer], loss, trapezoid(WARM, HOLD * steps, LAND * steps, FLOOR), steps, averages, DECAY)


def averaged(nets: nn.ModuleDict) -> nn.ModuleDict:
    """A copy that holds the moving average."""
    return deepcopy(nets).requires_grad_(False).eval()
