"""Win rates: rewards made of comparisons inside a group."""

from __future__ import annotations

import torch
from torch import Tensor

from .group import enough, masked


def wins(r: Tensor, valid: Tensor | None = None, margin: float = 0.0) -> Tensor:
    """Verdicts [P, L, L] of a pointwise score r [P, L]: at (i, j) 1 where i is better than j by more than `margin`, 0 where j is, a
    half for a tie; NaN on the diagonal and where one of the two is invalid.

    Raises: ValueError for a negative margin.
    """
    if margin < 0:
        raise ValueError(f"a margin of {margin:g} for a tie: give 0 or more")
    r, valid = masked(r, valid)
    gap = r[:, :, None] - r[:, None]
    verdict = torch.where(gap > margin, 1.0, torch.where(gap < -margin, 0.0, 0.5))
    compared = valid[:, :, None] & valid[:, None] & ~torch.eye(r.shape[1], dtype=torch.bool)
    return torch.where(compared, verdict, torch.nan).double()


def win_rate(verdicts: Tensor, decimals: int | None = None) -> Tensor:
    """Mean of the verdicts on each sample, [P, L, L] in {0, 1/2, 1, NaN} -> [P, L] in [0, 1], float64; NaN where it was never
    compared. decimals: rounded to so many.

    Raises: ValueError for groups of one.
    Source: Pref-GRPO (2508.20751), Pref-GRPO@3e787f6 `_pairwise_win_rate` (decimals 3).
    """
    enough(verdicts.shape[1], 2, "a win rate")
    rate = verdicts.double().nanmean(2)
    return rate if decimals is None else rate.round(decimals=decimals)


def blended(
    overall: Tensor,
    parts: Tensor,
    part_weights: Tensor,
    overall_weight: float = 1.0,
    parts_weight: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """(w_o overall + w_p mean of parts) / (w_o + w_p), the mean weighed by part_weights [C]; overall [P, L], parts [P, L, C].

    A part that is NaN is left out of the mean.

    Raises: ValueError for an unknown compat, or weights that add up to nothing.
    Source: Pref-GRPO@3e787f6 `unifiedreward_flex.py`: the overall verdict and up to three aspects the judge names.
    Differs: there w_p is silently the last part's weight; compat="Pref-GRPO@3e787f6" does the same.
    """
    if compat not in (None, "Pref-GRPO@3e787f6"):
        raise ValueError(f'blended() knows compat "Pref-GRPO@3e787f6", not {compat!r}')
    share = float(part_weights[-1]) if compat else parts_weight
    if overall_weight + share <= 0 or float(part_weights.sum()) <= 0:
        raise ValueError(f"weights {overall_weight:g} and {share:g} of a blend must have a positive sum, and so must its parts'")
    weight = torch.where(parts.isnan(), 0, part_weights.double())
    mean = torch.where(parts.isnan(), 0, parts.double() * part_weights).sum(-1) / weight.sum(-1)
    return (overall_weight * overall.double() + share * mean) / (overall_weight + share)
