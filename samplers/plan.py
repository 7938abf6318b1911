"""A plan: one prompt's rollout as a tree of noise levels, in arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import paths, solvers
from .laws import FlowNoise, Law


@dataclass(frozen=True)
class Host:
    """A plan as Python numbers, for the bookkeeping of a rollout: nothing in it ever asks a device.

    kept, row, edge: node -> its index in the record;  waves: root -> the nodes of its subtree, wave by wave.
    mix: node -> share of its own noise, where it is not alone.
    """

    sigma: list[float]
    parent: list[int]
    noisy: list[bool]
    mix: dict[int, float]
    kept: dict[int, int]
    row: dict[int, int]
    edge: dict[int, int]
    waves: dict[int, list[list[int]]]


@dataclass(frozen=True, eq=False)
class Plan:
    """Node i sits at sigma[i] (float64) and came from parent[i] (-1: a root, drawn from N(0, I)); noisy[i]: the edge into i is
    stochastic.

    Parents come before their children. An edge is recorded iff it is noisy.
    label [n]: a class of edges that compete (granularity, window).
    mix [n], in (0, 1]: how much of a node's noise is its own: z = sqrt(1 - mix^2) shared + mix own, where siblings (or all roots)
    share; 1: independent. z stays N(0, I), and so does every edge's density.

    watched [n]: nodes whose states are recorded although no noisy step touches them.

    Raises: ValueError where a plan could not work: levels that rise or leave [0, 1], twins without noise, a noisy edge with std 0,
    a mix outside (0, 1].
    """

    sigma: Tensor
    parent: Tensor
    noisy: Tensor
    law: Law
    guard: float
    label: Tensor | None = None
    mix: Tensor | None = None
    watched: Tensor | None = None

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
        for name, values in (("label", self.label), ("mix", self.mix), ("watched", self.watched)):
            if values is not None and len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for a plan of {n} nodes; it needs one a node")
        if self.mix is not None and not ((self.mix > 0) & (self.mix <= 1)).all():
            raise ValueError(
                f"mix, the share of a node's own noise, must lie in (0, 1], got {self.mix.min():g} to {self.mix.max():g}: "
                "at 0 siblings would be identical"
            )
        a, b, s = self.coefficients(self.edges)
        bad = ~((s > 0) & torch.isfinite(a + b + s))
        if bad.any():
            node = int(self.edges[bad][0])
            at = f"{self.sigma[self.parent[node]]:.4g} -> {self.sigma[node]:.4g}"
            raise ValueError(
                f"the step {at} is marked noisy but its law gives std {s[bad][0]:g} there; end the stochastic range earlier"
            )

    @property
    def learned(self) -> FlowNoise | None:
        """The law, where its noise comes from a head of the policy; None for all others."""
        return self.law if isinstance(self.law, FlowNoise) else None

    def coefficients(self, nodes: Tensor, path: paths.Path = paths.flow) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, s), float64, of the stochastic edges into `nodes`."""
        sigma, sigma_next = self.sigma[self.parent[nodes]], self.sigma[nodes]
        return path.coefficients(sigma, sigma_next, *self.law(sigma, sigma_next, self.guard, alpha=path.alpha))

    def excess(self, path: paths.Path = paths.flow) -> float:
        """How much more noise a recorded edge leaves than its level stands for: the greatest sqrt(c^2 + s^2) / sigma' of those that
        end above sigma' = 0; 1 for laws that keep the path's marginals, and where there is no such edge."""
        nodes = self.edges[self.sigma[self.edges] > 0]
        sigma, sigma_next = self.sigma[self.parent[nodes]], self.sigma[nodes]
        c, s = self.law(sigma, sigma_next, self.guard, alpha=path.alpha)
        return float(((c**2 + s**2).sqrt() / sigma_next).amax()) if len(nodes) else 1.0

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
        """Nodes whose states are recorded: parents and children of recorded edges, leaves, and watched ones."""
        watched = self.leaves if self.watched is None else self.watched.nonzero().flatten()
        return torch.cat([self.rows, self.edges, self.leaves, watched]).unique()

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

    @cached_property
    def peers(self) -> Tensor:
        """Which edges compete: class of the edge into a node, by (sigma of parent and child, noisy, label); -1: roots. [n] long."""
        label = torch.zeros(len(self.parent), dtype=torch.float64) if self.label is None else self.label.double()
        # on a comb the spine and earlier teeth take the same step quietly: no rivals of the children that branch there
        key = torch.stack([self.sigma[self.parent.clamp(min=0)], self.sigma, self.noisy.double(), label], 1)
        ids, inner = torch.full_like(self.parent, -1), self.parent >= 0
        ids[inner] = key[inner].unique(dim=0, return_inverse=True)[1]
        return ids

    @cached_property
    def rivals(self) -> Tensor:
        """Which leaves compete: class of a leaf, by the classes of the noisy edges on its way (`peers`). [leaves] long.

        One class on chains and trees; on a comb one a branching step and granularity.
        """
        ways: list[tuple[int, ...]] = []
        for p, noisy, peer in zip(self.parent.tolist(), self.noisy.tolist(), self.peers.tolist(), strict=True):
            ways.append((*(ways[p] if p >= 0 else ()), *([peer] if noisy else [])))
        ids = {way: number for number, way in enumerate(dict.fromkeys(ways[i] for i in self.leaves.tolist()))}
        return torch.tensor([ids[ways[i]] for i in self.leaves.tolist()], dtype=torch.long)

    @cached_property
    def ends(self) -> Tensor:
        """bool [n, leaves]: whether a leaf lies at or below a node."""
        below = torch.zeros(len(self.parent), len(self.leaves), dtype=torch.bool)
        below[self.leaves, torch.arange(len(self.leaves))] = True
        for i, p in reversed(list(enumerate(self.parent.tolist()))):
            if p >= 0:
                below[p] |= below[i]
        return below

    @cached_property
    def noised(self) -> Tensor:
        """bool [n]: whether a noisy edge lies on the way from the root to a node."""
        noised = self.noisy.clone()
        for i, p in enumerate(self.parent.tolist()):
            if p >= 0:
                noised[i] |= noised[p]
        return noised

    @cached_property
    def height(self) -> Tensor:
        """Steps from a node to the furthest leaf below it."""
        height = torch.zeros_like(self.parent)
        for i, p in reversed(list(enumerate(self.parent.tolist()))):
            if p >= 0:
                height[p] = max(int(height[p]), int(height[i]) + 1)
        return height

    def nfe(self, solver: solvers.Solver = solvers.euler) -> int:
        """Network evaluations of one rollout of one prompt: one a state that is left, and a solver's further calls at each quiet
        step that does not end at 0.
        """
        inner = self.parent >= 0
        return len(self.parent[inner].unique()) + solver.extra * int((inner & ~self.noisy & (self.sigma > 0)).sum())

    @cached_property
    def host(self) -> Host:
        places = [{n: i for i, n in enumerate(t.tolist())} for t in (self.kept, self.rows, self.edges)]
        roots = self.root.tolist()
        return Host(
            sigma=self.sigma.tolist(),
            parent=self.parent.tolist(),
            noisy=self.noisy.tolist(),
            mix={} if self.mix is None else {i: m for i, m in enumerate(self.mix.tolist()) if m < 1},
            kept=places[0],
            row=places[1],
            edge=places[2],
            waves={root: [[n for n in wave.tolist() if roots[n] == root] for wave in self.waves] for root in self.roots.tolist()},
        )

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for plans that do the same thing, whatever objects they were built from."""
        parts = (self.sigma, self.parent, self.noisy, self.label, self.mix, self.watched, *self.coefficients(self.edges))
        return (self.guard, *(None if t is None else tuple(t.tolist()) for t in parts))
