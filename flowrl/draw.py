"""Walk the plan and decode its leaves, prompt by prompt as they are done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.overlap import Early, whole
from flowrl.rewards import pictures
from flowrl.rewards.base import Samples
from flowrl.samplers import Plan, Rollout, progress, solvers
from flowrl.samplers.noise import Source
from flowrl.samplers.solvers import Solver
from flowrl.sizes import Block, Sizes
from flowrl.types import Cond, Policy
from flowrl.witness import Witness


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


def walking(
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
) -> Iterator[tuple[Walk, Tensor]]:
    """Roll out this process's blocks. The prompts it touches are encoded once and numbered 0, 1, ... in Rollout and Cond alike.

    Yields the walk under way, before the first block and after each, with the prompts (of those numbers) that have all their leaves
    since: each once, where nothing further of it is walked here.

    slots [P]: the prompts' places in the iteration's list, which key their noise.
    """
    index = [i for i, b in enumerate(blocks) if b.owner == world.rank]
    touched = sorted({int(p) for i in index for p in blocks[i].units[:, 0]})
    own = prompts.take(touched or [0])
    cond = policy.encode(own.text, guidance, own.images)
    local = torch.tensor(touched, dtype=torch.long)
    if not index:
        yield Walk(None, local, cond, index), local
        return
    place = {p: i for i, p in enumerate(touched)}
    mine = [torch.stack([torch.tensor([place[int(p)] for p in blocks[i].units[:, 0]]), blocks[i].units[:, 1]], 1) for i in index]
    shape = policy.latent_shape()
    where = {slot: i for i, slot in enumerate(slots[local].tolist())}
    ends = {p: i for i, block in enumerate(mine) for p in block[:, 0].tolist()}
    last = torch.tensor([ends[p] for p in range(len(touched))])

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        with nullcontext() if witness is None else witness.over(sigma):
            return policy.predict(x, sigma, cond.take(torch.tensor([where[int(s)] for s in slot.tolist()])))

    under_way = progress(
        plan,
        predict,
        slots[local],
        shape,
        lambda slot, node: source.normal(shape, slot, node, purpose),
        solver=solver,
        path=policy.path,
        blocks=mine,
        slice=sizes.slice,
        lane=policy.lane,
        device=world.device,
    )
    for done, ro in enumerate(under_way):
        yield Walk(ro, local, cond, index), (last == done - 1).nonzero().flatten()


def images(policy: Policy, ro: Rollout, cond: Cond, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded leaves of the prompts `rows` [p]: uint8 pixels [p, L, (T,) H, W, 3] on the CPU and which were walked, bool [p, L]."""
    owned = ro.owned[rows][:, ro.plan.leaves]
    x0 = ro.states(ro.plan.leaves)[rows.to(ro.x.device)]
    of = rows[owned.nonzero()[:, 0]]
    decoded = policy.decode(x0[owned.to(x0.device)].float(), cond.take(of)).cpu()
    pixels = torch.zeros(*owned.shape, *decoded.shape[1:], dtype=torch.uint8)
    pixels[owned] = decoded
    return pixels, owned


def shown(policy: Policy, ro: Rollout, cond: Cond, rows: Tensor, own: Prompts) -> Samples:
    """The decoded leaves of some of a rollout's prompts. own: what these prompts are."""
    pixels, owned = images(policy, ro, cond, rows)
    return Samples(pixels, own.text, own.metadata, owned, ro.plan.rivals, references(own))


def references(prompts: Prompts) -> list[list[np.ndarray]] | None:
    """The image of each prompt that has one; None where none has."""
    if not any(path is not None for path in prompts.images):
        return None
    return [[] if path is None else [_picture(path)] for path in prompts.images]


@lru_cache(maxsize=256)
def _picture(path: Path) -> np.ndarray:
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
        under_way = walking(policy, plan, prompts, slots, blocks, sizes, source, world, purpose, witness, guidance, solver)
        for it, rows in under_way:
            walked = time.perf_counter()
            due = torch.cat([due, rows]).sort().values
            if it.rollout is not None and len(due) and (early is not None or len(due) == len(it.local)):
                chunks.append((due, shown(policy, it.rollout, it.cond, due, prompts.take(it.local[due]))))
                if early is not None:
                    early.put(*chunks[-1])
                due = due[:0]
            seconds["rollout"] += walked - clock
            clock = time.perf_counter()
            seconds["decode"] += clock - walked
    return Drawn(it.rollout, it.local, it.cond, it.index, whole(chunks), seconds)
