"""Stage `judge`: trains the second opinion on degraded renderings, half of them through the autoencoder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.shapes.augment import cells, degrade
from flowrl.shapes.autoencoder import reconstruct, to_tensor
from flowrl.shapes.judge import OTHER, Reader
from flowrl.shapes.loop import Job, run, warm_cosine

POOL = 10_000
BATCH = 48
RATE = 3e-3
STEPS = 1500


def examples(model: AutoencoderKL, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [n, 64, 64, 3] uint8 and the class of each cell [n, 4, 4]; even ones went through the autoencoder."""
    images, classes = [], []
    for i in range(n):
        rng = np.random.default_rng((seed, 3, i))
        image, table = cells(rng, OTHER)
        images.append(degrade(image, rng))
        classes.append(table)
    whole: NDArray[np.uint8] = np.stack(images)
    for i in range(0, n, 500):
        whole[i : i + 500 : 2] = reconstruct(model, np.ascontiguousarray(whole[i : i + 500 : 2]))
    return torch.from_numpy(whole), torch.from_numpy(np.stack(classes))


def train(folder: Path, assets: Path, model: AutoencoderKL, steps: int, seed: int) -> None:
    """Trains and writes `assets/shapes-judge`."""
    torch.manual_seed(seed + 1)
    net = Reader()
    images, wanted = examples(model, POOL, seed)

    def loss(step: int) -> Tensor:
        rows = torch.randint(POOL, (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**34 + step))
        return nn.functional.cross_entropy(net(to_tensor(images[rows].numpy()))[0], wanted[rows])

    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    run(Job(nn.ModuleDict({"judge": net}), [optimizer], loss, warm_cosine(steps), steps), folder, "judge")
    target_folder = assets / "shapes-judge"
    target_folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, target_folder / "model.safetensors")
    config = {"cells": [4, 4], "classes": "shape-major pairs of shape and colour, empty, something else"}
    (target_folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
