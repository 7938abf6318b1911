"""The record replayed with gradients: slices of queries become batches, batches become measures, measures a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.collect import Collected
from flowrl.dist import World
from flowrl.samplers import Rollout, joined
from flowrl.samplers.noise import Source
from flowrl.sizes import Block
from flowrl.types import Batch, Cond, Method, Policy, Queries
from flowrl.weights import Weights

EDGEWISE = ("a", "b", "s", "delta", "advantage", "weight", "kl_weight", "group", "node", "draw")
"""Fields of Queries and of Batch with one entry an edge."""


class RatioError(RuntimeError):
    """Rollout and replay of the same states disagree: the run would train on a wrong ratio."""


@dataclass(frozen=True)
class Work:
    """A batch to train on: its experience, its queries (None where this process walked nothing) and how it was cut."""

    got: Collected
    queries: Queries | None
    blocks: Sequence[Block]

    @property
    def parts(self) -> list[int]:
        """The optimizer step of each of this process's blocks."""
        return [self.blocks[i].part for i in self.got.index]


def form(q: Queries, rows: Tensor, ro: Rollout, noise: Source) -> Batch:
    """The tensors of one slice: its states (re-noised where the query has a key) and its edges."""
    place = torch.full((len(q.row_prompt),), -1)
    place[rows] = torch.arange(len(rows))
    edges = (place[q.row] >= 0).nonzero().flatten()
    device = ro.x.device
    prompt, kept = q.row_prompt[rows], q.kept[rows]
    x0 = ro.x[prompt, kept].float()
    sigma = q.sigma[rows].float().to(device)
    x, clean, target = x0, None, None
    if (q.key[rows] >= 0).any():
        pairs = zip(ro.slots[prompt].tolist(), q.key[rows].tolist(), strict=True)
        x1 = torch.stack([noise.normal(x0.shape[1:], slot, key, "query") for slot, key in pairs])
        x1, clean = x1.to(device), x0
        level = sigma.view(-1, *[1] * (x0.ndim - 1))
        x, target = ro.path.alpha(level) * x0 + level * x1, ro.path.target(x0, x1, level)
    child, end = q.child[edges], q.row[edges]
    of = q.row_prompt[end]
    take = {name: getattr(q, name)[edges].to(device) for name in EDGEWISE}
    return Batch(
        x=x,
        sigma=sigma,
        slot=prompt,
        row=place[end].to(device),
        x0=clean,
        target=target,
        x_next=ro.x[of, child].float() if (child >= 0).all() else None,
        u_old=ro.u[prompt, q.old[rows]].float() if (q.old[rows] >= 0).all() else None,
        learned=ro.plan.learned if (child >= 0).all() else None,
        plan=ro.plan,
        kl_scale=q.kl_scale,
        **take,
    )


def _answers(policy: Policy, weights: Weights, needs: Sequence[str], batch: Batch, cond: Cond) -> dict[str, Tensor]:
    """Predictions under every weight set the objective needs; only "current" carries gradients."""
    mine, u = cond.take(batch.slot), {}
    for name in needs:
        with torch.no_grad(), weights.using(name):
            u[name] = answer(policy, batch, mine)
    u["current"] = answer(policy, batch, mine)
    if torch.is_grad_enabled() and not u["current"].requires_grad:
        raise RatioError("the replay's predictions carry no gradient to the trained weights")
    return u


def answer(policy: Policy, batch: Batch, cond: Cond) -> Tensor:
    """u at the rows of a slice, joined with the raw noise where the step's noise is learned."""
    out = joined(policy.predict(batch.x, batch.sigma, cond))
    return out[:, 0] if out.ndim > batch.x.ndim and batch.learned is None else out


def anchored(policy: Policy, ro: Rollout, q: Queries, cond: Cond, noise: Source) -> Rollout:
    """The record with its predictions recomputed on the training slices, so that the ratio starts at exactly 1 on them.

    Rows that ask for no recorded prediction are left out; where none does, the record stays as it is.
    """
    recorded = [rows for rows in q.slices if (q.old[rows] >= 0).all()]
    if not recorded:
        return ro
    u = ro.u.clone()
    with torch.no_grad():
        for rows in recorded:
            batch = form(q, rows, ro, noise)
            mine = cond.take(batch.slot)
            u[q.row_prompt[rows], q.old[rows]] = answer(policy, batch, mine).to(u)
    return replace(ro, u=u)


def backward(
    policy: Policy, weights: Weights, method: Method, work: Work, part: int, noise: Source, world: World
) -> dict[str, Tensor]:
    """Gradients of one batch's share of an optimizer step; returns what the objective says of it.

    Separable: slice by slice. Coupled: the small matrix of measures first, gathered over all processes; the loss is taken there
    once, and each process carries the gradient of its own rows back.

    Raises: torch.OutOfMemoryError; of a coupled loss in all processes if in one.
    """
    objective = method.objective

    def measures(batch: Batch) -> Tensor:
        return objective.measure(batch, _answers(policy, weights, objective.needs, batch, work.got.cond))

    if objective.separable:
        metrics: dict[str, Tensor] = {}
        for batch in _batches(work, part, noise):
            loss = objective.loss(batch, measures(batch))
            loss.value.backward()
            add(metrics, loss.metrics)
        return metrics
    own: list[tuple[dict[str, Tensor], Tensor]] = []
    with world.together(), torch.no_grad():
        for batch in _batches(work, part, noise):
            own.append(({name: getattr(batch, name) for name in EDGEWISE}, measures(batch)))
    whole, leaf, first = _gathered(work, own, world)
    if not len(leaf):
        return {}
    loss = objective.loss(whole, leaf)
    loss.value.backward()
    grads = leaf.grad[first:].split([len(m) for _, m in own] + [len(leaf) - first - sum(len(m) for _, m in own)])
    with world.together():
        for batch, grad in zip(_batches(work, part, noise), grads, strict=False):
            measures(batch).backward(grad)
    return dict(loss.metrics) if world.main else {}


def _batches(work: Work, part: int, noise: Source) -> Iterator[Batch]:
    """This process's slices of an optimizer step."""
    q, ro = work.queries, work.got.rollout
    if q is not None and ro is not None:
        for rows, block in zip(q.slices, q.block, strict=True):
            if work.parts[block] == part:
                yield form(q, rows, ro, noise)


def _gathered(work: Work, own: Sequence[tuple[dict[str, Tensor], Tensor]], world: World) -> tuple[Batch, Tensor, int]:
    """The edges of all processes as one batch without latents, their measures as a leaf that wants gradients, and the first of its
    rows that is this process's.
    """
    every = world.gather([({k: v.cpu() for k, v in fields.items()}, m.cpu()) for fields, m in own])
    first = sum(len(m) for held in every[: world.rank] for _, m in held)
    flat = [pair for held in every for pair in held]
    fields = {name: torch.cat([edges[name] for edges, _ in flat]).to(world.device) if flat else torch.zeros(0) for name in EDGEWISE}
    leaf = torch.cat([m for _, m in flat]).to(world.device) if flat else torch.zeros(0)
    none: Tensor = torch.zeros(0)
    scale = 1.0 if work.queries is None else work.queries.kl_scale
    return Batch(none, none, none, none, **fields, plan=work.got.outcome.plan, kl_scale=scale), leaf.requires_grad_(), first


def add(total: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Sum metrics up; of those that end in max_abs the largest stays."""
    for name, value in new.items():
        value = value.detach()
        if name not in total:
            total[name] = value
        else:
            total[name] = torch.maximum(total[name], value) if name.endswith("max_abs") else total[name] + value
