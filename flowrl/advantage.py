"""From rewards to credit on the nodes of a plan. Small pure functions on r [P, L] with a mask, and their composition on plans.

Statistics are taken in float64; what is invalid takes no part in them and gets advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.samplers import Plan
from flowrl.types import Advantage, Credit, Outcome


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


def node_rewards(
    plan: Plan,
    r: Tensor,
    valid: Tensor | None = None,
    fusion: Literal["mean", "softmax"] = "mean",
    log_prob: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Rewards of leaves [P, L] -> rewards of nodes [P, n], float64; NaN where no leaf below is valid.

    mean: over the valid leaves below.  softmax: level by level, children weighed by softmax(log_prob / temperature) of their edges;
    log_prob [P, e] of the recorded edges, quiet edges count as 0.

    Raises: ValueError for fusion "softmax" without log_prob, or an unknown fusion.
    Source: BranchGRPO (2509.06040), BranchGRPO@19fbb9f `compute_node_rewards_from_leaves`. log_prob is a mean over latent dims.
    """
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    weight = torch.ones(len(r), len(plan.parent), dtype=torch.float64)
    if fusion == "softmax":
        if log_prob is None:
            raise ValueError('node_rewards(fusion="softmax") weighs children by the densities of their edges; give log_prob [P, e]')
        logits = torch.zeros_like(weight)
        logits[:, plan.edges] = log_prob.double() / temperature
        # shifted by the largest sibling, as a softmax is; which shift is without consequence
        inner = plan.parent >= 0
        above = plan.parent[inner].expand(len(r), -1)
        top = torch.full_like(weight, -torch.inf).scatter_reduce_(1, above, logits[:, inner], "amax")
        weight[:, inner] = (logits[:, inner] - top[:, plan.parent[inner]]).exp()
    elif fusion != "mean":
        raise ValueError(f'fusion {fusion!r} of node rewards is unknown; use "mean" or "softmax"')
    total = torch.zeros_like(weight)
    count = torch.zeros_like(weight)
    total[:, plan.leaves], count[:, plan.leaves] = torch.where(valid, r.double(), 0), valid.double()
    for depth in range(len(plan.waves), 0, -1):
        nodes = plan.waves[depth - 1]
        if fusion == "softmax":
            # a node counts once for its parent, however many leaves it has
            known = count[:, nodes] > 0
            total[:, nodes] = torch.where(known, total[:, nodes] / count[:, nodes], 0)
            count[:, nodes] = known.double()
        total.index_add_(1, plan.parent[nodes], total[:, nodes] * weight[:, nodes])
        count.index_add_(1, plan.parent[nodes], count[:, nodes] * weight[:, nodes])
    return total / count


def granular(plan: Plan, r: Tensor, valid: Tensor | None = None, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Advantages of the noisy edges of a comb with several strides: z-scored among the teeth of one step for every stride alone,
    then summed over strides. r [P, L] -> float32 [P, n], 0 at quiet nodes; NaN where a tooth has no valid leaf.

    Raises: ValueError for a plan without the labels of `comb(strides=...)`.
    Source: G2RPO (2510.01982), multi-granularity advantage integration; Granular-GRPO@04ee954.
    """
    if plan.label is None:
        raise ValueError("granular() needs a comb with several strides, whose nodes are labelled by them; this plan has no labels")
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    ids, label = peers(plan), plan.label
    out = torch.zeros(len(r), len(plan.parent))
    for bit in range(int(label.max()).bit_length()):
        passes = (label >> bit & 1).bool()
        nodes = node_rewards(plan, r, valid & passes[plan.leaves])
        for which in ids[plan.edges].unique():
            mine = (ids == which).nonzero().flatten()
            known = torch.isfinite(nodes[:, mine])
            out[:, mine] += torch.where(known, zscore(nodes[:, mine], known, ddof, eps), torch.nan)
    return out


def extremes(score: Tensor, n: int) -> Tensor:
    """The best ceil(n / 2) and the worst floor(n / 2) of every row of score [P, L] -> bool [P, L]. NaN, which could not be
    scored, is neither; a row with fewer than n scores keeps them all.

    Raises: ValueError for n outside 1 to L.
    Source: DanceGRPO@15cc71d best-of-n (train_grpo_hunyuan.py l. 394-410), there over all samples of a process: one row.
    """
    if not 1 <= n <= score.shape[1]:
        raise ValueError(f"best of {n} in rows of {score.shape[1]}: give 1 to {score.shape[1]}")
    rank = score.argsort(1).argsort(1)  # NaN comes last
    known = (~score.isnan()).sum(1, keepdim=True)
    return (rank < known) & ((rank < n // 2) | (rank >= known - (n + 1) // 2))


def tracked(
    r: Tensor, prompts: Sequence[str], state: State, buffer: int = 16, least: int = 16, eps: float = 1e-6
) -> tuple[Tensor, State]:
    """(r - mean) / (std + eps) by the last `buffer` rewards of each prompt, r [P, L] -> float32 [P, L] and the next state.

    A prompt with fewer than `least` rewards so far takes mean and std of the whole batch. Population std; NaN is left out and
    gets 0.

    Source: DDPO, ddpo-pytorch@1958463 `PerPromptStatTracker`.
    """
    seen: dict[str, list[float]] = {k: list(v) for k, v in state.items()}
    valid, r = torch.isfinite(r), r.double()
    for text, row, known in zip(prompts, r, valid, strict=True):
        seen[text] = [*seen.get(text, []), *row[known].tolist()][-buffer:]
    pooled = r[valid]
    a = torch.zeros_like(r)
    for i, text in enumerate(prompts):
        values = torch.tensor(seen[text], dtype=torch.float64) if len(seen[text]) >= least else pooled
        a[i] = torch.where(valid[i], (r[i] - values.mean()) / (values.std(correction=0) + eps), 0)
    return a.float(), seen


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
    """Weighted sum of the rewards, carried up the plan (`node_rewards`) and z-scored among peers of one prompt. Invalid edges
    get weight 0.
    """

    ddof: int = 0
    eps: float = 1e-4
    std: Literal["group", "global"] = "group"
    clamp: float | None = 5.0
    fusion: Literal["mean", "softmax"] = "mean"

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        nodes = node_rewards(outcome.plan, *weighed(outcome), self.fusion, outcome.log_prob)
        ids, known = peers(outcome.plan), torch.isfinite(nodes)
        advantage = torch.zeros(nodes.shape)
        for which in ids[ids >= 0].unique():
            mine = ids == which
            advantage[:, mine] = zscore(nodes[:, mine], known[:, mine], self.ddof, self.eps, self.std, self.clamp)
        weight = known.float()
        return Credit(advantage, weight, weight.clone()), state


@dataclass(frozen=True)
class Granular:
    """Weighted sum of the rewards, by `granular`: z-scored among the teeth of a step for every stride alone, summed over
    strides, then clamped. For combs; with one stride it is `Group`.
    """

    ddof: int = 1
    eps: float = 1e-8
    clamp: float | None = 5.0

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        if outcome.plan.label is None:
            return Group(self.ddof, self.eps, clamp=self.clamp).apply(outcome, state)
        a = granular(outcome.plan, *weighed(outcome), self.ddof, self.eps)
        weight = torch.isfinite(a).float()
        a = a.nan_to_num(0)
        return Credit(a if self.clamp is None else a.clamp(-self.clamp, self.clamp), weight, weight.clone()), state


@dataclass(frozen=True)
class Pruned:
    """`inner`, but edges into some depths are not trained on: depths_at(iteration) -> depths."""

    inner: Advantage
    depths_at: Callable[[int], Sequence[int]]

    def init(self) -> State:
        return self.inner.init()

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        credit, state = self.inner.apply(outcome, state)
        depths = torch.tensor(list(self.depths_at(outcome.iteration)), dtype=torch.long)
        keep = (~torch.isin(outcome.plan.depth, depths)).float()
        return Credit(credit.advantage, credit.weight * keep, credit.kl_weight * keep), state


def weighed(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """The weighted sum of the rewards [P, L], float64, and where every one of them could score."""
    total = sum(w * outcome.scores[name].values.double() for name, w in outcome.weights.items())
    return torch.as_tensor(total), torch.stack([outcome.scores[name].valid for name in outcome.weights]).all(0)
