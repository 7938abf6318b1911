"""From leaves to nodes: rewards [P, L] of a plan's leaves become numbers on its nodes [P, n], float64, NaN where nothing is known.

Any function (plan, r, valid) -> [P, n] is a fusion: what a node is worth, to be compared among its peers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flowrl.samplers import Plan

from .group import enough, masked, zscore

Fusion = Literal["mean", "softmax", "path"] | Callable[[Plan, Tensor, Tensor], Tensor]


def node_rewards(
    plan: Plan,
    r: Tensor,
    valid: Tensor | None = None,
    fusion: Literal["mean", "softmax", "path"] = "mean",
    log_prob: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Rewards of leaves [P, L] -> rewards of nodes [P, n], float64; NaN where no leaf below is valid.

    mean: over the valid leaves below.  softmax: level by level, children weighed by softmax(log_prob / temperature) of their edges.
    path: over the leaves below, weighed by softmax of the sum of log_prob / temperature on the way to each.
    log_prob [P, e] of the recorded edges, quiet edges count as 0.

    Raises: ValueError for fusion "softmax" or "path" without log_prob, or an unknown fusion.
    Source: BranchGRPO (2509.06040): path is the paper's, softmax BranchGRPO@19fbb9f `compute_node_rewards_from_leaves`. log_prob
    is a mean over latent dims.
    """
    if fusion not in ("mean", "softmax", "path"):
        raise ValueError(f'fusion {fusion!r} of node rewards is unknown; use "mean", "softmax", "path" or a function')
    r, valid = masked(r, valid)
    logits = torch.zeros(len(r), len(plan.parent), dtype=torch.float64)
    if fusion != "mean":
        if log_prob is None:
            raise ValueError(
                f'node_rewards(fusion="{fusion}") weighs children by the densities of their edges; give log_prob [P, e]'
            )
        logits[:, plan.edges] = log_prob.double() / temperature
    if fusion == "path":
        return _by_path(plan, r, valid, logits)
    # shifted by the largest sibling, as a softmax is; which shift is without consequence
    inner = plan.parent >= 0
    above = plan.parent[inner].expand(len(r), -1)
    top = torch.full_like(logits, -torch.inf).scatter_reduce_(1, above, logits[:, inner], "amax")
    weight = torch.ones_like(logits)
    weight[:, inner] = (logits[:, inner] - top[:, plan.parent[inner]]).exp()
    return _summed_up(plan, r, valid, weight, fusion == "softmax")


def _summed_up(plan: Plan, r: Tensor, valid: Tensor, weight: Tensor, once: bool) -> Tensor:
    """Weighted means over what lies below. once: a node counts once for its parent, however many leaves it has."""
    total, count = torch.zeros_like(weight), torch.zeros_like(weight)
    total[:, plan.leaves], count[:, plan.leaves] = r, valid.double()
    for nodes in reversed(plan.waves):
        if once:
            known = count[:, nodes] > 0
            total[:, nodes] = torch.where(known, total[:, nodes] / count[:, nodes], 0)
            count[:, nodes] = known.double()
        total.index_add_(1, plan.parent[nodes], total[:, nodes] * weight[:, nodes])
        count.index_add_(1, plan.parent[nodes], count[:, nodes] * weight[:, nodes])
    return total / count


def _by_path(plan: Plan, r: Tensor, valid: Tensor, logits: Tensor) -> Tensor:
    """Means over the leaves below, weighed by exp of the sum of logits on the way; the weights are kept as logarithms."""
    mean = torch.full_like(logits, torch.nan)
    mass = torch.full_like(logits, -torch.inf)
    mean[:, plan.leaves] = torch.where(valid, r, torch.nan)
    mass[:, plan.leaves] = valid.double().log()
    for nodes in reversed(plan.waves):
        above = plan.parent[nodes].expand(len(r), -1)
        mine = mass[:, nodes] + logits[:, nodes]
        top = torch.full_like(mass, -torch.inf).scatter_reduce_(1, above, mine, "amax")
        share = torch.where(mine > -torch.inf, (mine - top.gather(1, above)).exp(), 0)
        count = torch.zeros_like(mass).scatter_add_(1, above, share)
        total = torch.zeros_like(mass).scatter_add_(1, above, share * mean[:, nodes].nan_to_num(0))
        parents = plan.parent[nodes].unique()
        mean[:, parents] = (total / count)[:, parents]
        mass[:, parents] = (top + count.log())[:, parents]
    return mean


def path_sums(plan: Plan, values: Tensor) -> Tensor:
    """Sums of per-edge values [P, e] of the recorded edges on the way to each leaf, [P, L] float64."""
    total = torch.zeros(len(values), len(plan.parent), dtype=torch.float64)
    total[:, plan.edges] = values.double()
    for nodes in plan.waves:
        total[:, nodes] += total[:, plan.parent[nodes]]
    return total[:, plan.leaves]


def below(plan: Plan, on: Tensor) -> Tensor:
    """Which nodes have a marked leaf below them (or are one): bool [P, L] -> bool [P, n]."""
    return node_rewards(plan, on.double()) > 0


def completions(plan: Plan, r: Tensor, valid: Tensor | None = None) -> Tensor:
    """The reward of each node when it is finished without noise: of the leaves that quiet steps alone lead to (their mean). NaN
    where there is none.
    """
    r, valid = masked(r, valid)
    return _summed_up(plan, r, valid, (~plan.noisy).double().expand(len(r), -1), once=False)


def gains(plan: Plan, r: Tensor, valid: Tensor | None = None) -> Tensor:
    """What a noisy step is worth: the reward of its end finished without noise less that of its start, [P, L] -> [P, n]. NaN at
    quiet steps and where one of the two is unknown. For combs, and chains whose states each have a quiet way to the end.

    Source: DenseGRPO (2601.20218), R(ODE(x')) - R(ODE(x)).
    """
    done = completions(plan, r, valid)
    return torch.where(plan.noisy, done - done[:, plan.parent.clamp(min=0)], torch.nan)


def turning(
    plan: Plan,
    r: Tensor,
    valid: Tensor | None = None,
    main: Literal["gain", "total"] = "gain",
    bonus: Literal["gain", "total", "rest"] = "rest",
    scale: float = 1.0,
    replace: bool = True,
) -> Tensor:
    """Rewards of noisy steps that count turning points more, [P, L] -> [P, n]; NaN at quiet steps and where a reward is missing.

    With R_k the reward after k noisy steps and a quiet rest (`completions`), R_0 without noise, R the end of the noisy way: gain
    R_k - R_{k-1}, total R - R_0, rest R - R_{k-1}. Step k is a turning point where its gain has the sign of the total and the gain
    before it the other one (the first step: where its gain has the sign of the total).
    There the reward is scale bonus (replace) or main + scale bonus; elsewhere main.

    Raises: ValueError for an unknown main or bonus.
    Source: TP-GRPO (2602.06422). The defaults are the paper's form; TurningPoint@994d26a ships main "total", bonus "gain",
    replace False.
    """
    gain, done = gains(plan, r, valid), completions(plan, r, valid)
    start, end = _ends(plan, done)
    rest = end - done[:, plan.parent.clamp(min=0)]
    values = {"gain": gain, "total": end - start, "rest": rest}
    if main not in ("gain", "total") or bonus not in values:
        raise ValueError(f'main {main!r} is "gain" or "total", bonus {bonus!r} is "gain", "total" or "rest"')
    above = plan.parent.clamp(min=0)
    way = values["total"].sign()
    turned = (gain.sign() * way > 0) & ((gain[:, above].sign() * way < 0) | ~plan.noisy[above])
    usual = values[main]
    special = scale * values[bonus] + (0 if replace else usual)
    return torch.where(plan.noisy, torch.where(turned, special, usual), torch.nan)


def _ends(plan: Plan, done: Tensor) -> tuple[Tensor, Tensor]:
    """Completions where the noisy way through a node begins, and (the mean over its branches) where it ends."""
    start, end = done.clone(), done.clone()
    on = plan.noisy & plan.noisy[plan.parent.clamp(min=0)]
    for nodes in plan.waves:
        first = nodes[plan.noisy[nodes] & ~on[nodes]]
        start[:, first] = done[:, plan.parent[first]]
        further = nodes[on[nodes]]
        start[:, further] = start[:, plan.parent[further]]
    for nodes in reversed(plan.waves):
        further = nodes[on[nodes]]
        for parent in plan.parent[further].unique():
            end[:, parent] = end[:, further[plan.parent[further] == parent]].mean(1)
    return start, end


def granular(plan: Plan, r: Tensor, valid: Tensor | None = None, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Advantages of the noisy edges of a comb with several strides: z-scored among the teeth of one step for every stride alone,
    then summed over strides. r [P, L] -> float32 [P, n], 0 at quiet nodes; NaN where a tooth has no valid leaf.

    Raises: ValueError for a plan without the labels of `comb(strides=...)`, or with too few teeth for the std.
    Source: G2RPO (2510.01982), multi-granularity advantage integration; Granular-GRPO@04ee954.
    """
    if plan.label is None:
        raise ValueError("granular() needs a comb with several strides, whose nodes are labelled by them; this plan has no labels")
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    ids, label = peers(plan), plan.label
    enough(int(ids[plan.edges].unique(return_counts=True)[1].max()), ddof + 1, "this advantage")
    out = torch.zeros(len(r), len(plan.parent))
    for bit in range(int(label.max()).bit_length()):
        passes = (label >> bit & 1).bool()
        nodes = node_rewards(plan, r, valid & passes[plan.leaves])
        for which in ids[plan.edges].unique():
            mine = (ids == which).nonzero().flatten()
            known = torch.isfinite(nodes[:, mine])
            out[:, mine] += torch.where(known, zscore(nodes[:, mine], known, ddof, eps), torch.nan)
    return out


def peers(plan: Plan) -> Tensor:
    """Which edges compete: `Plan.peers`."""
    return plan.peers
