"""The engine of a rollout: waves of live states, their network calls, and what is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.kernels import log_density, step

from . import solvers
from .paths import Path
from .plan import Plan
from .solvers import Solver

Predict = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""predict(x [N, *d], sigma [N] float32, slot [N] long) -> u [N, *d] float32, or (u, raw) with a head for learned noise."""
Noise = Callable[[int, int], Tensor]
"""noise(slot, node) -> standard normal [*d]."""
Lane = Callable[[float], int]


def joined(answer: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """u as it is; (u, raw) of a policy with a noise head as one tensor [N, 2, *d]."""
    return answer if isinstance(answer, Tensor) else torch.stack(answer, 1)


@dataclass(frozen=True)
class Slice:
    """Rows of one recorded network call, in order. prompt, row [k]: indices into Rollout.u; block: which block of units;
    sigma: of its first row.
    """

    prompt: Tensor
    row: Tensor
    block: int
    sigma: float


@dataclass
class Front:
    """The live states of one wave: (prompt, node) of every row of x.

    past: earlier (sigma [N] float64, x0_hat [N, *d]) along each row's own ancestors, the latest first, for solvers that look back.
    """

    prompt: list[int]
    node: list[int]
    x: Tensor
    past: list[tuple[Tensor, Tensor]]


class Record:
    """Where a rollout writes."""

    def __init__(self, plan: Plan, prompts: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.host = plan.host
        self.x = torch.zeros(prompts, len(plan.kept), *shape, dtype=dtype, device=device)
        self.u = torch.zeros(prompts, len(plan.rows), *([2] if plan.learned else []), *shape, device=device)
        self.log_prob = torch.zeros(prompts, len(plan.edges), device=device)
        self.owned = torch.zeros(prompts, len(plan.parent), dtype=torch.bool)

    def states(self, front: Front) -> None:
        self.owned[front.prompt, front.node] = True
        rows = [i for i, n in enumerate(front.node) if n in self.host.kept]
        if rows:
            at = [self.host.kept[front.node[i]] for i in rows]
            self.x[[front.prompt[i] for i in rows], at] = front.x[rows].to(self.x)

    def predictions(self, prompt: list[int], row: list[int], u: Tensor) -> None:
        self.u[prompt, row] = u.to(self.u)

    def densities(self, prompt: list[int], nodes: list[int], log_prob: Tensor) -> None:
        self.log_prob[prompt, [self.host.edge[n] for n in nodes]] = log_prob.to(self.log_prob)


def cut(rows: list[int], lanes: list[int], size: int | None) -> Iterator[list[int]]:
    """Rows in calls of at most `size`, lanes apart."""
    for lane in dict.fromkeys(lanes):
        mine = [r for r, which in zip(rows, lanes, strict=True) if which == lane]
        size_ = size or len(mine)
        yield from (mine[i : i + size_] for i in range(0, len(mine), size_))


@dataclass
class Walk:
    """One rollout under way; see `rollout` for the fields."""

    plan: Plan
    predict: Predict
    noise: Noise
    solver: Solver
    path: Path
    slots: list[int]
    shape: tuple[int, ...]
    slice: int | None
    batch: int | None
    lane: Lane
    dtype: torch.dtype
    device: str | torch.device
    storage: str | torch.device
    record: Record = field(init=False)
    slices: list[Slice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = self.plan.host
        self.record = Record(self.plan, len(self.slots), self.shape, self.dtype, torch.device(self.storage))

    def block(self, index: int, units: Sequence[tuple[int, int]]) -> None:
        """Walk some units (prompt, root) from their roots to their leaves."""
        x = torch.stack([self.draw(p, root) for p, root in units]).to(self.device)
        front = Front([p for p, _ in units], [root for _, root in units], self.stored(x), [])
        self.record.states(front)
        for depth in range(len(self.plan.waves)):
            children = [(p, n) for p, root in units for n in self.host.waves[root][depth]]
            if not children:
                break
            front = self.wave(index, front, children)
            self.record.states(front)

    def wave(self, index: int, front: Front, children: list[tuple[int, int]]) -> Front:
        """The next front: the network is asked once for every state with children, then each child takes its step."""
        where = {unit: i for i, unit in enumerate(zip(front.prompt, front.node, strict=True))}
        parents = [where[p, self.host.parent[n]] for p, n in children]
        u, raw = self.split(self.predictions(index, front, sorted(set(parents))))
        x = torch.empty(len(children), *self.shape, device=front.x.device)
        for noisy in (True, False):
            mine = [k for k, (_, n) in enumerate(children) if self.host.noisy[n] == noisy]
            if mine:
                own, at = [children[k] for k in mine], [parents[k] for k in mine]
                x[mine] = self.noisy(front, u, raw, own, at) if noisy else self.quiet(front, u, own, at)
        return Front([p for p, _ in children], [n for _, n in children], x, self.past(front, u, parents))

    def predictions(self, index: int, front: Front, needed: list[int]) -> Tensor:
        """Answers at the rows of the front that have children: recorded ones first, in slices, then quiet ones."""
        u = torch.empty(len(front.x), *self.record.u.shape[2:], device=front.x.device)
        for kept, size in ((True, self.slice), (False, self.batch)):
            rows = [i for i in needed if (front.node[i] in self.host.row) == kept]
            for call in cut(rows, [self.lane(self.host.sigma[front.node[i]]) for i in rows], size):
                nodes, prompt = [front.node[i] for i in call], [front.prompt[i] for i in call]
                u[call] = self.ask(front.x[call], [self.host.sigma[n] for n in nodes], prompt)
                if kept:
                    at = [self.host.row[n] for n in nodes]
                    self.slices.append(Slice(torch.tensor(prompt), torch.tensor(at), index, self.host.sigma[nodes[0]]))
                    self.record.predictions(prompt, at, u[call])
        return u

    def ask(self, x: Tensor, sigma: list[float], prompt: list[int]) -> Tensor:
        """The network's answer: u [N, *d], or where the noise is learned u and its raw noise [N, 2, *d]."""
        slot = torch.tensor([self.slots[p] for p in prompt], device=self.device)
        answer = joined(self.predict(x, torch.tensor(sigma, device=self.device), slot))
        if answer.ndim == x.ndim and self.plan.learned:
            raise ValueError("the plan's noise is learned, but the policy has no noise head; set policy.noise_head to true")
        if answer.shape not in (x.shape, (len(x), 2, *x.shape[1:])):
            raise ValueError(
                f"predict was given states {list(x.shape)} and returned {list(answer.shape)}; it must return the same shape"
            )
        return answer[:, 0] if answer.ndim > x.ndim and not self.plan.learned else answer

    def split(self, answers: Tensor) -> tuple[Tensor, Tensor | None]:
        return (answers[:, 0], answers[:, 1]) if self.plan.learned else (answers, None)

    def noisy(self, front: Front, u: Tensor, raw: Tensor | None, children: list[tuple[int, int]], at: list[int]) -> Tensor:
        """Stochastic steps, and their densities. What is stored is what is scored."""
        prompt, nodes = [p for p, _ in children], [n for _, n in children]
        a, b, s = (t.float().to(u.device) for t in self.plan.coefficients(torch.tensor(nodes), self.path))
        if self.plan.learned is not None and raw is not None:
            s = self.plan.learned.std(raw[at])
        z = torch.stack([self.draw(p, n) for p, n in children]).to(u.device)
        x = self.stored(step(front.x[at], u[at], a, b, s, z))
        self.record.densities(prompt, nodes, log_density(x, step(front.x[at], u[at], a, b, s), s))
        return x

    def quiet(self, front: Front, u: Tensor, children: list[tuple[int, int]], at: list[int]) -> Tensor:
        """Steps of the solver."""
        nodes = torch.tensor([n for _, n in children])
        sigma, left = self.plan.sigma, self.plan.height[nodes]

        def again(x: Tensor, levels: Tensor, rows: list[int]) -> Tensor:
            out, where = torch.empty_like(x), levels.tolist()
            for call in cut(list(range(len(x))), [self.lane(level) for level in where], self.batch):
                out[call] = self.split(self.ask(x[call], [where[i] for i in call], [children[rows[i]][0] for i in call]))[0]
            return out

        start = solvers.Start(
            x=front.x[at],
            u=u[at],
            sigma=sigma[self.plan.parent[nodes]],
            sigma_next=sigma[nodes],
            path=self.path,
            past=[(level[at], x0[at]) for level, x0 in front.past],
            left=left,
            steps=self.plan.depth[nodes] + left,
            noised=self.plan.noised[nodes],
            predict=again,
        )
        return self.stored(self.solver.move(start))

    def past(self, front: Front, u: Tensor, parents: list[int]) -> list[tuple[Tensor, Tensor]]:
        """What the children will look back on: their parents' clean predictions, and what those looked back on."""
        if not self.solver.memory:
            return []
        sigma = self.plan.sigma[front.node]
        x0 = self.path.x0(front.x, u, sigma.to(u).view(-1, *[1] * (u.ndim - 1)))
        return [(level[parents], value[parents]) for level, value in [(sigma, x0), *front.past][: self.solver.memory]]

    def draw(self, prompt: int, node: int) -> Tensor:
        """A node's noise; siblings share a part of it where the plan mixes."""
        slot, own = self.slots[prompt], self.host.mix.get(node)
        z = self.noise(slot, node)
        if z.shape != self.shape:
            raise ValueError(
                f"noise(slot, node) returned {list(z.shape)} for latents of {list(self.shape)}; it must draw one state"
            )
        return z if own is None else (1 - own**2) ** 0.5 * self.noise(slot, -2 - self.host.parent[node]) + own * z

    def stored(self, x: Tensor) -> Tensor:
        """Rounded to the storage dtype."""
        return x.to(self.dtype).float()
