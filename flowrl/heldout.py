"""Held-out images: fixed prompts, fixed noise, the ODE, and what the judges say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowrl.collect import draw, scored
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.rewards.base import Reward
from flowrl.samplers import chains, laws
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes, cut
from flowrl.types import Policy

SEED = 2**61 - 1
"""Held-out noise: its own seed and purpose, so that no training draw coincides with it."""


@dataclass(frozen=True)
class Judged:
    """scores: judge -> float64 [captions, images], NaN = could not be scored;  diversity: mean pairwise feature distance of a
    caption's images;  pictures: (caption, image) -> uint8 [H, W, 3], those that were asked for. The same in every process."""

    scores: Mapping[str, np.ndarray]
    diversity: float | None
    pictures: Mapping[tuple[int, int], Tensor]


def judge(
    policy: Policy,
    prompts: Prompts,
    judges: Mapping[str, Reward],
    images_each: int,
    steps: int,
    sizes: Sizes,
    world: World,
    features: Callable[..., np.ndarray] | None = None,
    guidance: float | None = None,
    show: Collection[int] = (),
) -> Judged:
    """Draw `images_each` images of every prompt with `steps` Euler steps and score them. The same noise at every call.

    show: captions whose first two images are wanted.
    Raises: torch.OutOfMemoryError in every process if one ran out of memory.
    """
    plan = chains(policy.sigmas(steps), laws.ode(), (), images_each)
    blocks = cut(plan, len(prompts), sizes, 1, world.size)
    drawn = draw(
        policy, plan, prompts, torch.arange(len(prompts)), blocks, sizes, Source(SEED, 0), world, "heldout", guidance=guidance
    )
    states = {name: reward.init() for name, reward in judges.items()}
    scores = scored(judges, drawn, states, prompts, plan, world)
    seen, vectors = dict[tuple[int, int], Tensor](), dict[int, np.ndarray]()
    with world.together():
        if drawn.samples is not None:
            for caption, row, owned in zip(drawn.local.tolist(), drawn.samples.pixels, drawn.samples.scored, strict=True):
                # clone: a view would take its whole storage along to the other processes
                seen |= {(caption, i): row[i].clone() for i in owned.nonzero().flatten().tolist() if i < 2 and caption in show}
                if features is not None:
                    vectors[caption] = features(row[owned].numpy())
    return Judged(
        {name: s.values.double().numpy() for name, s in scores.items()},
        _diversity(world.gather(vectors)),
        {key: picture for part in world.gather(seen) for key, picture in part.items()},
    )


def _diversity(parts: Sequence[Mapping[int, np.ndarray]]) -> float | None:
    """Mean over all pairs of images of one caption, whichever process drew them."""
    captions = sorted({caption for part in parts for caption in part})
    spread = [pairwise(np.concatenate([part[caption] for part in parts if caption in part])) for caption in captions]
    pairs = sum(count for _, count in spread)
    return sum(distance for distance, _ in spread) / pairs if pairs else None


def pairwise(f: np.ndarray) -> tuple[float, float]:
    """(sum of Euclidean distances over pairs, number of pairs) of features [N, D]."""
    f = np.asarray(f, dtype=np.float64)
    i, j = np.triu_indices(len(f), 1)
    return float(np.linalg.norm(f[i] - f[j], axis=1).sum()), float(len(i))
