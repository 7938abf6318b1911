"""What a coupled loss takes together: the edges of one trajectory, of one step of a prompt's group, of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.samplers import Plan
from flowrl.types import Batch


def mean_of(values: Tensor, pool: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean of values [E] over the counted edges of each pool, given to all its edges -> [E]; 0 where none counts.

    pool [E]: any integers, equal where edges belong together.
    """
    ids, index = pool.unique(return_inverse=True)
    share = torch.ones_like(values) if counted is None else counted.to(values)
    zero = values.new_zeros(len(ids))
    total = zero.index_add(0, index, values * share)
    return (total / zero.index_add(0, index, share).clamp(min=1))[index]


def of(*labels: Tensor) -> Tensor:
    """One integer [E] for every distinct combination of labels [E]."""
    return torch.stack([t.long() for t in labels], 1).unique(dim=0, return_inverse=True)[1]


def trajectories(batch: Batch) -> Tensor:
    """The image an edge leads to, of its prompt [E]."""
    assert batch.plan is not None and batch.group is not None and batch.node is not None
    return of(batch.group, batch.plan.ends.long().argmax(1).to(batch.node)[batch.node])


def rivals(batch: Batch) -> Tensor:
    """The same step of one prompt's group [E]: `Plan.peers`."""
    assert batch.plan is not None and batch.group is not None and batch.node is not None
    return of(batch.group, batch.plan.peers.to(batch.node)[batch.node])


def chains_only(plan: Plan, name: str) -> None:
    """Raises: ValueError for a plan with a recorded edge that leads to several images."""
    most = int(plan.ends[plan.edges].sum(1).max()) if len(plan.edges) else 0
    if most > 1:
        raise ValueError(
            f"{name} takes the ratio of a whole trajectory, and on this plan {most} images share a recorded step; use chains, or a "
            "comb of one granularity"
        )
