"""From rewards to credit on the nodes of a plan. Small pure functions on r [P, L] with a mask, and their composition on plans.

Statistics are taken in float64; what is invalid takes no part in them and gets advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.samplers import Plan
from flowrl.types import Credit, Outcome


def _moments(r: Tensor, valid: Tensor, dim: tuple[int, ...], ddof: int) -> tuple[Tensor, Tensor]:
    """Masked mean and std over `dim`, kept; std is 0 where fewer than ddof + 1 values are valid."""
    count = valid.sum(dim, keepdim=True)
    mean = torch.where(valid, r, 0).sum(dim, keepdim=True) / count.clamp(min=1)
    square = torch.where(valid, (r - mean) ** 2, 0).sum(dim, keepdim=True)
    return mean, torch.where(count > ddof, square / (count - ddof).clamp(min=1), 0).sqrt()


def zscore(
    r: Tensor,
    valid: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-4,
    std: Literal["group", "global"] = "group",
    clamp: float | None = None,
) -> Tensor:
    """(r - mean of the group) / (std + eps), [P, L] -> float32 [P, L]; groups are rows.

    std "group": of each row;  "global": of every valid reward (still centred by group).  ddof 0: population, 1: unbiased.
    A group of one gets 0.

    Source: Flow-GRPO (2505.05470) `PerPromptStatTracker` (ddof 0, eps 1e-4); DanceGRPO (ddof 1, eps 1e-8).
    """
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    r = r.double()
    mean, own = _moments(r, valid, (1,), ddof)
    spread = own if std == "group" else _moments(r, valid, (0, 1), ddof)[1]
    a = torch.where(valid, (r - mean) / (spread + eps), 0)
    return (a if clamp is None else a.clamp(-clamp, clamp)).float()


def center(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """r - mean of the group, [P, L] -> float32 [P, L].

    Source: Dr.GRPO (2503.20783).
    """
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    return torch.where(valid, r.double() - _moments(r.double(), valid, (1,), 0)[0], 0).float()


def node_rewards(plan: Plan, r: Tensor, valid: Tensor | None = None) -> Tensor:
    """Rewards of leaves [P, L] -> rewards of nodes [P, n]: the mean over valid leaves below; NaN where there is none."""
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    total = torch.zeros(len(r), len(plan.parent), dtype=torch.float64)
    count = torch.zeros_like(total)
    total[:, plan.leaves], count[:, plan.leaves] = torch.where(valid, r.double(), 0), valid.double()
    for depth in range(len(plan.waves), 0, -1):
        nodes = plan.waves[depth - 1]
        total.index_add_(1, plan.parent[nodes], total[:, nodes])
        count.index_add_(1, plan.parent[nodes], count[:, nodes])
    return total / count


def peers(plan: Plan) -> Tensor:
    """Which edges compete: class of a node's edge by (sigma of parent, sigma of child, noisy, label), -1 for roots. [n] long."""
    label = torch.zeros(len(plan.parent), dtype=torch.float64) if plan.label is None else plan.label.double()
    # noisy: on a comb the spine and earlier teeth take the same step quietly, and are no rivals of the children that branch there
    key = torch.stack([plan.sigma[plan.parent.clamp(min=0)], plan.sigma, plan.noisy.double(), label], 1)
    ids = torch.full_like(plan.parent, -1)
    inner = plan.parent >= 0
    ids[inner] = key[inner].unique(dim=0, return_inverse=True)[1]
    return ids


@dataclass(frozen=True)
class Group:
    """Weighted sum of the rewards, averaged up the plan, z-scored among peers of one prompt. Invalid edges get weight 0."""

    ddof: int = 0
    eps: float = 1e-4
    std: Literal["group", "global"] = "group"
    clamp: float | None = 5.0

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        total = sum(w * outcome.scores[name].values.double() for name, w in outcome.weights.items())
        valid = torch.stack([outcome.scores[name].valid for name in outcome.weights]).all(0)
        nodes = node_rewards(outcome.plan, torch.as_tensor(total), valid)
        ids, known = peers(outcome.plan), torch.isfinite(nodes)
        advantage = torch.zeros(nodes.shape)
        for which in ids[ids >= 0].unique():
            mine = ids == which
            advantage[:, mine] = zscore(nodes[:, mine], known[:, mine], self.ddof, self.eps, self.std, self.clamp)
        weight = known.float()
        return Credit(advantage, weight, weight.clone()), state
