"""Stage `autoencoder`: the videos' compression, and the map that makes its latents about N(0, 1)."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes_video import verify
from flowrl.shapes_video.augment import free
from flowrl.shapes_video.networks import autoencoder
from flowrl.shapes_video.render import SIZE, draw, paint
from flowrl.shapes_video.start import WHITE, linear_start
from flowrl.shapes_video.world import captions, some

BATCH = 8
# For this share of the steps CROPS squares of CROP pixels a side instead, which an object fills better.
CROPPED, CROPS, CROP = 0.25, 24, 16
RATE = 2e-3
KL = 1e-6
SQUARE = 2.0  # weight of the squared error of pixels
ALIGN = 2.0  # weight of the latents' prescribed meaning
NOISE = 0.15  # greatest deviation of the noise a decoder must bear, of a channel's own
ENCODE_EVERY = 4  # the encoder learns at every such step
STEPS = 5000
PIXELS = 4  # of a latent's side
POOL = 4000  # videos that are drawn once and trained on
FREE = 1500  # of them show objects that a generator may come by and the renderer does not
PART = 64  # videos that are encoded or decoded at once


def to_tensor(videos: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, T, H, W, 3] to float32 [N, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)


def to_videos(pixels: Tensor) -> NDArray[np.uint8]:
    """[N, 3, T, H, W] in [-1, 1] to uint8 [N, T, H, W, 3]; rounds as diffusers' video processor and PIL images do."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
    return (unit * 255).round().astype(np.uint8)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute error of the pixels plus that of their differences along height, width and time, and the squared error.

    Most pixels are background: without the squared error a blank video is a place where training rests for long.
    """
    error = decoded - pixels
    parts = [error, *(error.diff(dim=dim) for dim in (-1, -2, -3))]
    return torch.stack([part.abs().mean() for part in parts]).sum() + SQUARE * error.square().mean()


def decoded(model: AutoencoderKLWan, z: Tensor) -> Tensor:
    """`AutoencoderKLWan.decode` without its clamp to [-1, 1], beyond which nothing is learned."""
    model.clear_cache()
    x = model.post_quant_conv(z)
    parts: list[Tensor] = []
    for k in range(z.shape[2]):
        model._conv_idx = [0]
        parts.append(model.decoder(x[:, :, k : k + 1], feat_cache=model._feat_map, feat_idx=model._conv_idx, first_chunk=k == 0))
    model.clear_cache()
    return torch.cat(parts, 2)


def meaning(pixels: Tensor) -> Tensor:
    """What the latents of videos [N, 3, 9, H, W] stand for: [N, 8, 3, H / 4, W / 4].

    A latent is 4 x 4 pixels of four frames. Its channels are means over the square and the halves of its frames, of red, green,
    blue and of their range: (half, quantity). Both halves of the first latent are frame 0. Why: `flowrl.shapes.autoencoder`.
    """
    parts = torch.cat([pixels - WHITE, pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)], 1)
    means = nn.functional.avg_pool3d(parts, (1, PIXELS, PIXELS))
    halves = [(means[:, :, first::4] + means[:, :, first + 1 :: 4]) / 2 for first in (1, 3)]
    return torch.cat([torch.cat([means[:, :, :1]] * 2, 1), torch.cat(halves, 1)], 2)


@lru_cache(maxsize=1)
def scale(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and deviation [8, 1, 1, 1] of every channel of `meaning` over training videos: latents_mean and latents_std."""
    z = meaning(to_tensor(draw(some(captions("train"), 2000, seed + 6), seed + 6)))
    axes = (0, 2, 3, 4)
    return z.mean(axes).view(-1, 1, 1, 1), z.std(axes).view(-1, 1, 1, 1)


def prescribed(videos: NDArray[np.uint8]) -> Tensor:
    """Latents the flow model lives in, [N, 8, 3, 8, 8]: what the encoder learns to say of a video, at mean 0 and deviation 1."""
    mean, std = scale()
    return (meaning(to_tensor(videos)) - mean) / std


def _loss(model: AutoencoderKLWan, pool: NDArray[np.uint8], steps: int, seed: int) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed * 2**32 + step)
        small = step < CROPPED * steps
        count = CROPS if small else BATCH
        pixels = to_tensor(pool[torch.randint(len(pool), (count,), generator=rng).numpy()])
        if small:
            y, x = (PIXELS * torch.randint((SIZE - CROP) // PIXELS + 1, (2,), generator=rng)).tolist()
            pixels = pixels[..., y : y + CROP, x : x + CROP]
        z = meaning(pixels)
        # The decoder must bear what a flow model gets wrong.
        level = NOISE * torch.rand(count, 1, 1, 1, 1, generator=rng) * scale()[1]
        out = decoded(model, z + level * torch.randn(z.shape, generator=rng))
        total = reconstruction_loss(out, pixels)
        if step % ENCODE_EVERY == 0:
            posterior = model.encode(pixels).latent_dist
            align = posterior.mean - z
            total = total + ALIGN * (align.abs() + align.square()).mean() + KL * posterior.kl().mean()
        return total

    return loss


def _affine(model: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    shape = (1, model.config.z_dim, 1, 1, 1)
    return torch.tensor(model.config.latents_mean).view(shape), torch.tensor(model.config.latents_std).view(shape)


@torch.no_grad()
def encode(model: AutoencoderKLWan, videos: NDArray[np.uint8]) -> Tensor:
    """Latents the flow model lives in: (mean of the posterior - latents_mean) / latents_std, [N, 8, 3, 8, 8] float32."""
    mean, std = _affine(model)
    parts = [model.encode(to_tensor(videos[i : i + PART])).latent_dist.mean for i in range(0, len(videos), PART)]
    return (torch.cat(parts) - mean) / std


@torch.no_grad()
def decode(model: AutoencoderKLWan, latents: Tensor) -> NDArray[np.uint8]:
    """Videos of latents, as the pipeline decodes them."""
    mean, std = _affine(model)
    return np.concatenate([to_videos(model.decode(part * std + mean).sample) for part in latents.split(PART)])


def reconstruct(model: AutoencoderKLWan, videos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Videos through the autoencoder and back."""
    return decode(model, encode(model, videos))


def strict_of_decoded(model: AutoencoderKLWan, n: int, seed: int) -> float:
    """Share of `n` videos of held-out captions that the verifier accepts when they are decoded from their prescribed latents."""
    rows = some(captions("heldout"), n, seed)
    with torch.no_grad():
        out = to_videos(model.decode(meaning(to_tensor(draw(rows, seed)))).sample)
    return float(verify.score(out, rows).mean())


def train(folder: Path, steps: int, seed: int) -> Path:
    """Trains and writes `folder/autoencoder` (diffusers layout, float32 numbers that half precision holds exactly)."""
    torch.manual_seed(seed)
    model = autoencoder()
    linear_start(model)
    videos = draw(some(captions("train"), POOL - FREE, seed), seed)
    others = np.stack([paint(free(np.random.default_rng((seed, 4, i)))) for i in range(FREE)])
    pool = np.concatenate([videos, others])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    job = Job(
        modules=nn.ModuleDict({"autoencoder": model}),
        optimizers=[optimizer],
        loss=_loss(model, pool, steps, seed),
        rate=warm_cosine(steps),
        steps=steps,
        watch=lambda _: {"strict": strict_of_decoded(model, 100, seed + 1)},
        watch_every=150,
    )
    run(job, folder, "autoencoder", save_seconds=30.0)
    # What ships is half precision; everything after this stage sees the rounded weights.
    model.half().float().eval()
    mean, std = scale()
    model.register_to_config(latents_mean=mean.flatten().tolist(), latents_std=std.flatten().tolist())
    model.save_pretrained(folder / "autoencoder")
    return folder / "autoencoder"
