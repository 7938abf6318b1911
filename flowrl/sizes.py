"""How an iteration is cut: blocks of units for the rollout, slices of rows for training, optimizer steps, processes.

The user gives prompts and group; everything here is derived from them, printed, and a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.recipe import SizesSpec
from flowrl.samplers import Plan, units

LARGEST_SLICE = 32
LARGEST_BATCH = 96
REMEDY = "use a smaller image, a lower lora.rank, --set policy.checkpointing=true or --set policy.dtype=bfloat16"


@dataclass(frozen=True)
class Sizes:
    """slice: most rows of a training call; batch: most units of a rollout block."""

    slice: int
    batch: int

    def halved(self) -> Sizes:
        """Half the rows a call.

        Raises: torch.OutOfMemoryError where one row is already all there is.
        """
        if self.slice == 1 and self.batch == 1:
            raise torch.OutOfMemoryError(f"out of memory with one row a call; {REMEDY}")
        return replace(self, slice=max(1, self.slice // 2), batch=max(1, self.batch // 2))


@dataclass(frozen=True)
class Block:
    """Units walked together. owner: the process that walks them; part: the optimizer step they train."""

    units: Tensor
    owner: int
    part: int


def derive(spec: SizesSpec, count: int, updates: int, processes: int, most: int = LARGEST_SLICE) -> Sizes:
    """Sizes for `count` units an iteration. most: rows that fit into memory at once.

    Raises: ValueError for more optimizer steps than units.
    """
    if updates > count:
        raise ValueError(
            f"{updates} optimizer steps a rollout, but only {count} chains to train on; "
            f"use more prompts, a larger group, or --set method.args.updates={count}"
        )
    share = -(-count // (updates * processes))
    batch = min(spec.batch or max(min(LARGEST_BATCH, 3 * most), 1), share)
    return Sizes(min(spec.slice or most, batch), batch)


def cut(plan: Plan, prompts: int, sizes: Sizes, updates: int, processes: int, whole: bool = False, number: int = 0) -> list[Block]:
    """All units of a batch as blocks: `updates` parts of equal size, each dealt to the processes in turn.

    Where there are fewer units than parts, some parts have none: batch `number` of an iteration begins with the part and the
    process of that number, so that small batches share them out.  whole: a prompt's units stay in one part and in one process,
    as a loss that compares them needs.
    """
    every = units(plan, prompts)
    if not whole:
        parts = [list(mine.split(sizes.batch)) for mine in torch.tensor_split(every, min(updates, len(every)))]
        dealt = [[(i, block) for i, block in enumerate(part)] for part in parts]
    else:
        per = max(1, sizes.batch // len(plan.roots))
        groups = torch.tensor_split(every.view(prompts, -1, 2), min(updates, prompts))
        dealt = [
            [(i, block) for i, some in enumerate(mine.split(per)) for block in some.flatten(0, 1).split(sizes.batch)]
            for mine in groups
        ]
    return [
        Block(block, (i + number) % processes, (part + number) % updates)
        for part, blocks in enumerate(dealt)
        for i, block in blocks
    ]


def describe(sizes: Sizes, blocks: Sequence[Block], plan: Plan, prompts: int, processes: int, updates: int) -> str:
    """One line a human can check."""
    calls = sum(-(-len(b.units) // sizes.slice) for b in blocks) * max(1, len(plan.rows) // max(1, len(plan.roots)))
    return (
        f"{prompts} prompts x {len(plan.leaves)} images = {prompts * len(plan.leaves)} images an iteration on {processes} "
        f"process(es); rollout in {len(blocks)} blocks of <= {sizes.batch}, training in slices of <= {sizes.slice} rows "
        f"({calls} recorded calls), {updates} optimizer step(s)"
    )
