"""Stage `autoencoder`: the pictures' compression, and the affine map that makes its latents about N(0, 1)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from flowrl.shapes import verify
from flowrl.shapes.augment import crowd
from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.networks import autoencoder
from flowrl.shapes.render import draw, paint
from flowrl.shapes.world import TAGS, Row, captions

BATCH = 16
RATE = 3e-3
KL = 1e-6
ALIGN = 2.0  # weight of the latents' prescribed meaning
NOISE = 0.12  # greatest standard deviation of the noise a decoder must bear, before scaling
WHITE = 0.82  # about the background, in [-1, 1]
STEPS = 4000
PIXELS = 8  # of a latent's side
POOL = 6000  # pictures that are drawn once and trained on
CROWDS = 1500  # of them show objects of any kinds anywhere: a generator does not keep to the world's layouts


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(pixels: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] in [-1, 1] to uint8 [N, H, W, 3]; rounds as diffusers' image processor does."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return (unit * 255).round().astype(np.uint8)


def balanced(rows: list[Row], n: int, seed: int) -> list[Row]:
    """`n` rows drawn with every task equally likely."""
    rng = np.random.default_rng(seed)
    by_tag = [[row for row in rows if row["tag"] == tag] for tag in TAGS]
    return [by_tag[t][rng.integers(len(by_tag[t]))] for t in rng.integers(len(TAGS), size=n)]


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute error of the pixels plus that of their differences along both axes."""
    error = decoded - pixels
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def meaning(pixels: Tensor) -> Tensor:
    """What the latents of pictures [N, 3, 64, 64] stand for: means over 8 x 8 pixels of red, green, blue and of their range.

    Left to itself the encoder lines the six colours up on one axis, green and cyan closer than the noise of a flow model; in these
    coordinates they are all far apart, and so is every colour from the background, which lies near 0.
    """
    parts = torch.cat([pixels - WHITE, pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)], 1)
    return nn.functional.avg_pool2d(parts, PIXELS)


def _loss(model: AutoencoderKL, pool: Tensor, seed: int) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed * 2**32 + step)
        pixels = pool[torch.randint(len(pool), (BATCH,), generator=rng)]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=rng)
            level = NOISE * torch.rand(BATCH, 1, 1, 1, generator=rng)
            decoded = model.decode(posterior.mean + (posterior.std + level) * noise).sample
        align = (posterior.mean.float() - meaning(pixels)).abs().mean()
        return reconstruction_loss(decoded.float(), pixels) + ALIGN * align + KL * posterior.kl().mean()

    return loss


@torch.no_grad()
def encode(model: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """Latents the flow model lives in: (mean of the posterior - shift) * scale, [N, 4, 8, 8] float32."""
    parts = [model.encode(to_tensor(images[i : i + 250])).latent_dist.mean for i in range(0, len(images), 250)]
    return (torch.cat(parts) - (model.config.shift_factor or 0.0)) * model.config.scaling_factor


@torch.no_grad()
def decode(model: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    """Pictures of latents, as the pipeline decodes them."""
    at = latents / model.config.scaling_factor + (model.config.shift_factor or 0.0)
    return np.concatenate([to_images(model.decode(part).sample) for part in at.split(250)])


def reconstruct(model: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures through the autoencoder and back."""
    return decode(model, encode(model, images))


def strict_of_reconstructions(model: AutoencoderKL, n: int, seed: int) -> float:
    """Share of `n` reconstructed pictures of held-out captions that the verifier accepts."""
    images, rows = draw(balanced(captions("heldout"), n, seed), seed)
    return float(verify.score(reconstruct(model, images), rows).mean())


def train(folder: Path, steps: int, seed: int) -> Path:
    """Trains and writes `folder/autoencoder` (diffusers layout, float32 numbers that half precision holds exactly)."""
    torch.manual_seed(seed)
    model = autoencoder()
    images, _ = draw(balanced(captions("train"), POOL - CROWDS, seed), seed)
    crowds = np.stack([paint(crowd(np.random.default_rng((seed, 4, i)))) for i in range(CROWDS)])
    pool = to_tensor(np.concatenate([images, crowds]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    job = Job(
        modules=nn.ModuleDict({"autoencoder": model}),
        optimizers=[optimizer],
        loss=_loss(model, pool, seed),
        rate=warm_cosine(steps),
        steps=steps,
        watch=lambda _: {"strict": strict_of_reconstructions(model, 300, seed + 1)},
        watch_every=700,
    )
    run(job, folder, "autoencoder")
    # What ships is half precision; everything after this stage sees the rounded weights.
    model.half().float().eval()
    latents = encode(model, images[:2000])
    # The mean and the deviation of what encode() gave with the identity map.
    raw = latents / model.config.scaling_factor + (model.config.shift_factor or 0.0)
    model.register_to_config(shift_factor=float(raw.mean()), scaling_factor=float(1 / raw.std()))
    model.save_pretrained(folder / "autoencoder")
    return folder / "autoencoder"
