"""What the comparison of styles needs of the world: an autoencoder that can draw the style, and a judge that knows it.

The embedded autoencoder has seen plain pictures only and reproduces nothing else, so no training of the flow could show a style.
Here its decoder goes on learning, on pictures between plain and styled. Its latents have a prescribed meaning (colours of 8 x 8
pixels), which styled pictures have as well, and plain ones keep theirs: the embedded flow model draws with it what it drew before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowrl.shapes import autoencoder as world
from flowrl.shapes import styles
from flowrl.shapes.render import paint, scene
from flowrl.shapes.world import Row, captions

POOL = 1000  # pictures of either kind
STEPS, BATCH, RATE = 300, 16, 3e-3


def pool(rows: list[Row], seed: int) -> tuple[Tensor, Tensor]:
    """(plain, styled) pictures [N, 3, 64, 64]; half of the styled ones fully, the others in part."""
    draws = [np.random.default_rng((seed, 11, i)) for i in range(len(rows))]
    scenes = [scene(row, draw) for row, draw in zip(rows, draws, strict=True)]
    strength = [1.0 if i % 2 else float(draw.random()) for i, draw in enumerate(draws)]
    styled = [styles.paint(it, s) for it, s in zip(scenes, strength, strict=True)]
    return world.to_tensor(np.stack([paint(it) for it in scenes])), world.to_tensor(np.stack(styled))


def latents(model: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """What the flow model is to draw for styled pictures: their prescribed meaning, [N, 4, 8, 8] on the flow's scale."""
    return (world.meaning(world.to_tensor(images)) - (model.config.shift_factor or 0.0)) * model.config.scaling_factor


def widened(model: AutoencoderKL, folder: Path, steps: int = STEPS, seed: int = 0) -> AutoencoderKL:
    """The autoencoder after its decoder has learnt the style too; from the folder where it lies there."""
    path = folder / "decoder.safetensors"
    if path.is_file():
        model.decoder.load_state_dict(load_file(path))
        return model
    plain, styled = pool(world.balanced(captions("train"), POOL, seed), seed)
    with torch.no_grad():
        kept = torch.cat([model.encode(part).latent_dist.mean for part in plain.split(200)])
    pixels, codes = torch.cat([plain, styled]), torch.cat([kept, world.meaning(styled)])
    model.decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        draw = torch.Generator().manual_seed(seed * 2**32 + step)
        # one plain picture to three styled ones: the plain ones are known
        at = torch.cat([torch.randint(POOL, (n,), generator=draw) + k for n, k in ((BATCH // 4, 0), (BATCH - BATCH // 4, POOL))])
        noise = world.NOISE / 2 * torch.rand(BATCH, 1, 1, 1, generator=draw) * torch.randn(codes[at].shape, generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(codes[at] + noise).sample
        loss = world.reconstruction_loss(decoded.float(), pixels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"decoder {step + 1}: {loss.item():.4f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.decoder.state_dict(), path)
    model.eval().requires_grad_(False)
    return model


class Judge(nn.Module):
    """Says how much of the style a picture has: convolutions of large windows and a mean, nothing of a transformer's patches."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((3, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(inside, outside, 5, 2, 2), nn.BatchNorm2d(outside), nn.ReLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.Linear(32, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [-1, 1] -> [N], from 0 (plain) to 1 (fully in the style)."""
        return torch.sigmoid(self.head(self.trunk(pixels).mean((2, 3))))[:, 0]


def judge(folder: Path, seed: int = 1) -> Judge:
    """A judge that has learnt the strength of the style on renderings of its own, blurred and noisy ones among them."""
    made, path = Judge(), folder / "judge.safetensors"
    if path.is_file():
        made.load_state_dict(load_file(path))
        return made.eval()
    rows = world.balanced(captions("train"), 1500, seed + 50)
    draws = [np.random.default_rng((seed, 12, i)) for i in range(len(rows))]
    strength = torch.tensor([float(np.clip(1.4 * d.random() - 0.2, 0, 1)) for d in draws])
    images = [styles.paint(scene(row, d), float(s)) for row, d, s in zip(rows, draws, strength, strict=True)]
    pixels = world.to_tensor(np.stack(images))
    torch.manual_seed(seed)
    made = Judge()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(500):
        draw = torch.Generator().manual_seed(seed * 2**32 + step)
        at = torch.randint(len(pixels), (48,), generator=draw)
        x = pixels[at] + 0.08 * torch.rand(48, 1, 1, 1, generator=draw) * torch.randn(48, 3, 64, 64, generator=draw)
        soft = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.lerp(x, soft, 0.7 * torch.rand(48, 1, 1, 1, generator=draw))
        loss = nn.functional.binary_cross_entropy(made(x), strength[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(made.state_dict(), path)
    return made.eval()
