"""From credit to weights: replay the recorded slices with gradients, one optimizer step a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowrl.dist import World
from flowrl.replay import RatioError, Work, add, anchored, backward
from flowrl.samplers.noise import Source
from flowrl.sizes import REMEDY
from flowrl.types import Method, Policy, Queries
from flowrl.weights import Weights


@dataclass(frozen=True)
class Trained:
    """metrics: means over the iteration's optimizer steps;  first: those of the first step, before any update;
    halvings: how often slices were cut in two for lack of memory."""

    metrics: Mapping[str, float]
    first: Mapping[str, float]
    halvings: int


def normalised(queries: Sequence[Queries | None], parts: Sequence[Sequence[int]], count: int, world: World) -> list[Queries | None]:
    """Weights divided by their sum over all batches and processes, each optimizer step by its own: a step's loss is a mean.

    parts: of each batch, the step of each of its blocks;  count: of steps.
    """
    totals = torch.zeros(2, count, device=world.device)
    steps: list[Tensor] = []
    for q, part in zip(queries, parts, strict=True):
        part_of = torch.zeros(0 if q is None else len(q.row_prompt), dtype=torch.long)
        if q is not None:
            for rows, block in zip(q.slices, q.block, strict=True):
                part_of[rows] = part[block]
            part_of = part_of[q.row]
            for i, weight in enumerate((q.weight, q.kl_weight)):
                totals[i].index_add_(0, part_of.to(world.device), weight.to(world.device))
        steps.append(part_of)
    world.sum(totals)
    scale = 1 / totals.cpu().clamp(min=1e-12)
    return [None if q is None else _scaled(q, *scale[:, step]) for q, step in zip(queries, steps, strict=True)]


def _scaled(q: Queries, policy: Tensor, kl: Tensor) -> Queries:
    share = 1.0 if q.share is None else q.share
    kl_share = 1.0 if q.kl_share is None else q.kl_share
    return replace(q, weight=q.weight * policy * share, kl_weight=q.kl_weight * kl * kl_share, share=None, kl_share=None)


def step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float, world: World) -> float:
    """Sum gradients over processes, clip their norm, step. Returns the norm before clipping.

    Raises: FloatingPointError for a gradient that is not finite; the weights are then untouched.
    """
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten().float() for p in parameters])
    world.sum(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(g.view_as(p))
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient is {float(norm)}; lower optim.lr, or use policy.dtype bfloat16 instead of float16")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def shrunk(q: Queries) -> Queries:
    """Every slice of more than a row in two."""
    halves = [(half, block) for rows, block in zip(q.slices, q.block, strict=True) for half in rows.split(-(-len(rows) // 2))]
    return replace(q, slices=[h for h, _ in halves], block=[b for _, b in halves])


def update(
    policy: Policy,
    weights: Weights,
    method: Method,
    works: Sequence[Work],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    noise: Source,
    world: World,
    exact: bool = True,
) -> Trained:
    """All optimizer steps of one iteration, each over its part of every batch. A step that runs out of memory begins again with
    half slices, re-anchored.

    Raises: RatioError if the ratio to the record is not exactly 1 before the first step (exact=False allows it);
    torch.OutOfMemoryError where a single row does not fit.
    """
    means = normalised([w.queries for w in works], [w.parts for w in works], method.updates, world)
    works = [replace(work, queries=q) for work, q in zip(works, means, strict=True)]
    steps: list[dict[str, float]] = []
    halvings = 0
    for part in [part for _ in range(method.epochs) for part in range(method.updates)]:
        while True:
            metrics: dict[str, Tensor] = {}
            full = False
            try:
                for work in works:
                    add(metrics, backward(policy, weights, method, work, part, noise, world))
            except torch.OutOfMemoryError:
                full = True
            if not world.any(full):
                break
            optimizer.zero_grad(set_to_none=True)
            halvings += 1
            with world.together():
                works = [_smaller(policy, weights, method, work, noise, full) for work in works]
        row = gathered(metrics, world)
        if exact and not steps and row.get("ratio/max_abs", 0.0) != 0:
            optimizer.zero_grad(set_to_none=True)
            raise RatioError(f"before the first update log p differs from the rollout's by up to {row['ratio/max_abs']:.3g}, not 0")
        row["grad/norm"] = step(optimizer, weights.parameters, max_norm, world)
        steps.append(row)
    names = dict.fromkeys(n for s in steps for n in s)
    mean = {n: (max if n.endswith("max_abs") else _mean)([s[n] for s in steps if n in s]) for n in names}
    return Trained(mean, steps[0], halvings)


def _smaller(policy: Policy, weights: Weights, method: Method, work: Work, noise: Source, full: bool) -> Work:
    """Half slices, re-anchored on them. full: whether it was this process that ran out of memory."""
    q, ro = work.queries, work.got.rollout
    if q is None or ro is None:
        return work
    if full and max(len(rows) for rows in q.slices) == 1:
        raise torch.OutOfMemoryError(f"out of memory while training on a single row; {REMEDY}")
    q = shrunk(q)
    with weights.using(method.sample_from):
        ro = anchored(policy, ro, q, work.got.cond, noise)
    return replace(work, got=replace(work.got, rollout=ro), queries=q)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def gathered(metrics: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Sums (for *max_abs: the largest) over all processes."""
    every = world.gather({name: float(v) for name, v in metrics.items()})
    names = dict.fromkeys(name for m in every for name in m)
    return {n: (max if n.endswith("max_abs") else sum)([m[n] for m in every if n in m]) for n in names}
