"""Walk a plan with a network: states, predictions and densities of every recorded step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import paths, solvers
from .paths import Path
from .plan import Plan
from .solvers import Solver
from .walk import Noise, Predict, Slice, Walk


@dataclass(frozen=True)
class Rollout:
    """What a rollout recorded. P prompts, m = len(plan.kept) states, r = len(plan.rows), e = len(plan.edges).

    slots [P]: the prompts' places in the iteration's list;  x [P, m, *d]: states;  u [P, r, *d]: predictions that made the
      recorded steps, [P, r, 2, *d] with the raw noise where it is learned;
    log_prob [P, e];  owned bool [P, n]: nodes walked here (others hold zeros);  slices: recorded calls, to be replayed as they are;
    blocks: units (prompt, root) [k, 2] walked together;  size: most rows of a call that will be trained on.
    """

    plan: Plan
    path: Path
    slots: Tensor
    x: Tensor
    u: Tensor
    log_prob: Tensor
    owned: Tensor
    slices: Sequence[Slice]
    blocks: Sequence[Tensor]
    size: int | None

    def states(self, nodes: Tensor) -> Tensor:
        """[P, len(nodes), *d] of kept nodes."""
        return self.x[:, torch.searchsorted(self.plan.kept, nodes)]


def units(plan: Plan, prompts: int) -> Tensor:
    """All units [prompts * roots, 2] as (prompt, root), prompt-major: what a rollout can be cut into."""
    p = torch.arange(prompts).repeat_interleave(len(plan.roots))
    return torch.stack([p, plan.roots.repeat(prompts)], 1)


def rollout(
    plan: Plan,
    predict: Predict,
    prompts: int | Tensor,
    shape: Sequence[int],
    noise: Noise,
    solver: Solver = solvers.euler,
    path: Path = paths.flow,
    *,
    blocks: Sequence[Tensor] | None = None,
    slice: int | None = None,
    batch: int | None = None,
    lane: Callable[[float], int] = lambda sigma: 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    storage: str | torch.device | None = None,
) -> Rollout:
    """Walk `plan` for every prompt, block by block, wave by wave.

    predict(x [N, *d], sigma [N], slot [N]) -> u [N, *d], or (u, raw) with a noise head;  noise(slot, node) -> standard normal [*d].
    prompts: how many, or their slots [P] in the iteration's list.  shape: latent dims *d.  blocks: units (prompt, root) walked
      together, one after the other; None: all in one.
    slice, batch: most rows of a recorded call, and of a quiet one (None: all of a wave of a block).  lane: calls never mix lanes.
    dtype: states are rounded to it before they are scored.  device: where states are computed;  storage: where the record lies
      (None: the same device).

    A state depends on its slot, its node and the geometry of its calls alone. Only recorded parents, their children and leaves are
    kept; other states live as long as their wave. Siblings' shared noise (plan.mix) is noise(slot, -2 - parent).

    Raises: ValueError for no prompts, or rows per call below 1.
    """
    *_, whole = progress(
        plan,
        predict,
        prompts,
        shape,
        noise,
        solver,
        path,
        blocks=blocks,
        slice=slice,
        batch=batch,
        lane=lane,
        dtype=dtype,
        device=device,
        storage=storage,
    )
    return whole


@torch.no_grad()
def progress(
    plan: Plan,
    predict: Predict,
    prompts: int | Tensor,
    shape: Sequence[int],
    noise: Noise,
    solver: Solver = solvers.euler,
    path: Path = paths.flow,
    *,
    blocks: Sequence[Tensor] | None = None,
    slice: int | None = None,
    batch: int | None = None,
    lane: Callable[[float], int] = lambda sigma: 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    storage: str | torch.device | None = None,
) -> Iterator[Rollout]:
    """A rollout under way: the same record before the first block and after each one, holding what was walked so far.

    The last is what `rollout` returns, of the same arguments; a prompt's record is complete after the last block it is part of.

    Raises: ValueError as `rollout` does, when the first is asked for.
    """
    slots = torch.arange(prompts) if isinstance(prompts, int) else prompts
    if len(slots) == 0:
        raise ValueError("a rollout of 0 prompts; give at least 1")
    for name, rows in (("slice", slice), ("batch", batch)):
        if rows is not None and rows < 1:
            raise ValueError(f"{name}, the rows of a network call, is {rows}; give at least 1, or None for no limit")
    walked = [units(plan, len(slots))] if blocks is None else list(blocks)
    walk = Walk(
        plan, predict, noise, solver, path, slots.tolist(), tuple(shape), slice, batch, lane, dtype, device, storage or device
    )
    record = walk.record
    whole = Rollout(plan, path, slots, record.x, record.u, record.log_prob, record.owned, walk.slices, walked, slice)
    yield whole
    for index, block in enumerate(walked):
        walk.block(index, [(p, root) for p, root in block.tolist()])
        yield whole
