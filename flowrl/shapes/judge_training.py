"""Stage `judge`: trains the second opinion on degraded renderings, half of them through the autoencoder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.shapes.augment import crowd, degrade, stretched
from flowrl.shapes.autoencoder import reconstruct, to_tensor
from flowrl.shapes.judge import GRID, PAIRS, Reader
from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.render import SIZE, Scene, paint
from flowrl.shapes.world import COLORS, SHAPES

POOL = 12_000
BATCH = 48
RATE = 3e-3
OTHER = 0.12  # share of pictures whose objects are squeezed out of shape


def target(it: Scene, other: bool) -> NDArray[np.float32]:
    """Density [PAIRS + 1, 16, 16]: every object is a unit mass, shared bilinearly among the four cells around its centre."""
    out = np.zeros((PAIRS + 1, GRID, GRID), np.float32)
    for name, color, (x, y, _) in zip(it.names, it.colors, it.boxes, strict=True):
        channel = PAIRS if other else SHAPES.index(name) * len(COLORS) + COLORS.index(color)
        u, v = x * GRID / SIZE - 0.5, y * GRID / SIZE - 0.5
        column, line = int(np.clip(u, 0, GRID - 2)), int(np.clip(v, 0, GRID - 2))
        a, b = float(np.clip(u - column, 0, 1)), float(np.clip(v - line, 0, 1))
        out[channel, line : line + 2, column : column + 2] += np.outer((1 - b, b), (1 - a, a))
    return out


def examples(model: AutoencoderKL, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [n, 64, 64, 3] uint8 and densities [n, PAIRS + 1, 16, 16] float16; even ones went through the autoencoder."""
    images, targets = [], []
    for i in range(n):
        rng = np.random.default_rng((seed, 3, i))
        it = crowd(rng)
        # A squeezed picture moves its objects; one in the middle stays where it is.
        other = len(it.names) == 1 and rng.random() < OTHER * 5
        if other:
            it = Scene(it.background, it.names, ((32.0, 32.0, it.boxes[0][2] * 1.2),), it.colors, it.rgb)
        image = stretched(paint(it), rng) if other else paint(it)
        images.append(degrade(image, rng))
        targets.append(target(it, other).astype(np.float16))
    whole = np.stack(images)
    for i in range(0, n, 500):
        whole[i : i + 500 : 2] = reconstruct(model, np.ascontiguousarray(whole[i : i + 500 : 2]))
    return torch.from_numpy(whole), torch.from_numpy(np.stack(targets))


def loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of the densities, whose optimum is their mean so that sums count, and Huber error of the sums themselves.

    The first is summed over maps and cells: an error of the sums alone is least, at first, for maps that stay empty for good.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum((1, 2, 3)).mean()
    counts = nn.functional.smooth_l1_loss(logits.sigmoid().sum((2, 3)), wanted.sum((2, 3)), beta=0.2, reduction="none")
    return entropy + counts.sum(1).mean()


def train(folder: Path, assets: Path, model: AutoencoderKL, steps: int, seed: int) -> None:
    """Trains and writes `assets/shapes-judge`."""
    torch.manual_seed(seed + 1)
    net = Reader()
    images, wanted = examples(model, POOL, seed)

    def step_loss(step: int) -> Tensor:
        rows = torch.randint(POOL, (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**34 + step))
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = net(to_tensor(images[rows].numpy()))
        return loss(logits.float(), wanted[rows].float())

    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    job = Job(nn.ModuleDict({"judge": net}), [optimizer], step_loss, warm_cosine(steps), steps)
    run(job, folder, "judge")
    target_folder = assets / "shapes-judge"
    target_folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, target_folder / "model.safetensors")
    config = {"shapes": SHAPES, "colors": COLORS, "grid": GRID, "maps": "shape-major pairs, then everything else"}
    (target_folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
