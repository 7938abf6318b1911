"""A plan: one prompt's rollout as a tree of noise levels, in arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from . import paths, solvers
from .laws import Law


@dataclass(frozen=True)
class Host:
    """A plan as Python numbers, for the bookkeeping of a rollout: nothing in it ever asks a device.

    kept, row, edge: node -> its index in the record;  waves: root -> the nodes of its subtree, wave by wave.
    """

    sigma: list[float]
    parent: list[int]
    noisy: list[bool]
    kept: dict[int, int]
    row: dict[int, int]
    edge: dict[int, int]
    waves: dict[int, list[list[int]]]


@dataclass(frozen=True, eq=False)
class Plan:
    """Node i sits at sigma[i] (float64) and came from parent[i] (-1: a root, drawn from N(0, I)); noisy[i]: the edge into i is
    stochastic.

    Parents come before their children. label: a class of edges that compete (granularity, window); mix: correlation of
    siblings' noise.
    An edge is recorded iff it is noisy.

    Raises: ValueError where a plan could not work: levels that rise or leave [0, 1], twins without noise, a noisy edge with std 0.
    """

    sigma: Tensor
    parent: Tensor
    noisy: Tensor
    law: Law
    guard: float
    label: Tensor | None = None
    mix: Tensor | None = None

    def __post_init__(self) -> None:
        n, has = len(self.parent), self.parent >= 0
        if not (len(self.sigma) == len(self.noisy) == n > 0):
            raise ValueError(
                f"a plan's arrays have {len(self.sigma)}, {n} and {len(self.noisy)} entries; they need one entry a node"
            )
        if (self.sigma > 1).any() or (self.sigma < 0).any():
            raise ValueError(f"noise levels must lie in [0, 1], got {self.sigma.min():g} to {self.sigma.max():g}")
        if (self.parent[has] >= torch.arange(n)[has]).any():
            raise ValueError("a node comes before its parent; list parents first")
        if (self.noisy & ~has).any():
            raise ValueError("a root has no edge that could be noisy; set noisy to False where parent is -1")
        if not (self.sigma[self.parent[has]] > self.sigma[has]).all():
            raise ValueError("sigma must fall along every edge")
        quiet = list(zip(self.parent[has & ~self.noisy].tolist(), self.sigma[has & ~self.noisy].tolist(), strict=True))
        if len(set(quiet)) < len(quiet):
            raise ValueError("a state branches without noise: its children would be identical; make the step noisy or drop a child")
        s = self.coefficients(self.edges)[2]
        bad = ~((s > 0) & torch.isfinite(s))
        if bad.any():
            node = int(self.edges[bad][0])
            at = f"{self.sigma[self.parent[node]]:.4g} -> {self.sigma[node]:.4g}"
            raise ValueError(
                f"the step {at} is marked noisy but its law gives std {s[bad][0]:g} there; end the stochastic range earlier"
            )

    def coefficients(self, nodes: Tensor, path: paths.Path = paths.flow) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, s), float64, of the stochastic edges into `nodes`."""
        sigma, sigma_next = self.sigma[self.parent[nodes]], self.sigma[nodes]
        return path.coefficients(sigma, sigma_next, *self.law(sigma, sigma_next, self.guard, alpha=path.alpha))

    @cached_property
    def edges(self) -> Tensor:
        """Recorded edges, named by the node they lead to."""
        return self.noisy.nonzero().flatten()

    @cached_property
    def rows(self) -> Tensor:
        """Distinct parents of recorded edges: children of one state share its prediction."""
        return self.parent[self.edges].unique()

    @cached_property
    def leaves(self) -> Tensor:
        inner = torch.zeros(len(self.parent), dtype=torch.bool)
        inner[self.parent[self.parent >= 0]] = True
        return (~inner).nonzero().flatten()

    @cached_property
    def kept(self) -> Tensor:
        """Nodes whose states are recorded: parents and children of recorded edges, and leaves."""
        return torch.cat([self.rows, self.edges, self.leaves]).unique()

    @cached_property
    def depth(self) -> Tensor:
        depth = torch.zeros_like(self.parent)
        for i, p in enumerate(self.parent.tolist()):
            depth[i] = 0 if p < 0 else depth[p] + 1
        return depth

    @cached_property
    def root(self) -> Tensor:
        root = torch.arange(len(self.parent))
        for i, p in enumerate(self.parent.tolist()):
            if p >= 0:
                root[i] = root[p]
        return root

    @cached_property
    def roots(self) -> Tensor:
        return (self.parent < 0).nonzero().flatten()

    @cached_property
    def waves(self) -> list[Tensor]:
        """Nodes by depth, roots left out: states of one wave share network calls."""
        return [(self.depth == k).nonzero().flatten() for k in range(1, int(self.depth.max()) + 1)]

    def nfe(self, solver: solvers.Solver = solvers.euler) -> int:
        """Network evaluations of one rollout of one prompt."""
        recorded = set(self.rows.tolist())
        return sum(1 if p in recorded else solver.calls for p in self.parent[self.parent >= 0].unique().tolist())

    @cached_property
    def host(self) -> Host:
        return Host(
            self.sigma.tolist(),
            self.parent.tolist(),
            self.noisy.tolist(),
            *({n: i for i, n in enumerate(t.tolist())} for t in (self.kept, self.rows, self.edges)),
            {
                root: [[n for n in wave.tolist() if int(self.root[n]) == root] for wave in self.waves]
                for root in self.roots.tolist()
            },
        )

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for plans that do the same thing, whatever objects they were built from."""
        parts = (self.sigma, self.parent, self.noisy, self.label, self.mix, *self.coefficients(self.edges))
        return (self.guard, *(None if t is None else tuple(t.tolist()) for t in parts))


@dataclass
class _Builder:
    sigma: list[float] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    noisy: list[bool] = field(default_factory=list)
    seen: dict[tuple[int, float], int] = field(default_factory=dict)

    def add(self, sigma: float, parent: int = -1, noisy: bool = False) -> int:
        """Index of the new node; a quiet twin of an existing child is that child."""
        if not noisy and parent >= 0 and (parent, sigma) in self.seen:
            return self.seen[parent, sigma]
        self.sigma.append(sigma)
        self.parent.append(parent)
        self.noisy.append(noisy)
        node = len(self.sigma) - 1
        if not noisy:
            self.seen[parent, sigma] = node
        return node

    def done(self, law: Law, guard: float) -> Plan:
        return Plan(torch.tensor(self.sigma, dtype=torch.float64), torch.tensor(self.parent), torch.tensor(self.noisy), law, guard)


def _grid(sigmas: Tensor | Sequence[float], steps: Sequence[int]) -> tuple[list[float], set[int]]:
    grid = [float(v) for v in sigmas]
    wrong = [i for i in steps if not 0 <= i < len(grid) - 1]
    if wrong:
        raise ValueError(f"step {wrong[0]} does not exist: the schedule has steps 0 to {len(grid) - 2}")
    return grid, set(steps)


def chains(sigmas: Tensor | Sequence[float], law: Law, noisy: Sequence[int] = (), group: int = 1) -> Plan:
    """`group` independent chains over the grid; the steps in `noisy` are stochastic (a window, all, or none).

    Source: Flow-GRPO (2505.05470), MixGRPO (2507.21802).
    """
    if group < 1:
        raise ValueError(f"a group of {group}: give at least 1")
    grid, on = _grid(sigmas, noisy)
    b = _Builder()
    for _ in range(group):
        node = b.add(grid[0])
        for i, sigma in enumerate(grid[1:]):
            node = b.add(sigma, node, i in on)
    return b.done(law, grid[1])


def tree(sigmas: Tensor | Sequence[float], law: Law, noisy: Sequence[int], fan: Mapping[int, int]) -> Plan:
    """One root that branches: at step i every state has fan.get(i, 1) children. Fan-out at step 0 = shared initial noise.

    Source: BranchGRPO (2509.06040); DanceGRPO (2505.07818) for the shared initial noise.
    """
    grid, on = _grid(sigmas, [*noisy, *fan])
    on = set(noisy)
    b = _Builder()
    front = [b.add(grid[0])]
    for i, sigma in enumerate(grid[1:]):
        front = (
            [b.add(sigma, p, i in on) for p in front for _ in range(fan.get(i, 1))] if i in on else [b.add(sigma, p) for p in front]
        )
        if fan.get(i, 1) > 1 and i not in on:
            raise ValueError(f"the plan branches at step {i}, which is not noisy: the children would be identical")
    return b.done(law, grid[1])


def comb(sigmas: Tensor | Sequence[float], law: Law, at: Sequence[int], k: int, strides: Sequence[int] = (1,)) -> Plan:
    """One quiet spine; at each step in `at`, k noisy children, each finished quietly once per stride (granularity).

    Source: TempFlow-GRPO (2508.04324); G2RPO (2510.01982) for several granularities.
    """
    grid, on = _grid(sigmas, at)
    b = _Builder()
    spine = [b.add(grid[0])]
    for sigma in grid[1:]:
        spine.append(b.add(sigma, spine[-1]))
    for i in sorted(on):
        for _ in range(k):
            child = b.add(grid[i + 1], spine[i], True)
            for stride in strides:
                node = child
                for sigma in [*grid[i + 1 + stride : -1 : stride], 0.0] if grid[i + 1] > 0 else []:
                    node = b.add(sigma, node)
    return b.done(law, grid[1])
