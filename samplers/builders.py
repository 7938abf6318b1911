"""Builders of plans: each published way to sample, as arrays."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .laws import Law
from .plan import Plan

Grid = Tensor | Sequence[float]


@dataclass
class _Node:
    sigma: float
    parent: int
    noisy: bool
    label: int
    mix: float


@dataclass
class _Builder:
    nodes: list[_Node] = field(default_factory=list)
    seen: dict[tuple[int, float], int] = field(default_factory=dict)

    def add(self, sigma: float, parent: int = -1, noisy: bool = False, label: int = 0, mix: float = 1.0) -> int:
        """Index of the new node; a quiet twin of an existing child is that child, which then has the bits of both labels."""
        if not noisy and parent >= 0 and (twin := self.seen.get((parent, sigma))) is not None:
            self.nodes[twin].label |= label
            return twin
        self.nodes.append(_Node(sigma, parent, noisy, label, mix))
        if not noisy:
            self.seen[parent, sigma] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def done(self, law: Law, guard: float) -> Plan:
        nodes = self.nodes
        return Plan(
            torch.tensor([n.sigma for n in nodes], dtype=torch.float64),
            torch.tensor([n.parent for n in nodes]),
            torch.tensor([n.noisy for n in nodes]),
            law,
            guard,
            torch.tensor([n.label for n in nodes]) if any(n.label for n in nodes) else None,
            torch.tensor([n.mix for n in nodes], dtype=torch.float64) if any(n.mix != 1 for n in nodes) else None,
        )


def _grid(sigmas: Grid, steps: Sequence[int]) -> tuple[list[float], set[int]]:
    grid = [float(v) for v in sigmas]
    if len(grid) < 2:
        raise ValueError(f"a schedule of {len(grid)} level(s) has no step; give at least two levels")
    wrong = [i for i in steps if int(i) != i or not 0 <= i < len(grid) - 1]
    if wrong:
        raise ValueError(f"step {wrong[0]} does not exist: the schedule has steps 0 to {len(grid) - 2}")
    return grid, set(steps)


def _count(value: int, what: str) -> None:
    if value < 1:
        raise ValueError(f"{what} of {value}: give at least 1")


def chains(sigmas: Grid, law: Law, noisy: Sequence[int] = (), group: int = 1, mix: float = 1.0) -> Plan:
    """`group` independent chains over the grid; the steps in `noisy` are stochastic (a window, all, or none).

    mix < 1: correlated initial noises, sqrt(1 - mix^2) shared + mix own.

    Source: Flow-GRPO (2505.05470), MixGRPO (2507.21802); Neighbor-GRPO (2511.16955) with noisy=(), mix=0.3.
    """
    _count(group, "a group")
    grid, on = _grid(sigmas, noisy)
    b = _Builder()
    for _ in range(group):
        node = b.add(grid[0], mix=mix)
        for i, sigma in enumerate(grid[1:]):
            node = b.add(sigma, node, i in on)
    return b.done(law, grid[1])


def tree(sigmas: Grid, law: Law, noisy: Sequence[int], fan: Mapping[int, int], mix: float = 1.0) -> Plan:
    """One root that branches: at step i every state has fan.get(i, 1) children. Fan-out at step 0 = shared initial noise.

    mix < 1: correlated noise of the children of a branch, sqrt(1 - mix^2) shared + mix own. BranchGRPO's strength s is
    mix = s / sqrt(1 + s^2).

    Raises: ValueError for a branch at a quiet step or at one that does not exist.
    Source: BranchGRPO (2509.06040), split points = the keys of `fan`; Dynamic-TreeRPO (2509.23352), branching inside a window;
    Flow-GRPO-Fast before 2025-10, one branching of 9; DanceGRPO (2505.07818) for the shared initial noise.
    """
    grid, _ = _grid(sigmas, [*noisy, *fan])
    on = set(noisy)
    for step, width in fan.items():
        _count(width, f"a fan at step {step}")
        if width > 1 and step not in on:
            raise ValueError(f"the plan branches at step {step}, which is not noisy: the children would be identical")
    b = _Builder()
    front = [b.add(grid[0])]
    for i, sigma in enumerate(grid[1:]):
        width = fan.get(i, 1)
        front = [b.add(sigma, p, i in on, mix=mix if width > 1 else 1.0) for p in front for _ in range(width)]
    return b.done(law, grid[1])


def comb(sigmas: Grid, law: Law, at: Sequence[int], k: int, strides: Sequence[int] = (1,), spines: int = 1) -> Plan:
    """A quiet spine; at each step in `at`, k noisy children, each finished quietly once per stride (granularity).

    spines: how many of these, from initial noises of their own; the teeth of one step compete across them.

    A tooth at level i + 1 goes on over the levels i + 2, i + 2 + stride, ... and its last step is a jump to 0: the clean
    prediction there. With several strides, label is a set of bits: bit j of a node is set where the way of strides[j] passes (ways
    may share nodes, near the end all of them).

    Source: TempFlow-GRPO (2508.04324); G2RPO (2510.01982) with strides {1, 2, 3}, Granular-GRPO@04ee954.
    """
    _count(k, "a tooth")
    _count(spines, "a number of spines")
    grid, on = _grid(sigmas, at)
    _count(len(strides), "a number of strides")
    if len(set(strides)) < len(strides):
        raise ValueError(f"strides {tuple(strides)} hold one twice; each is a way of its own")
    for stride in strides:
        _count(stride, "a stride")
    b, every = _Builder(), (1 << len(strides)) - 1 if len(strides) > 1 else 0
    for _ in range(spines):
        spine = [b.add(grid[0])]
        for sigma in grid[1:]:
            spine.append(b.add(sigma, spine[-1]))
        for i in sorted(on):
            for _ in range(k):
                tooth = b.add(grid[i + 1], spine[i], True, label=every)
                for j, stride in enumerate(strides):
                    node = tooth
                    for sigma in [*grid[i + 2 :: stride][:-1], 0.0] if grid[i + 1] > 0 else []:
                        node = b.add(sigma, node, label=1 << j if len(strides) > 1 else 0)
    return b.done(law, grid[1])


def merged(sigmas: Grid, law: Law, at: int, length: int, group: int = 1) -> Plan:
    """Chains whose one stochastic step goes from level `at` over `length` steps at once; all other steps are quiet.

    The law is taken at the step's start, and its guard is the second level of the whole grid.

    Raises: ValueError where the merged step does not fit.
    Source: E-GRPO (2601.00423): low-entropy steps merged into one. `join` several for its groups of unlike lengths.
    """
    grid, _ = _grid(sigmas, [at])
    if not 1 <= length <= len(grid) - 1 - at:
        raise ValueError(f"{length} steps from step {at} on do not fit into a schedule of {len(grid) - 1}")
    plan = chains([*grid[: at + 1], *grid[at + length :]], law, [at], group)
    return dataclasses.replace(plan, guard=grid[1])


def join(plans: Sequence[Plan]) -> Plan:
    """Several plans of one law as one: a prompt's group is drawn by all of them. Nodes of the k-th get the label k.

    Raises: ValueError for no plan, or plans that differ in law or guard.
    """
    if not plans:
        raise ValueError("no plan to join; give at least one")
    if any(p.law is not plans[0].law or p.guard != plans[0].guard for p in plans):
        raise ValueError("plans to join differ in their law or guard; build them with one law on one schedule")
    if any(p.label is not None for p in plans):
        raise ValueError("a plan to join has labels of its own; join plans without (of one granularity)")
    start = list(itertools.accumulate([0, *(len(p.parent) for p in plans[:-1])]))
    mixes = [torch.ones(len(p.parent), dtype=torch.float64) if p.mix is None else p.mix for p in plans]
    return Plan(
        torch.cat([p.sigma for p in plans]),
        torch.cat([torch.where(p.parent >= 0, p.parent + k, -1) for p, k in zip(plans, start, strict=True)]),
        torch.cat([p.noisy for p in plans]),
        plans[0].law,
        plans[0].guard,
        torch.cat([torch.full_like(p.parent, i) for i, p in enumerate(plans)]) if len(plans) > 1 else None,
        torch.cat(mixes) if any(p.mix is not None for p in plans) else None,
    )


def own_share(strength: float) -> float:
    """BranchGRPO's strength s of the children's own noise -> mix = s / sqrt(1 + s^2)."""
    return strength / math.hypot(1, strength)
