"""From prompts to credit: roll out, decode, score, gather."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.overlap import Early, waiting, whole
from flowrl.rewards.base import Reward, Samples, Scores, State
from flowrl.samplers import Plan, Rollout, progress, solvers
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
class Drawn(Walk):
    """A walk and its decoded leaves; samples: None where rollout is."""

    samples: Samples | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Collected(Walk):
    """A batch's experience: this process's walk and the outcome of all, gathered, the same everywhere."""

    outcome: Outcome
    seconds: Mapping[str, float]


def walking(
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
) -> Iterator[tuple[Walk, Tensor]]:
    """Roll out this process's blocks. The prompts it touches are encoded once and numbered 0, 1, ... in Rollout and Cond alike.

    Yields the walk under way, before the first block and after each, with the prompts (of those numbers) that have all their leaves
    since: each once, where nothing further of it is walked here.

    slots [P]: the prompts' places in the iteration's list, which key their noise.
    """
    index = [i for i, b in enumerate(blocks) if b.owner == world.rank]
    touched = sorted({int(p) for i in index for p in blocks[i].units[:, 0]})
    cond = policy.encode([prompts[p] for p in touched] or [prompts[0]], guidance)
    local = torch.tensor(touched, dtype=torch.long)
    if not index:
        yield Walk(None, local, cond, index), local
        return
    place = {p: i for i, p in enumerate(touched)}
    own = [torch.stack([torch.tensor([place[int(p)] for p in blocks[i].units[:, 0]]), blocks[i].units[:, 1]], 1) for i in index]
    shape = policy.latent_shape()
    where = {slot: i for i, slot in enumerate(slots[local].tolist())}
    ends = {p: i for i, block in enumerate(own) for p in block[:, 0].tolist()}
    last = torch.tensor([ends[p] for p in range(len(touched))])

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        with nullcontext() if witness is None else witness.over(sigma):
            return policy.predict(x, sigma, cond.take(torch.tensor([where[int(s)] for s in slot.tolist()], device=slot.device)))

    under_way = progress(
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
    for done, ro in enumerate(under_way):
        yield Walk(ro, local, cond, index), (last == done - 1).nonzero().flatten()


def images(policy: Policy, ro: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded leaves of the prompts `rows` [p]: uint8 pixels [p, L, H, W, 3] on the CPU and which were walked, bool [p, L]."""
    owned = ro.owned[rows][:, ro.plan.leaves]
    x0 = ro.states(ro.plan.leaves)[rows.to(ro.x.device)]
    decoded = policy.decode(x0[owned.to(x0.device)].float()).cpu()
    pixels = torch.zeros(*owned.shape, *decoded.shape[1:], dtype=torch.uint8)
    pixels[owned] = decoded
    return pixels, owned


def shown(policy: Policy, ro: Rollout, rows: Tensor, own: Prompts) -> Samples:
    """The decoded leaves of some of a rollout's prompts. own: what these prompts are."""
    pixels, owned = images(policy, ro, rows)
    return Samples(pixels, own.text, own.metadata, owned, torch.zeros(owned.shape[1], dtype=torch.long))


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
    early: Early | None = None,
) -> Drawn:
    """Walk and decode this process's blocks.

    early: is put each prompt's images as soon as its last block is walked; then they are decoded in the same pieces.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory.
    """
    chunks: list[tuple[Tensor, Samples]] = []
    due, seconds = torch.zeros(0, dtype=torch.long), {"rollout": 0.0, "decode": 0.0}
    with world.together():
        clock = time.perf_counter()
        under_way = walking(policy, plan, prompts.text, slots, blocks, sizes, source, world, purpose, witness, guidance, solver)
        for it, rows in under_way:
            walked = time.perf_counter()
            due = torch.cat([due, rows]).sort().values
            if it.rollout is not None and len(due) and (early is not None or len(due) == len(it.local)):
                chunks.append((due, shown(policy, it.rollout, due, prompts.take(it.local[due]))))
                if early is not None:
                    early.put(*chunks[-1])
                due = due[:0]
            seconds["rollout"] += walked - clock
            clock = time.perf_counter()
            seconds["decode"] += clock - walked
    return Drawn(it.rollout, it.local, it.cond, it.index, whole(chunks), seconds)


def scored(
    rewards: Mapping[str, Reward],
    samples: Samples | None,
    states: dict[str, State],
    local: Tensor,
    shape: tuple[int, int],
    world: World,
    early: Early | None = None,
) -> dict[str, Scores]:
    """Every reward on this process's leaves, gathered to [P, L] of the whole batch. early: has been put all of them, and is asked
    for its rewards' scores last.

    Raises: ValueError in every process where a reward, or all of them together, could score no image; whatever a reward raises.
    """
    out: dict[str, Scores] = {}
    for name in sorted(rewards, key=lambda name: early is not None and name in early):
        values, valid = torch.zeros(shape, device=world.device), torch.zeros(shape, device=world.device)
        with world.together():
            if samples is not None:
                if early is not None and name in early:
                    scores, states[name] = early.take(name)
                else:
                    scores, states[name] = rewards[name](samples, states[name])
                good = scores.valid & samples.scored
                values[local] = torch.where(good, scores.values, 0).float().to(world.device)
                valid[local] = good.float().to(world.device)
        world.sum(values, valid)
        known = valid.cpu() > 0
        out[name] = Scores(torch.where(known, values.cpu(), torch.nan), known)
        if not known.any():
            raise ValueError(
                f"reward {name!r} could score none of the {known.numel()} images of this iteration; see its warnings above"
            )
    return {name: out[name] for name in rewards}


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

    Rewards that wait for a network score the prompts whose images are there while the rest is still walked.

    features: what the outcome's features are made by;  metrics: of the last iteration, for the outcome.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory while walking or decoding; ValueError where no
    image has all its scores.
    """
    slow = waiting(rewards)
    with Early(slow, states) as asked:
        early = asked if slow else None
        drawn = draw(policy, plan, prompts, slots, blocks, sizes, source, world, witness=witness, solver=solver, early=early)
        clock = time.perf_counter()
        scores = scored(rewards, drawn.samples, states, drawn.local, (len(prompts), len(plan.leaves)), world, early)
    if not torch.stack([s.valid for s in scores.values()]).all(0).any():
        raise ValueError(f"no image of this iteration could be scored by all of {', '.join(scores)}; see their warnings above")
    densities = torch.zeros(len(prompts), len(plan.edges), device=world.device)
    if drawn.rollout is not None:
        densities[drawn.local] = drawn.rollout.log_prob.to(densities)
    world.sum(densities)
    seen = None if features is None else described(features, drawn, (len(prompts), len(plan.leaves)), world)
    outcome = Outcome(
        plan, scores, factors, prompts.text, prompts.metadata, slots, source.iteration, densities.cpu(), seen, metrics or {}
    )
    seconds = {**drawn.seconds, "reward": time.perf_counter() - clock}
    return Collected(drawn.rollout, drawn.local, drawn.cond, drawn.index, outcome, seconds)
