"""Held-out images: fixed prompts, fixed noise, the ODE, and what the judges say of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.draw import draw
from flowrl.looks import looks
from flowrl.rewards.base import Reward, State
from flowrl.samplers import chains, laws
from flowrl.samplers.noise import Source
from flowrl.scoring import scored
from flowrl.sizes import Sizes, cut
from flowrl.types import Policy

SEED = 2**61 - 1
"""Held-out noise: its own seed and purpose, so that no training draw coincides with it."""


@dataclass(frozen=True)
class Judged:
    """scores: judge -> float64 [captions, images], NaN = could not be scored;  diversity: mean pairwise feature distance of a
    caption's images;  pictures: (caption, image) -> uint8 [(T,) H, W, 3], those that were asked for;  looks: means of
    `flowrl.looks`. The same in every process."""

    scores: Mapping[str, np.ndarray]
    diversity: float | None
    pictures: Mapping[tuple[int, int], Tensor]
    looks: Mapping[str, float]


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
    memory: Mapping[str, State] | None = None,
) -> Judged:
    """Draw `images_each` images of every prompt with `steps` Euler steps and score them. The same noise at every call.

    show: captions whose first two images are wanted;  memory: states of judges that have learned something, left as they are.
    Raises: torch.OutOfMemoryError in every process if one ran out of memory.
    """
    plan = chains(policy.sigmas(steps), laws.ode(), (), images_each)
    blocks = cut(plan, len(prompts), sizes, 1, world.size)
    drawn = draw(
        policy, plan, prompts, torch.arange(len(prompts)), blocks, sizes, Source(SEED, 0), world, "heldout", guidance=guidance
    )
    states = {name: copy.deepcopy(memory[name]) if memory and name in memory else reward.init() for name, reward in judges.items()}
    scores = scored(judges, drawn, states, prompts, plan, world)
    seen, vectors = dict[tuple[int, int], Tensor](), dict[int, np.ndarray]()
    seem: list[dict[str, np.ndarray]] = []
    with world.together():
        if drawn.samples is not None:
            for caption, row, owned in zip(drawn.local.tolist(), drawn.samples.pixels, drawn.samples.scored, strict=True):
                # clone: a view would take its whole storage along to the other processes
                seen |= {(caption, i): row[i].clone() for i in owned.nonzero().flatten().tolist() if i < 2 and caption in show}
                if owned.any():
                    seem.append(looks(row[owned].numpy()))
                if features is not None:
                    vectors[caption] = features(row[owned].numpy())
    return Judged(
        {name: s.values.double().numpy() for name, s in scores.items()},
        _diversity(world.gather(vectors)),
        {key: picture for part in world.gather(seen) for key, picture in part.items()},
        _looked(world.gather(seem)),
    )


def _looked(parts: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, float]:
    """Means over all images; fsum, so that it does not show which process drew which."""
    every = [told for part in parts for told in part]
    return {name: math.fsum(v for told in every for v in told[name]) / sum(len(told[name]) for told in every) for name in every[0]}


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
