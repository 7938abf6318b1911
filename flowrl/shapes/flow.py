"""Stage `flow`: the velocity network and the two text encoders, trained together on imperfect captions."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowrl.shapes import verify
from flowrl.shapes.autoencoder import balanced, decode, encode
from flowrl.shapes.loop import Job, rank, trapezoid
from flowrl.shapes.mislabel import mislabel
from flowrl.shapes.networks import LATENT, LAYERS, WIDTH, text_encoder, transformer
from flowrl.shapes.render import render
from flowrl.shapes.tokenizer import LENGTH, build
from flowrl.shapes.world import TAGS, Row, captions

BATCH = 64
POOL = 24_000  # pictures that are drawn and encoded once
WORDINGS = 4  # imperfect captions of each picture; a visit takes one of them
EMPTY = 0.1  # share of captions replaced by ""
LONG = 0.06  # share of batches that carry LONG_ZEROS tokens of zeros instead of LENGTH
LONG_ZEROS = 256  # what diffusers appends in place of T5 unless told otherwise
# sigma = sigmoid(N(MEAN, SPREAD^2)), noisier than the usual (0, 1): which picture it is to be is settled early in this world.
MEAN, SPREAD = 1.0, 1.4
RATE = 2e-3  # AdamW
TEXT_RATE = 1e-4  # of the text encoders, which come trained
# The rate: up to step WARM, constant to the share HOLD of all steps, down to FLOOR of it at the share LAND, flat to the end.
WARM, HOLD, LAND, FLOOR, STEPS = 100, 0.525, 0.8, 0.03, 6_000
DECAY = 0.998  # of the moving average
SAMPLING_STEPS = 20
IMAGES = 4  # of each caption, when it is measured


@dataclass(frozen=True)
class Pool:
    """latents [N, 4, 8, 8] float16 and ids [N, WORDINGS, LENGTH] of the pictures' captions."""

    latents: Tensor
    ids: Tensor


def networks(seed: int, layers: int = LAYERS, width: int = WIDTH) -> nn.ModuleDict:
    """Untrained `transformer`, `text_encoder`, `text_encoder_2`, in the order of the random numbers they take."""
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(), "transformer": transformer(layers, width)}
    )


def token_ids(prompts: Sequence[str]) -> Tensor:
    """[N, LENGTH] ids, as the pipeline makes them."""
    return build()(list(prompts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def pool(model: AutoencoderKL, indices: NDArray[np.int64], seed: int) -> Pool:
    """The pictures of the pool with these indices; each depends on (seed, index) alone.

    The rows are those of `balanced(train captions, POOL)`.
    """
    rows = balanced(captions("train"), POOL, seed)
    latents, prompts = [], []
    for part in np.array_split(indices, max(len(indices) // 2000, 1)):
        images = np.stack([render(rows[i], np.random.default_rng((seed, 1, int(i)))) for i in part])
        latents.append(encode(model, images).half())
        for i in part:
            rng = np.random.default_rng((seed, 2, int(i)))
            prompts += [mislabel(rows[i], rng)["prompt"] for _ in range(WORDINGS)]
    return Pool(torch.cat(latents), token_ids(prompts).view(-1, WORDINGS, LENGTH).to(torch.uint8))


def embed(nets: nn.ModuleDict, ids: Tensor, zeros: int = LENGTH) -> tuple[Tensor, Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` gives without a third encoder: ([B, LENGTH + zeros, 128], pooled [B, 128])."""
    outs = [nets[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    sequence = torch.cat([out.hidden_states[-2] for out in outs], -1)
    padding = sequence.new_zeros(len(ids), zeros, sequence.shape[-1])
    return torch.cat([sequence, padding], 1), torch.cat([out.text_embeds for out in outs], -1)


@dataclass(frozen=True)
class Batch:
    """A step's data: x0, x1 [B, 4, 8, 8], sigma [B], ids [B, LENGTH], and the number of zero tokens."""

    x0: Tensor
    x1: Tensor
    sigma: Tensor
    ids: Tensor
    zeros: int


def indices(step: int, seed: int, pictures: int = POOL) -> Tensor:
    """The pictures of a step, [BATCH] numbers below `pictures`."""
    return torch.randint(pictures, (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + step))


def batch(data: Pool, rows: Tensor, step: int, seed: int) -> Batch:
    """A step's data from the pool's rows; noise, sigma, wording and dropout depend on (seed, step)."""
    rng = torch.Generator().manual_seed(seed * 2**33 + 2**32 + step)
    wording = torch.randint(WORDINGS, (BATCH,), generator=rng)
    ids = data.ids[rows, wording].long()
    ids[torch.rand(BATCH, generator=rng) < EMPTY] = token_ids([""])[0]
    zeros = LONG_ZEROS if float(torch.rand((), generator=rng)) < LONG else LENGTH
    sigma = (MEAN + SPREAD * torch.randn(BATCH, generator=rng)).sigmoid()
    x1 = torch.randn(BATCH, *LATENT, generator=rng)
    return Batch(data.latents[rows].float(), x1, sigma, ids, zeros)


def share(whole: Batch) -> Batch:
    """This process's part of a batch."""
    first, world = rank()
    x0, x1, sigma, ids = (value[first::world] for value in (whole.x0, whole.x1, whole.sigma, whole.ids))
    return Batch(x0, x1, sigma, ids, whole.zeros)


def velocity_loss(nets: nn.ModuleDict, data: Batch) -> Tensor:
    """Mean of |u(x_sigma) - (x1 - x0)|^2 with x_sigma = (1 - sigma) x0 + sigma x1; the network is told 1000 sigma."""
    at = data.sigma.view(-1, 1, 1, 1)
    # math: with the fused attention, whose backward is slow in bfloat16 on a CPU, a step took a fifth longer.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        sequence, pooled = embed(nets, data.ids, data.zeros)
        u = nets["transformer"](
            hidden_states=(1 - at) * data.x0 + at * data.x1,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=1000 * data.sigma,
            return_dict=False,
        )[0]
    return nn.functional.mse_loss(u.float(), data.x1 - data.x0)


@torch.no_grad()
def sample(nets: nn.ModuleDict, prompts: Sequence[str], x: Tensor, shift: float, zeros: int = LENGTH) -> Tensor:
    """Latents of the prompts by SAMPLING_STEPS Euler steps from noise x, without guidance, in bfloat16 autocast."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(SAMPLING_STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        sequence, pooled = embed(nets, token_ids(prompts), zeros)
        for t in scheduler.timesteps:
            u = nets["transformer"](
                hidden_states=x,
                encoder_hidden_states=sequence,
                pooled_projections=pooled,
                timestep=t.expand(len(x)),
                return_dict=False,
            )[0]
            x = scheduler.step(u.float(), t, x, return_dict=False)[0]
    return x


def strict(nets: nn.ModuleDict, model: AutoencoderKL, rows: list[Row], seed: int, shift: float) -> dict[str, float]:
    """Strict accuracy of IMAGES pictures a row: overall and of every task."""
    rows = rows * IMAGES
    noise = torch.randn(len(rows), *LATENT, generator=torch.Generator().manual_seed(seed))
    prompts = [row["prompt"] for row in rows]
    latents = [sample(nets, prompts[i : i + 84], noise[i : i + 84], shift) for i in range(0, len(rows), 84)]
    right = verify.score(decode(model, torch.cat(latents)), rows)
    tags = np.array([row["tag"] for row in rows])
    return {"overall": float(right.mean())} | {tag: float(right[tags == tag].mean()) for tag in TAGS}


def job(nets: nn.ModuleDict, averages: nn.ModuleDict, data: Pool, steps: int, seed: int) -> Job:
    """The stage without its evaluation; `data` is the whole pool, `nets` have been through `text.listen`."""

    def loss(step: int) -> Tensor:
        return velocity_loss(nets, share(batch(data, indices(step, seed, len(data.latents)), step, seed)))

    texts = [p for name in ("text_encoder", "text_encoder_2") for p in nets[name].parameters()]
    groups = [{"params": list(nets["transformer"].parameters()), "lr": RATE}, {"params": texts, "lr": TEXT_RATE}]
    # fused: one pass over the parameters, ten times faster than the loop on a CPU.
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return Job(nets, [optimizer], loss, trapezoid(WARM, HOLD * steps, LAND * steps, FLOOR), steps, averages, DECAY)


def averaged(nets: nn.ModuleDict) -> nn.ModuleDict:
    """A copy that holds the moving average."""
    return deepcopy(nets).requires_grad_(False).eval()
