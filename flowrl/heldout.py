"""Held-out images: fixed prompts, fixed noise, the ODE, and what the judges say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.collect import images, scored, walk
from flowrl.dist import World
from flowrl.rewards.base import Reward, Samples
from flowrl.samplers import chains, laws
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes, cut
from flowrl.types import Policy

SEED = 2**61 - 1
"""Held-out noise: its own seed and purpose, so that no training draw coincides with it."""


@dataclass(frozen=True)
class Judged:
    """scores: judge -> float64 [captions, images], NaN = could not be scored;  diversity: mean pairwise feature distance of a caption's images;
    pixels: uint8 [captions, images, H, W, 3], zeros but for
    `local`, the captions this process drew."""

    scores: Mapping[str, np.ndarray]
    diversity: float | None
    pixels: Tensor
    local: list[int]


def judge(policy: Policy, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], judges: Mapping[str, Reward], images_each: int,
          steps: int, sizes: Sizes, world: World, features: Callable[..., np.ndarray] | None = None,
          guidance: float | None = None) -> Judged:
    """Draw `images_each` images of every prompt with `steps` Euler steps and score them. The same noise at every call."""
    plan = chains(policy.sigmas(steps), laws.ode(), (), images_each)
    blocks = cut(plan, len(prompts), sizes, 1, world.size)
    ro, local, _, _ = walk(policy, plan, prompts, blocks, sizes, Source(SEED, 0), world, "heldout", guidance=guidance)
    samples, pixels = None, None
    if ro is not None:
        mine, owned = images(policy, ro)
        samples = Samples(mine, [prompts[int(p)] for p in local], [metadata[int(p)] for p in local], owned, torch.zeros(images_each, dtype=torch.long))
        pixels = torch.zeros(len(prompts), *mine.shape[1:], dtype=torch.uint8)
        pixels[local] = mine
    states = {name: reward.init() for name, reward in judges.items()}
    scores = scored(judges, samples, states, local, (len(prompts), images_each), world)
    spread = torch.zeros(2, dtype=torch.float64, device=world.device)
    if features is not None and samples is not None:
        for row, owned in zip(samples.pixels, samples.scored, strict=True):
            spread += torch.tensor(pairwise(features(row[owned].numpy())), dtype=torch.float64, device=world.device)
    world.sum(spread)
    return Judged({name: s.values.double().numpy() for name, s in scores.items()},
                  float(spread[0] / spread[1]) if spread[1] else None, torch.zeros(0) if pixels is None else pixels, local.tolist())


def pairwise(f: np.ndarray) -> tuple[float, float]:
    """(sum of Euclidean distances over pairs, number of pairs) of features [N, D]."""
    f = np.asarray(f, dtype=np.float64)
    i, j = np.triu_indices(len(f), 1)
    return float(np.linalg.norm(f[i] - f[j], axis=1).sum()), float(len(i))
