"""From prompts to credit: roll out, decode, score, gather."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.draw import Drawn, Walk, draw
from flowrl.looks import seen, spread
from flowrl.overlap import Early, waiting
from flowrl.rewards import Rule, ruled
from flowrl.rewards.base import Reward, Scores, State
from flowrl.samplers import Plan, solvers
from flowrl.samplers.noise import Source
from flowrl.samplers.solvers import Solver
from flowrl.scoring import Lessons, answered, apart, learned, scored
from flowrl.sizes import Block, Sizes
from flowrl.types import Outcome, Policy
from flowrl.witness import Witness

Features = Callable[[np.ndarray], Any]
"""Images uint8 [N, (T,) H, W, 3] -> features [N, D]."""


@dataclass(frozen=True)
class Collected(Walk):
    """A batch's experience: this process's walk and the outcome of all, gathered, the same everywhere. scores: as the rewards gave
    them;  looks: metrics of the images and latents."""

    outcome: Outcome
    seconds: Mapping[str, float]
    lessons: Lessons
    scores: Mapping[str, Scores]
    looks: Mapping[str, float]


def seemed(drawn: Drawn, prompts: Prompts, plan: Plan, world: World) -> dict[str, float]:
    """look/diversity: mean distance between thumbnails of one prompt's images;  look/latent: root mean square of the latents."""
    shape = (len(prompts), len(plan.leaves))
    own = None if drawn.samples is None else seen(drawn.samples.pixels[drawn.samples.scored])
    width = max(world.gather(0 if own is None else own.shape[1]))
    small = torch.zeros(*shape, width, device=world.device)
    square = torch.zeros(shape, dtype=torch.float64, device=world.device)
    if own is not None and drawn.samples is not None and drawn.rollout is not None:
        owned = drawn.samples.scored
        mine, means = torch.zeros(*owned.shape, width), torch.zeros(owned.shape, dtype=torch.float64)
        mine[owned] = own
        x0 = drawn.rollout.states(plan.leaves)
        means[owned] = x0[owned.to(x0.device)].double().square().flatten(1).mean(1).cpu()
        small[drawn.local], square[drawn.local] = mine.to(small), means.to(square)
    world.sum(small, square)
    found = {"look/latent": float(square.mean().sqrt())}
    if shape[1] > 1:
        found["look/diversity"] = spread(small.cpu(), torch.ones(shape, dtype=torch.bool))
    return found


def described(features: Features, drawn: Drawn, shape: tuple[int, int], world: World) -> Tensor:
    """Features of all images, gathered to [P, L, D]; zeros for what was not drawn."""
    own = torch.zeros(0, 0)
    with world.together():
        if drawn.samples is not None:
            own = torch.as_tensor(features(drawn.samples.pixels[drawn.samples.scored].numpy())).float()
    whole = torch.zeros(*shape, max(world.gather(own.shape[1])), device=world.device)
    if drawn.samples is not None:
        mine = torch.zeros(*drawn.samples.scored.shape, own.shape[1])
        mine[drawn.samples.scored] = own
        whole[drawn.local] = mine.to(whole)
    world.sum(whole)
    return whole.cpu()


def collect(
    policy: Policy,
    plan: Plan,
    prompts: Prompts,
    slots: Tensor,
    rewards: Mapping[str, Reward],
    factors: Mapping[str, float],
    states: dict[str, State],
    blocks: Sequence[Block],
    sizes: Sizes,
    source: Source,
    world: World,
    witness: Witness | None = None,
    solver: Solver = solvers.euler,
    features: Features | None = None,
    metrics: Mapping[str, float] | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> Collected:
    """One batch of experience: prompts share `plan`. States of rewards are updated in `states`.

    Rewards that wait for a network score the prompts whose images are there while the rest is still walked.

    features: what the outcome's features are made by;  metrics: of the last iteration, for the outcome;  rules: what scores count
    for.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory while walking or decoding; ValueError where no
    image has all the scores that count, Unscored where it may have them later.
    """
    slow = {name: reward for name, reward in waiting(rewards).items() if not apart(reward, world)}
    with Early(slow, states) as asked:
        early = asked if slow else None
        drawn = draw(policy, plan, prompts, slots, blocks, sizes, source, world, witness=witness, solver=solver, early=early)
        clock = time.perf_counter()
        given = scored(rewards, drawn, states, prompts, plan, world, early)
    scores = ruled(given, rules or {})
    answered(given, scores, rewards, factors)
    lessons = learned(rewards, drawn, states, prompts, plan, world)
    densities = torch.zeros(len(prompts), len(plan.edges), device=world.device)
    if drawn.rollout is not None:
        densities[drawn.local] = drawn.rollout.log_prob.to(densities)
    world.sum(densities)
    vectors = None if features is None else described(features, drawn, (len(prompts), len(plan.leaves)), world)
    outcome = Outcome(
        plan, scores, factors, prompts.text, prompts.metadata, slots, source.iteration, densities.cpu(), vectors, metrics or {}
    )
    seconds = {**drawn.seconds, "reward": time.perf_counter() - clock}
    return Collected(
        drawn.rollout, drawn.local, drawn.cond, drawn.index, outcome, seconds, lessons, given, seemed(drawn, prompts, plan, world)
    )
