"""From prompts to credit: roll out, decode, score, gather."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.rewards.base import ComparingReward, Reward, Samples, Scores, State, TrainableReward
from flowrl.samplers import Plan, Rollout, rollout, solvers
from flowrl.samplers.noise import Source
from flowrl.samplers.solvers import Solver
from flowrl.sizes import Block, Sizes
from flowrl.types import Cond, Outcome, Policy
from flowrl.witness import Witness

Features = Callable[[np.ndarray], Any]
"""Images uint8 [N, H, W, 3] -> features [N, D]."""


@dataclass(frozen=True)
class Walk:
    """What one process walked. rollout: None where it had nothing to do; local [p]: its prompts among the batch's; cond: their
    encodings; index [blocks walked]: their places in the list of blocks."""

    rollout: Rollout | None
    local: Tensor
    cond: Cond
    index: Sequence[int]


@dataclass(frozen=True)
class Lessons:
    """What trainable rewards made of an iteration: their metrics, and whether one of them asks to leave the policy as it is."""

    metrics: Mapping[str, float]
    skip: bool


@dataclass(frozen=True)
class Drawn(Walk):
    """A walk and its decoded leaves; samples: None where rollout is."""

    samples: Samples | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Collected(Walk):
    """A batch's experience: this process's walk and the outcome of all, gathered, the same everywhere."""

    outcome: Outcome
    seconds: Mapping[str, float]
    lessons: Lessons


def walk(
    policy: Policy,
    plan: Plan,
    prompts: Sequence[str],
    slots: Tensor,
    blocks: Sequence[Block],
    sizes: Sizes,
    source: Source,
    world: World,
    purpose: str = "rollout",
    witness: Witness | None = None,
    guidance: float | None = None,
    solver: Solver = solvers.euler,
) -> Walk:
    """Roll out this process's blocks. The prompts it touches are encoded once and numbered 0, 1, ... in Rollout and Cond alike.

    slots [P]: the prompts' places in the iteration's list, which key their noise.
    """
    index = [i for i, b in enumerate(blocks) if b.owner == world.rank]
    touched = sorted({int(p) for i in index for p in blocks[i].units[:, 0]})
    cond = policy.encode([prompts[p] for p in touched] or [prompts[0]], guidance)
    local = torch.tensor(touched, dtype=torch.long)
    if not index:
        return Walk(None, local, cond, index)
    place = {p: i for i, p in enumerate(touched)}
    own = [torch.stack([torch.tensor([place[int(p)] for p in blocks[i].units[:, 0]]), blocks[i].units[:, 1]], 1) for i in index]
    shape = policy.latent_shape()
    where = {slot: i for i, slot in enumerate(slots[local].tolist())}

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        with nullcontext() if witness is None else witness.over(sigma):
            return policy.predict(x, sigma, cond.take(torch.tensor([where[int(s)] for s in slot.tolist()], device=slot.device)))

    ro = rollout(
        plan,
        predict,
        slots[local],
        shape,
        lambda slot, node: source.normal(shape, slot, node, purpose),
        solver=solver,
        path=policy.path,
        blocks=own,
        slice=sizes.slice,
        lane=policy.lane,
        device=world.device,
    )
    return Walk(ro, local, cond, index)


def images(policy: Policy, ro: Rollout) -> tuple[Tensor, Tensor]:
    """Decoded leaves: uint8 pixels [P, L, H, W, 3] on the CPU and which of them were walked, bool [P, L]."""
    owned = ro.owned[:, ro.plan.leaves]
    x0 = ro.states(ro.plan.leaves)
    decoded = policy.decode(x0[owned.to(x0.device)].float()).cpu()
    pixels = torch.zeros(*owned.shape, *decoded.shape[1:], dtype=torch.uint8)
    pixels[owned] = decoded
    return pixels, owned


def references(prompts: Prompts) -> list[list[np.ndarray]] | None:
    """The image of each prompt that has one; None where none has."""
    if not any(path is not None for path in prompts.images):
        return None
    return [[] if path is None else [_picture(path)] for path in prompts.images]


@lru_cache(maxsize=256)
def _picture(path: Path) -> np.ndarray:
    from flowrl.rewards import pictures

    return pictures.read(path)


def draw(
    policy: Policy,
    plan: Plan,
    prompts: Prompts,
    slots: Tensor,
    blocks: Sequence[Block],
    sizes: Sizes,
    source: Source,
    world: World,
    purpose: str = "rollout",
    witness: Witness | None = None,
    guidance: float | None = None,
    solver: Solver = solvers.euler,
) -> Drawn:
    """Walk and decode this process's blocks.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory.
    """
    samples, clock = None, [time.perf_counter()]
    with world.together():
        it = walk(policy, plan, prompts.text, slots, blocks, sizes, source, world, purpose, witness, guidance, solver)
        clock.append(time.perf_counter())
        if it.rollout is not None:
            pixels, owned = images(policy, it.rollout)
            own = prompts.take(it.local)
            samples = Samples(pixels, own.text, own.metadata, owned, plan.rivals, references(own))
    clock.append(time.perf_counter())
    seconds = {"rollout": clock[1] - clock[0], "decode": clock[2] - clock[1]}
    return Drawn(it.rollout, it.local, it.cond, it.index, samples, seconds)


def gathered(drawn: Drawn, prompts: Prompts, plan: Plan, world: World) -> Samples:
    """The leaves of all prompts from all processes, the same everywhere."""
    own = drawn.samples
    if own is not None and world.size == 1:
        return own
    picture = next(shape for shape in world.gather(None if own is None else tuple(own.pixels.shape[2:])) if shape is not None)
    pixels = torch.zeros(len(prompts), len(plan.leaves), *picture, dtype=torch.uint8, device=world.device)
    if own is not None:
        pixels[drawn.local.to(world.device)] = torch.where(
            own.scored.view(*own.scored.shape, *[1] * len(picture)), own.pixels, 0
        ).to(pixels)
    world.sum(pixels)
    everything = torch.ones(pixels.shape[:2], dtype=torch.bool)
    return Samples(pixels.cpu(), prompts.text, prompts.metadata, everything, plan.rivals, references(prompts))


def scored(
    rewards: Mapping[str, Reward], drawn: Drawn, states: dict[str, State], prompts: Prompts, plan: Plan, world: World
) -> dict[str, Scores]:
    """Every reward on this process's leaves, gathered to [P, L] of the whole batch. Rewards that compare see whole prompts: each
    process takes some.

    Raises: ValueError in every process where a reward could score no image; whatever a reward raises.
    """
    out: dict[str, Scores] = {}
    for name, reward in rewards.items():
        samples, local = drawn.samples, drawn.local
        if world.size > 1 and isinstance(reward, ComparingReward) and reward.compares:
            samples, local = gathered(drawn, prompts, plan, world), torch.arange(len(prompts))
            share = (local % world.size == world.rank)[:, None]
            samples = replace(samples, scored=samples.scored & share)
        scores = None
        with world.together():
            if samples is not None:
                scores, states[name] = reward(samples, states[name])
                scores = replace(scores, valid=scores.valid & samples.scored)
        out[name] = _spread(scores, local, (len(prompts), len(plan.leaves)), world)
        if not (known := out[name].valid).any():
            raise ValueError(
                f"reward {name!r} could score none of the {known.numel()} images of this iteration; see its warnings above"
            )
    return out


def _spread(own: Scores | None, local: Tensor, shape: tuple[int, int], world: World) -> Scores:
    """The scores of all processes in one, with their parts."""

    def whole(part: Tensor | None, known: Tensor | None) -> tuple[Tensor, Tensor]:
        values, valid = torch.zeros(shape, device=world.device), torch.zeros(shape, device=world.device)
        if part is not None and known is not None:
            values[local] = torch.where(known, part, 0).float().to(world.device)
            valid[local] = known.float().to(world.device)
        world.sum(values, valid)
        return values.cpu(), valid.cpu() > 0

    values, valid = whole(own and own.values, own and own.valid)
    parts: dict[str, Tensor] = {}
    for name in sorted({name for told in world.gather(list(own.parts) if own else []) for name in told}):
        mine = None if own is None else own.parts.get(name)
        part, known = whole(mine, None if mine is None else own.valid & mine.isfinite())
        parts[name] = torch.where(known, part, torch.nan)
    return Scores(torch.where(valid, values, torch.nan), valid, parts)


def learned(
    rewards: Mapping[str, Reward], drawn: Drawn, states: dict[str, State], prompts: Prompts, plan: Plan, world: World
) -> Lessons:
    """Every trainable reward's lesson from the images of all processes, once their scores are taken. States go into `states`."""
    learners = {name: reward for name, reward in rewards.items() if isinstance(reward, TrainableReward)}
    if not learners:
        return Lessons({}, False)
    everything, metrics, skips = gathered(drawn, prompts, plan, world), dict[str, float](), list[bool]()
    with world.together():
        for name, reward in learners.items():
            states[name], told, skip = reward.update(everything, states[name])
            metrics |= told
            skips.append(skip)
    return Lessons(metrics, any(skips))


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
) -> Collected:
    """One batch of experience: prompts share `plan`. States of rewards are updated in `states`.

    features: what the outcome's features are made by;  metrics: of the last iteration, for the outcome.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory while walking or decoding; ValueError where no
    image has all its scores.
    """
    drawn = draw(policy, plan, prompts, slots, blocks, sizes, source, world, witness=witness, solver=solver)
    clock = time.perf_counter()
    scores = scored(rewards, drawn, states, prompts, plan, world)
    if not torch.stack([s.valid for s in scores.values()]).all(0).any():
        raise ValueError(f"no image of this iteration could be scored by all of {', '.join(scores)}; see their warnings above")
    lessons = learned(rewards, drawn, states, prompts, plan, world)
    densities = torch.zeros(len(prompts), len(plan.edges), device=world.device)
    if drawn.rollout is not None:
        densities[drawn.local] = drawn.rollout.log_prob.to(densities)
    world.sum(densities)
    seen = None if features is None else described(features, drawn, (len(prompts), len(plan.leaves)), world)
    outcome = Outcome(
        plan, scores, factors, prompts.text, prompts.metadata, slots, source.iteration, densities.cpu(), seen, metrics or {}
    )
    seconds = {**drawn.seconds, "reward": time.perf_counter() - clock}
    return Collected(drawn.rollout, drawn.local, drawn.cond, drawn.index, outcome, seconds, lessons)
