"""Several rewards: r [K, P, L], one slice a reward, with one factor each. Each way to make one advantage of them is a function
(r, valid, factors, estimate) -> [P, L], `estimate` being any function of `group`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .group import Estimate, masked, moments, ratio, zscore

Combine = Callable[[Tensor, Tensor, Tensor, Estimate], Tensor]
"""(r [K, P, m], valid [K, P, m], factors [K], estimate) -> advantages [P, m]."""

UNBIASED: Estimate = partial(zscore, ddof=1)


def _sum(r: Tensor, factors: Tensor) -> Tensor:
    return (factors.double().view(-1, 1, 1) * r).sum(0)


def summed(r: Tensor, valid: Tensor, factors: Tensor, estimate: Estimate = zscore) -> Tensor:
    """The estimate of the weighted sum; what one reward could not score has no advantage.

    Source: Flow-GRPO (2505.05470), multi_score.
    """
    r, valid = masked(r, valid)
    return estimate(_sum(r, factors), valid.all(0))


def weighted(r: Tensor, valid: Tensor, factors: Tensor, estimate: Estimate = zscore) -> Tensor:
    """The weighted sum of each reward's own estimate, so that no reward counts more for its larger spread. Each is estimated over
    what it could score; what one could not score has no advantage.

    Source: DanceGRPO (2505.07818); LongCat-Video (2510.22200); Pref-GRPO (2508.20751) `compute_weighted_advantages`.
    """
    a = torch.stack([estimate(*pair).double() for pair in zip(r, valid & torch.isfinite(r), strict=True)])
    return torch.where((valid & torch.isfinite(r)).all(0), _sum(a, factors), 0).float()


def gdpo(
    r: Tensor,
    valid: Tensor,
    factors: Tensor,
    estimate: Estimate = UNBIASED,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 0.0,
) -> Tensor:
    """`weighted`, then brought to mean 0 and std 1 over the batch, so that |A| does not grow with the number of rewards.

    Source: GDPO (2601.05242), GDPO@b080e63 (trl: ddof 1, eps 1e-4; verl: eps 1e-6); Flow-Factory `compute_gdpo` (ddof 0 and floor
    1e-6 in both steps, eps 0); Pref-GRPO (eps 1e-8).
    Differs: theirs counts a missing reward as 0 before the statistics, ours leaves it out; their verl form weighs by tokens.
    """
    known = (valid & torch.isfinite(r)).all(0)
    a = weighted(r, valid, factors, estimate)
    flat = zscore(a.reshape(1, -1), known.reshape(1, -1), ddof, eps, floor=floor)
    return flat.view_as(a)


def pooled(r: Tensor, valid: Tensor, factors: Tensor, estimate: Estimate = zscore) -> Tensor:
    """The estimate of the weighted sum of rewards that were first brought to mean 0 and std 1 over the batch.

    Source: Precise (2605.23522), Precise@9a84f91.
    """
    r, valid = masked(r, valid)
    mean, std = moments(r, valid, (1, 2), 0)
    return estimate(_sum(ratio(r - mean, std), factors), valid.all(0))


def gated(outcome: Tensor, further: Tensor, threshold: float) -> Tensor:
    """outcome + the sum of further [K, P, L] where outcome >= threshold, [P, L] float64: what ranks lower cannot make up for a
    failed outcome. NaN where outcome, or a reward that is added, is NaN.

    Source: gated reward accumulation (2508.10548).
    """
    outcome = outcome.double()
    return torch.where(outcome >= threshold, outcome + further.double().sum(0), outcome)


def front(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """Which samples of the batch no other one dominates: bool [P, L] of r [K, P, L]. Dominated: another is nowhere worse and
    somewhere better. Invalid: False.

    Source: Parrot (2401.05675), batch-wise Pareto-optimal selection.
    """
    r, valid = masked(r, valid)
    known = valid.all(0).flatten()
    points = r.flatten(1).T[known]
    no_worse = (points[:, None] >= points[None]).all(2)
    better = (points[:, None] > points[None]).any(2)
    on = torch.zeros_like(known)
    on[known] = ~(no_worse & better).any(0)
    return on.view(valid.shape[1:])
