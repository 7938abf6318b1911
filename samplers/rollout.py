"""Walk a plan with a network: states, predictions and densities of every recorded step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import log_density, step

from . import paths, solvers
from .paths import Path
from .plan import Plan
from .solvers import Solver

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""predict(x [N, *d], sigma [N] float32, slot [N] long) -> u [N, *d] float32."""
Noise = Callable[[int, int], Tensor]
"""noise(slot, node) -> standard normal [*d]."""


@dataclass(frozen=True)
class Slice:
    """Rows of one recorded network call, in order. prompt, row [k]: indices into Rollout.u; block: which block of units;
    sigma: of its first row.
    """

    prompt: Tensor
    row: Tensor
    block: int
    sigma: float


@dataclass(frozen=True)
class Rollout:
    """What a rollout recorded. P prompts, m = len(plan.kept) states, r = len(plan.rows), e = len(plan.edges).

    slots [P]: the prompts' places in the iteration's list;  x [P, m, *d]: states;  u [P, r, *d]: predictions that made the
      recorded steps;
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


@dataclass
class _Front:
    """The live states of one wave: (prompt, node) of every row of x."""

    prompt: list[int]
    node: list[int]
    x: Tensor

    def find(self) -> dict[tuple[int, int], int]:
        return {k: i for i, k in enumerate(zip(self.prompt, self.node, strict=True))}


def units(plan: Plan, prompts: int) -> Tensor:
    """All units [prompts * roots, 2] as (prompt, root), prompt-major: what a rollout can be cut into."""
    p = torch.arange(prompts).repeat_interleave(len(plan.roots))
    return torch.stack([p, plan.roots.repeat(prompts)], 1)


def _cut(rows: list[int], lanes: list[int], size: int | None) -> Iterator[list[int]]:
    for lane in dict.fromkeys(lanes):
        mine = [r for r, which in zip(rows, lanes, strict=True) if which == lane]
        size_ = size or len(mine)
        yield from (mine[i : i + size_] for i in range(0, len(mine), size_))


@torch.no_grad()
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
    lane: Callable[[float], int] = lambda sigma: 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    storage: str | torch.device | None = None,
) -> Rollout:
    """Walk `plan` for every prompt, block by block, wave by wave.

    prompts: how many, or their slots [P] in the iteration's list.  shape: latent dims *d.  blocks: units (prompt, root) walked
      together,
    one after the other; None: all in one.  slice: most rows of a recorded call; quiet rows share one call a wave of a block.
    lane: calls never mix lanes.  dtype: states are rounded to it before they are scored.  device: where states are computed;
      storage: where the record lies
    (None: the same device).

    A state depends on its slot, its node and the geometry of its calls alone.
    """
    slots = torch.arange(prompts) if isinstance(prompts, int) else prompts
    if len(slots) == 0:
        raise ValueError("a rollout of 0 prompts; give at least 1")
    places: list[int] = slots.tolist()
    walked = [units(plan, len(slots))] if blocks is None else list(blocks)
    record = _Record(plan, len(slots), tuple(shape), dtype, torch.device(storage or device))
    slices: list[Slice] = []
    host = plan.host
    for index, pairs in enumerate([tuple(unit) for unit in block.tolist()] for block in walked):
        start = torch.stack([noise(places[p], root) for p, root in pairs])
        front = _Front([p for p, _ in pairs], [root for _, root in pairs], start.to(device).to(dtype).float())
        record.states(front)
        for depth in range(len(plan.waves)):
            children = [(p, n) for p, root in pairs for n in host.waves[root][depth]]
            if not children:
                break
            where = front.find()
            parents = [where[p, host.parent[n]] for p, n in children]
            u = torch.empty_like(front.x)
            for rows, kept in _calls(plan, front, parents, slice, lane):
                nodes, prompt = [front.node[i] for i in rows], [front.prompt[i] for i in rows]
                sigma = torch.tensor([host.sigma[n] for n in nodes], device=device)
                u[rows] = predict(front.x[rows], sigma, torch.tensor([places[p] for p in prompt], device=device))
                if kept:
                    slices.append(
                        Slice(torch.tensor(prompt), torch.tensor([host.row[n] for n in nodes]), index, host.sigma[nodes[0]])
                    )
                    record.predictions(prompt, [host.row[n] for n in nodes], u[rows])
            front = _advance(plan, path, solver, front, u, parents, children, lambda p, n: noise(places[p], n), dtype, record)
            record.states(front)
    return Rollout(plan, path, slots, record.x, record.u, record.log_prob, record.owned, slices, walked, slice)


def _calls(
    plan: Plan, front: _Front, parents: list[int], slice: int | None, lane: Callable[[float], int]
) -> Iterator[tuple[list[int], bool]]:
    """The network calls of a wave, as (rows of the front, recorded): recorded ones first and in slices, quiet ones together."""
    needed = sorted(set(parents))
    for kept, size in ((True, slice), (False, None)):
        rows = [i for i in needed if (front.node[i] in plan.host.row) == kept]
        for call in _cut(rows, [lane(plan.host.sigma[front.node[i]]) for i in rows], size):
            yield call, kept


def _advance(
    plan: Plan,
    path: Path,
    solver: Solver,
    front: _Front,
    u: Tensor,
    parents: list[int],
    children: list[tuple[int, int]],
    noise: Noise,
    dtype: torch.dtype,
    record: _Record,
) -> _Front:
    """States of the next wave; the densities of its noisy edges go into the record."""
    x = torch.empty(len(children), *front.x.shape[1:], device=front.x.device)
    for noisy in (True, False):
        mine = [k for k, (_, n) in enumerate(children) if plan.host.noisy[n] == noisy]
        if not mine:
            continue
        at, nodes = [parents[k] for k in mine], torch.tensor([children[k][1] for k in mine])
        if noisy:
            a, b, s = (t.float().to(x.device) for t in plan.coefficients(nodes, path))
            z = torch.stack([noise(*children[k]) for k in mine]).to(x.device)
            x[mine] = step(front.x[at], u[at], a, b, s, z).to(dtype).float()
            # what is stored is what is scored
            record.densities([children[k] for k in mine], log_density(x[mine], step(front.x[at], u[at], a, b, s), s))
        else:
            x[mine] = solver.move(front.x[at], u[at], plan.sigma[plan.parent[nodes]], plan.sigma[nodes], path).to(dtype).float()
    return _Front([p for p, _ in children], [n for _, n in children], x)


class _Record:
    """Where a rollout writes."""

    def __init__(self, plan: Plan, prompts: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.host = plan.host
        self.x = torch.zeros(prompts, len(plan.kept), *shape, dtype=dtype, device=device)
        self.u = torch.zeros(prompts, len(plan.rows), *shape, device=device)
        self.log_prob = torch.zeros(prompts, len(plan.edges), device=device)
        self.owned = torch.zeros(prompts, len(plan.parent), dtype=torch.bool)

    def states(self, front: _Front) -> None:
        self.owned[front.prompt, front.node] = True
        rows = [i for i, n in enumerate(front.node) if n in self.host.kept]
        if rows:
            at = [self.host.kept[front.node[i]] for i in rows]
            self.x[[front.prompt[i] for i in rows], at] = front.x[rows].to(self.x)

    def predictions(self, prompt: list[int], row: list[int], u: Tensor) -> None:
        self.u[prompt, row] = u.to(self.u)

    def densities(self, edges: list[tuple[int, int]], log_prob: Tensor) -> None:
        self.log_prob[[p for p, _ in edges], [self.host.edge[n] for _, n in edges]] = log_prob.to(self.log_prob)
