"""Estimators ported from language-model RL, where a sample is a response: here an image of its prompt. None of them was published
for image generators; their sources' numbers say nothing about images.

Conventions as in `group`: r [P, L] with a mask, groups are rows, statistics in float64, 0 where invalid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.samplers import Plan

from .group import Estimate, enough, masked, moments, ratio, zscore
from .trees import node_rewards

MC_CODE = "MC-GRPO@da07745"


def _median(r: Tensor, valid: Tensor) -> Tensor:
    """The (lower) middle of the valid values of a row, kept; 0 where there is none."""
    order = torch.where(valid, r, torch.inf).sort(1).values
    middle = (valid.sum(1, keepdim=True) - 1).clamp(min=0) // 2
    return torch.where(valid.any(1, keepdim=True), order.gather(1, middle), 0)


def mc(
    r: Tensor,
    valid: Tensor | None = None,
    eps: float = 1e-3,
    renormalise: bool = False,
    drop: bool = False,
    compat: str | None = None,
) -> Tensor:
    """(r - median) / (MAD + eps), MAD = median |r - median|, medians the lower middle, [P, L] -> float32 [P, L].

    Where MAD is 0, most rewards being equal, the population std takes its place, so that |A| stays below sqrt(L).
    renormalise: times G / (number of non-zero A) of the group.  drop: NaN at the first sample that is the median, which the method
    leaves out of the update (it draws one more for it).

    Raises: ValueError for groups smaller than 3, or an unknown compat.
    Source: MC-GRPO (2601.22582), MC-GRPO@da07745 grpo_trainer_gsm.py (renormalised), grpo_trainer_math.py (not).
    Differs: theirs divides by eps where MAD is 0, so that |A| is 1000 and more: compat="MC-GRPO@da07745".
    """
    if compat not in (None, MC_CODE):
        raise ValueError(f'mc() knows compat "{MC_CODE}", not {compat!r}')
    enough(r.shape[1], 3, "a median and its deviation")
    r, valid = masked(r, valid)
    middle = _median(r, valid)
    spread = _median((r - middle).abs(), valid)
    if not compat:
        spread = torch.where(spread == 0, moments(r, valid, (1,), 0)[1], spread)
    a = torch.where(valid, ratio(r - middle, spread + eps), 0)
    if renormalise:
        a = a * ratio(valid.sum(1, keepdim=True).double(), (a.abs() > 1e-6).sum(1, keepdim=True).double())
    if drop:
        pivot = (valid & (r == middle)).double().argmax(1, keepdim=True)
        a = torch.where(valid & (torch.arange(r.shape[1]) == pivot), torch.nan, a)
    return a.float()


def ngrpo(r: Tensor, valid: Tensor | None = None, top: float = 1.0, copies: int = 1, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """z-score by the mean and std of the group and `copies` imagined samples that reach `top`, [P, L] -> float32 [P, L]. A group
    that is all bad learns from it; the sum of a group is not 0.

    Raises: ValueError for copies < 1 or a reward above `top`.
    Source: NGRPO (2509.18851), NGRPO@e7a3804.  Differs: theirs gives a group of one its reward.
    """
    r, valid = masked(r, valid)
    if copies < 1 or bool((r[valid] > top).any()):
        raise ValueError(f"NGRPO imagines {copies} samples of reward {top:g}: give at least 1, and a top no reward exceeds")
    more = torch.full((len(r), copies), top, dtype=torch.float64)
    mean, std = moments(torch.cat([r, more], 1), torch.cat([valid, torch.ones_like(more, dtype=torch.bool)], 1), (1,), ddof)
    return torch.where(valid, ratio(r - mean, std + eps), 0).float()


def san(r: Tensor, strata: Tensor, valid: Tensor | None = None, share: float = 0.8, ddof: int = 0, eps: float = 1e-6) -> Tensor:
    """share z-score inside the stratum + (1 - share) z-score in the group, [P, L] -> float32 [P, L]. strata [P, L] long: samples of
    a group with equal numbers are of one kind. Alone in its stratum: 0 from it.

    Source: Stratified GRPO (2510.06214).  Differs: ddof and eps are ours, the paper does not give them.
    """
    r, valid = masked(r, valid)
    own = torch.zeros_like(r)
    for kind in strata.unique():
        mine = valid & (strata == kind)
        own += zscore(r, mine, ddof, eps).double()
    return (share * own + (1 - share) * zscore(r, valid, ddof, eps).double()).float()


def noon(a: Tensor, policy_ratio: Tensor | None = None, high: float = 0.2) -> Tensor:
    """max(A, 0), and 0 where the policy ratio is above 1 + high. [...] each.

    Source: PAMA (2508.07768).
    """
    kept = a.clamp(min=0)
    return kept if policy_ratio is None else torch.where(policy_ratio <= 1 + high, kept, 0)


def min_norm(a: Tensor) -> Tensor:
    """The convex combination of the advantages a [K, ...] of several objectives that is nearest to 0: 0 where they disagree in
    sign, else the smallest.

    Source: PAMA (2508.07768).
    """
    return torch.zeros_like(a[0]).clamp(a.amin(0), a.amax(0))


def pama(r: Tensor, valid: Tensor, factors: Tensor, estimate: Estimate = zscore) -> Tensor:
    """`min_norm` of the positive parts of each reward's estimate times its factor: what every reward calls good. A way to combine
    several rewards (`several`); r [K, P, L].

    Source: PAMA (2508.07768).
    """
    known = valid & torch.isfinite(r)
    a = torch.stack([noon(f * estimate(*pair)) for f, *pair in zip(factors.tolist(), r, known, strict=True)])
    return torch.where(known.all(0), min_norm(a), 0).float()


def unlikely(r: Tensor, log_prob: Tensor, valid: Tensor | None = None, share: float = 0.25) -> Tensor:
    """Rewards r (1 - share (G - rank) / G), rank 0 the likeliest of the group, [P, L] -> float64 [P, L]: of good samples the
    unlikely ones count more. G counts what is valid; NaN where invalid. For rewards >= 0.

    The log_prob [P, L] of a diffusion sample (`path_sums`) tells how far its noise lay from 0, which is weaker than a response's.

    Raises: ValueError for a share outside [0, 1], or a negative reward.
    Source: the paper's text: "Rewarding the Unlikely" (2506.02355), share 0.25.
    """
    r, valid = masked(r, valid)
    if not 0 <= share <= 1 or bool((r < 0).any()):
        raise ValueError(f"a share of {share:g} taken off likely samples: give one in [0, 1], and rewards >= 0")
    count = valid.sum(1, keepdim=True)
    rank = torch.where(valid, -log_prob.double(), torch.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return torch.where(valid, r * (1 - share * (count - rank) / count.clamp(min=1)), torch.nan)


def pass_at_k(r: Tensor, valid: Tensor | None = None, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """(best - second) / (std + eps) for the first best sample of a group, 0 for the others, [P, L] -> float32 [P, L].

    Raises: ValueError for groups of one.
    Source: verl@b178a3c `compute_grpo_passk_outcome_advantage`.
    """
    enough(r.shape[1], 2, "a best and a second")
    r, valid = masked(r, valid)
    top, at = torch.where(valid, r, -torch.inf).topk(2, 1)
    gap = torch.where(valid.sum(1, keepdim=True) > 1, top[:, :1] - top[:, 1:], 0)
    a = torch.zeros_like(r).scatter_(1, at[:, :1], ratio(gap, moments(r, valid, (1,), ddof)[1] + eps))
    return torch.where(valid, a, 0).float()


def gpg(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """N / (number of non-zero rewards) (r - mean of the group), N and the number over the batch, [P, L] -> float32 [P, L].

    Source: GPG (2504.02546), verl@b178a3c `compute_gpg_outcome_advantage`.
    """
    r, valid = masked(r, valid)
    factor = valid.sum().double() / (valid & (r != 0)).sum().clamp(min=1)
    return torch.where(valid, factor * (r - moments(r, valid, (1,), 0)[0]), 0).float()


def d3s(a: Tensor, keep: int, valid: Tensor | None = None) -> Tensor:
    """The `keep` samples of the batch whose advantages vary most, bool [P, L]: a head and a tail of the sorted list. All, where no
    more are valid. Their advantages are not normalised again.

    Raises: ValueError for keep < 1.
    Source: D3S (2509.22115).
    """
    if keep < 1:
        raise ValueError(f"keeping {keep} samples of a batch: give at least 1")
    a, valid = masked(a, valid)
    index = valid.flatten().nonzero().flatten()
    index = index[a.flatten()[index].argsort(stable=True)]
    if keep < len(index):
        value = a.flatten()[index]
        splits = [torch.cat([index[: keep - top], index[len(index) - top :]]) for top in range(keep + 1)]
        spread = torch.stack([a.flatten()[s].var(correction=0) for s in splits])
        index = splits[int(spread.argmax())] if float(value[-1]) > float(value[0]) else index[:keep]
    on = torch.zeros(a.numel(), dtype=torch.bool)
    on[index] = True
    return on.view_as(a)


def tempo(plan: Plan, r: Tensor, valid: Tensor | None = None, ddof: int = 1, eps: float = 1e-6, norm: bool = True) -> Tensor:
    """Advantages of edges: (V(child) - mean of the group + V(child) - V(parent)) / (std + eps), V the mean reward of the leaves
    below, [P, L] -> [P, n] float64; NaN at roots and where no leaf below is valid. norm=False: without the divisor.

    Source: TEMPO, tempo@0a1c273 `compute_tempo_outcome_advantage`.
    Differs: there each response adds its own reward to the difference; an edge here has the mean over the leaves below it. Its
    prefixes include padding.
    """
    enough(r.shape[1], ddof + 1 if norm else 1, f"a std with ddof {ddof}")
    r, valid = masked(r, valid)
    value = node_rewards(plan, r, valid)
    mean, std = moments(r, valid, (1,), ddof)
    a = value - mean + value - value[:, plan.parent.clamp(min=0)]
    return torch.where(plan.parent >= 0, ratio(a, std + eps) if norm else a, torch.nan)


def treepo(plan: Plan, r: Tensor, valid: Tensor | None = None, decay: float = 1.0) -> Tensor:
    """Advantages of edges: V(node) - V(the branching it comes from), times decay once for every branching above that one,
    [P, L] -> [P, n] float64; NaN at roots and where no leaf below is valid. Steps without a branching share their way's.

    Source: TreePO (2508.17445), segments of responses.
    """
    value = node_rewards(plan, r, valid)
    fork = torch.bincount(plan.parent[plan.parent >= 0], minlength=len(plan.parent)) > 1
    base = value.clone()
    above = torch.zeros(len(plan.parent), dtype=torch.float64)  # branchings on the way to a node, its own left out
    for nodes in plan.waves:
        parent = plan.parent[nodes]
        base[:, nodes] = torch.where(fork[parent], value[:, parent], base[:, parent])
        above[nodes] = above[parent] + fork[parent].double()
    return torch.where(plan.parent >= 0, decay ** (above - 1).clamp(min=0) * (value - base), torch.nan)
