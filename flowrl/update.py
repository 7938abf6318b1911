"""From credit to weights: replay the recorded slices with gradients, one optimizer step a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowrl.collect import Collected
from flowrl.dist import World
from flowrl.samplers import Rollout, joined
from flowrl.samplers.noise import Source
from flowrl.sizes import REMEDY, Block
from flowrl.types import Batch, Cond, Method, Policy, Queries
from flowrl.weights import Weights


class RatioError(RuntimeError):
    """Rollout and replay of the same states disagree: the run would train on a wrong ratio."""


@dataclass(frozen=True)
class Trained:
    """metrics: means over the iteration's optimizer steps;  first: those of the first step, before any update;
    halvings: how often slices were cut in two for lack of memory."""

    metrics: Mapping[str, float]
    first: Mapping[str, float]
    halvings: int


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
    take = {name: getattr(q, name)[edges].to(device) for name in ("a", "b", "s", "delta", "advantage", "weight", "kl_weight")}
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
        **take,
    )


def _answers(policy: Policy, weights: Weights, needs: Sequence[str], batch: Batch, cond: Cond) -> dict[str, Tensor]:
    """Predictions under every weight set the objective needs; only "current" carries gradients."""
    mine, u = cond.take(batch.slot.to(batch.x.device)), {}
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

    Objectives that ask for no recorded predictions get the record as it is.
    """
    if not (q.old >= 0).all():
        return ro
    u = ro.u.clone()
    with torch.no_grad():
        for rows in q.slices:
            batch = form(q, rows, ro, noise)
            mine = cond.take(batch.slot.to(batch.x.device))
            u[q.row_prompt[rows], q.old[rows]] = answer(policy, batch, mine).to(u)
    return replace(ro, u=u)


def normalised(q: Queries | None, parts: Sequence[int], count: int, world: World) -> Queries | None:
    """Weights divided by their sum over all processes, each optimizer step by its own: a step's loss is a mean."""
    totals = torch.zeros(2, count, device=world.device)
    part_of = None
    if q is not None:
        part_of = torch.zeros(len(q.row_prompt), dtype=torch.long)
        for rows, block in zip(q.slices, q.block, strict=True):
            part_of[rows] = parts[block]
        for i, weight in enumerate((q.weight, q.kl_weight)):
            totals[i].index_add_(0, part_of[q.row].to(world.device), weight.to(world.device))
    world.sum(totals)
    if q is None or part_of is None:
        return None
    scale = 1 / totals.cpu().clamp(min=1e-12)
    weight = q.weight * scale[0][part_of[q.row]]
    return replace(
        q, weight=weight if q.share is None else weight * q.share, kl_weight=q.kl_weight * scale[1][part_of[q.row]], share=None
    )


def _backward(
    policy: Policy, weights: Weights, method: Method, q: Queries, mine: Sequence[Tensor], ro: Rollout, cond: Cond, noise: Source
) -> dict[str, Tensor]:
    """Gradients of one optimizer step, slice by slice; a coupled loss goes through its small matrix of measures first."""
    objective, metrics = method.objective, dict[str, Tensor]()
    if objective.separable:
        for rows in mine:
            batch = form(q, rows, ro, noise)
            loss = objective.loss(batch, objective.measure(batch, _answers(policy, weights, objective.needs, batch, cond)))
            loss.value.backward()
            _add(metrics, loss.metrics)
        return metrics
    batches = [form(q, rows, ro, noise) for rows in mine]
    with torch.no_grad():
        m = [objective.measure(b, _answers(policy, weights, objective.needs, b, cond)) for b in batches]
    leaf = torch.cat(m).requires_grad_()
    loss = objective.loss(_edges(batches), leaf)
    loss.value.backward()
    for batch, grad in zip(batches, leaf.grad.split([len(x) for x in m]), strict=True):
        objective.measure(batch, _answers(policy, weights, objective.needs, batch, cond)).backward(grad)
    return dict(loss.metrics)


def _edges(batches: Sequence[Batch]) -> Batch:
    """The per-edge fields of several slices together; a coupled loss sees no latents."""
    names = ("a", "b", "s", "delta", "advantage", "weight", "kl_weight")
    return replace(batches[0], **{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


def _add(total: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    for name, value in new.items():
        value = value.detach()
        if name not in total:
            total[name] = value
        else:
            total[name] = torch.maximum(total[name], value) if name.endswith("max_abs") else total[name] + value


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
    got: Collected,
    q: Queries | None,
    blocks: Sequence[Block],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    noise: Source,
    world: World,
    exact: bool = True,
) -> Trained:
    """All optimizer steps of one iteration. A step that runs out of memory begins again with half slices, re-anchored.

    Raises: RatioError if the ratio to the record is not exactly 1 before the first step (exact=False allows it);
    torch.OutOfMemoryError where a single row does not fit.
    """
    parts = [blocks[i].part for i in got.index]
    q, ro = normalised(q, parts, method.updates, world), got.rollout
    steps: list[dict[str, float]] = []
    halvings = 0
    for part in [part for _ in range(method.epochs) for part in range(method.updates)]:
        while True:
            metrics: dict[str, Tensor] = {}
            full = False
            try:
                if q is not None and ro is not None:
                    mine = [rows for rows, block in zip(q.slices, q.block, strict=True) if parts[block] == part]
                    metrics = _backward(policy, weights, method, q, mine, ro, got.cond, noise) if mine else {}
            except torch.OutOfMemoryError:
                full = True
            if not world.any(full):
                break
            optimizer.zero_grad(set_to_none=True)
            halvings += 1
            with world.together():
                if q is not None and ro is not None:
                    if full and max(len(rows) for rows in q.slices) == 1:
                        raise torch.OutOfMemoryError(f"out of memory while training on a single row; {REMEDY}")
                    q = shrunk(q)
                    with weights.using(method.sample_from):
                        ro = anchored(policy, ro, q, got.cond, noise)
        row = gathered(metrics, world)
        if exact and not steps and row.get("ratio/max_abs", 0.0) != 0:
            optimizer.zero_grad(set_to_none=True)
            raise RatioError(f"before the first update log p differs from the rollout's by up to {row['ratio/max_abs']:.3g}, not 0")
        row["grad/norm"] = step(optimizer, weights.parameters, max_norm, world)
        steps.append(row)
    names = dict.fromkeys(n for s in steps for n in s)
    mean = {n: (max if n.endswith("max_abs") else _mean)([s[n] for s in steps if n in s]) for n in names}
    return Trained(mean, steps[0], halvings)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def gathered(metrics: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Sums (for *max_abs: the largest) over all processes."""
    every = world.gather({name: float(v) for name, v in metrics.items()})
    names = dict.fromkeys(name for m in every for name in m)
    return {n: (max if n.endswith("max_abs") else sum)([m[n] for m in every if n in m]) for n in names}
