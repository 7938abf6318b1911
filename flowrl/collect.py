"""From prompts to credit: roll out, decode, score, gather."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.dist import World
from flowrl.rewards.base import Reward, Samples, Scores, State
from flowrl.samplers import Plan, Rollout, rollout
from flowrl.samplers.noise import Source
from flowrl.sizes import Block, Sizes
from flowrl.types import Cond, Outcome, Policy
from flowrl.witness import Witness


@dataclass(frozen=True)
class Collected:
    """One iteration's experience. rollout: what this process walked (None: nothing); local [p]: its prompts among the iteration's;
    cond: their encodings; index [blocks walked]: their places in the iteration's list of blocks; outcome: gathered, the same everywhere."""

    rollout: Rollout | None
    local: Tensor
    cond: Cond
    index: Sequence[int]
    outcome: Outcome
    seconds: Mapping[str, float]


def walk(policy: Policy, plan: Plan, prompts: Sequence[str], blocks: Sequence[Block], sizes: Sizes, source: Source, world: World,
         purpose: str = "rollout", witness: Witness | None = None,
         guidance: float | None = None) -> tuple[Rollout | None, Tensor, Cond, list[int]]:
    """Roll out this process's blocks. The prompts it touches are encoded once and numbered 0, 1, ... in Rollout and Cond alike."""
    index = [i for i, b in enumerate(blocks) if b.owner == world.rank]
    touched = sorted({int(p) for i in index for p in blocks[i].units[:, 0]})
    cond = policy.encode([prompts[p] for p in touched] or [prompts[0]], guidance)
    if not index:
        return None, torch.zeros(0, dtype=torch.long), cond, index
    place = {p: i for i, p in enumerate(touched)}
    own = [torch.stack([torch.tensor([place[int(p)] for p in blocks[i].units[:, 0]]), blocks[i].units[:, 1]], 1) for i in index]
    shape, local = policy.latent_shape(), torch.tensor(touched)
    where = {int(slot): i for i, slot in enumerate(touched)}

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        with nullcontext() if witness is None else witness.over(sigma):
            return policy.predict(x, sigma, cond.take(torch.tensor([where[int(s)] for s in slot.tolist()], device=slot.device)))

    ro = rollout(plan, predict, local, shape, lambda slot, node: source.normal(shape, slot, node, purpose), path=policy.path, blocks=own,
                 slice=sizes.slice, lane=policy.lane, device=world.device)
    return ro, local, cond, index


def images(policy: Policy, ro: Rollout) -> tuple[Tensor, Tensor]:
    """Decoded leaves: uint8 pixels [P, L, H, W, 3] on the CPU and which of them were walked, bool [P, L]."""
    owned = ro.owned[:, ro.plan.leaves]
    x0 = ro.states(ro.plan.leaves)
    decoded = policy.decode(x0[owned.to(x0.device)].float()).cpu()
    pixels = torch.zeros(*owned.shape, *decoded.shape[1:], dtype=torch.uint8)
    pixels[owned] = decoded
    return pixels, owned


def scored(rewards: Mapping[str, Reward], samples: Samples | None, states: dict[str, State], local: Tensor, shape: tuple[int, int],
           world: World) -> dict[str, Scores]:
    """Every reward on this process's leaves, gathered to [P, L] of the whole iteration."""
    out: dict[str, Scores] = {}
    for name, reward in rewards.items():
        values, valid = torch.zeros(shape, device=world.device), torch.zeros(shape, device=world.device)
        if samples is not None:
            scores, states[name] = reward(samples, states[name])
            good = scores.valid & samples.scored
            values[local] = torch.where(good, scores.values, 0).float().to(world.device)
            valid[local] = good.float().to(world.device)
        world.sum(values, valid)
        known = valid.cpu() > 0
        out[name] = Scores(torch.where(known, values.cpu(), torch.nan), known)
        if not known.any():
            raise ValueError(f"reward {name!r} could score none of the {known.numel()} images of this iteration; see its warnings above")
    return out


def collect(policy: Policy, plan: Plan, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], rewards: Mapping[str, Reward],
            factors: Mapping[str, float], states: dict[str, State], blocks: Sequence[Block], sizes: Sizes, source: Source,
            world: World, witness: Witness | None = None) -> Collected:
    """One batch of experience: prompts share `plan`. States of rewards are updated in `states`.

    Raises: torch.OutOfMemoryError in every process if one ran out of memory while walking or decoding.
    """
    clock = [time.perf_counter()]
    failure: torch.OutOfMemoryError | None = None
    ro, samples, local, cond, index = None, None, torch.zeros(0, dtype=torch.long), None, []
    try:
        ro, local, cond, index = walk(policy, plan, prompts, blocks, sizes, source, world, witness=witness)
        clock.append(time.perf_counter())
        if ro is not None:
            pixels, owned = images(policy, ro)
            samples = Samples(pixels, [prompts[int(p)] for p in local], [metadata[int(p)] for p in local], owned,
                              torch.zeros(len(plan.leaves), dtype=torch.long))
        clock.append(time.perf_counter())
    except torch.OutOfMemoryError as error:
        failure = error
    if world.any(failure is not None):
        raise failure or torch.OutOfMemoryError("another process ran out of memory")
    assert cond is not None
    scores = scored(rewards, samples, states, local, (len(prompts), len(plan.leaves)), world)
    clock.append(time.perf_counter())
    outcome = Outcome(plan, scores, factors, prompts, metadata, torch.arange(len(prompts)), source.iteration)
    seconds = {name: b - a for name, a, b in zip(("rollout", "decode", "reward"), clock, clock[1:], strict=False)}
    return Collected(ro, local, cond, index, outcome, seconds)
