"""Arithmetic of win rates: verdicts in, rates out. Verdicts [..., N, N]: at (i, j) how far i is better than j, 1 a win, 0 a loss,
1/2 a tie; NaN on the diagonal and where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

COMPAT = "Pref-GRPO@3e787f6"


def verdicts_of(asked: Tensor, both_orders: bool = True) -> Tensor:
    """Verdicts from answers: asked [N, N] at (i, j) P(i is better) with i shown first, NaN where not asked or unreadable.

    Both orders: (asked_ij + 1 - asked_ji) / 2, NaN unless both were read, so that what a judge gives to the first image cancels.
    Else asked_ij where i was shown first, and 1 - asked_ji where j was.

    Raises: ValueError where one order is meant and a pair was asked in both.
    """
    turned = 1 - asked.transpose(-1, -2)
    if both_orders:
        return (asked.double() + turned.double()) / 2
    if bool((asked.isfinite() & turned.isfinite()).any()):
        raise ValueError("a pair was asked in both orders; average them (both_orders=True), or ask once")
    return torch.where(asked.isnan(), turned, asked).double()


def hardened(verdicts: Tensor, margin: float) -> Tensor:
    """Verdicts in {0, 1/2, 1}: a tie within `margin` of 1/2.

    Raises: ValueError for a margin outside [0, 1/2).
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"a margin of {margin:g} around 1/2: give at least 0 and less than 1/2, or None to keep probabilities")
    # probabilities that differ by rounding alone are a tie
    gap = verdicts.double() - 0.5
    hard = torch.where(gap > margin + 1e-12, 1.0, torch.where(gap < -margin - 1e-12, 0.0, 0.5)).double()
    return torch.where(verdicts.isnan(), torch.nan, hard)


def win_rate(verdicts: Tensor, decimals: int | None = None) -> Tensor:
    """Mean of the verdicts on each sample, [..., N, N] -> [..., N] in [0, 1], float64; NaN where it was never compared.

    decimals: rounded to so many.

    Source: Pref-GRPO (2508.20751), Pref-GRPO@3e787f6 `_pairwise_win_rate` (decimals 3).
    """
    rate = verdicts.double().nanmean(-1)
    return rate if decimals is None else rate.round(decimals=decimals)


def blended(
    overall: Tensor,
    parts: Tensor,
    part_weights: Tensor,
    parts_weight: float = 1.0,
    decimals: int | None = None,
    compat: str | None = None,
) -> Tensor:
    """(overall + w mean of parts) / (1 + w), the mean weighed by part_weights [C]; overall [..., N], parts [..., N, C].

    A part that is NaN is left out of the mean; where all are, overall alone. decimals: the mean is rounded to so many.

    Raises: ValueError for an unknown compat, or weights that are negative or add up to nothing.
    Source: Pref-GRPO@3e787f6 `unifiedreward_flex.py`: the overall verdict and up to three aspects the judge names.
    Differs: there w is silently the last part's weight; compat="Pref-GRPO@3e787f6" does the same.
    """
    if compat not in (None, COMPAT):
        raise ValueError(f'blended() knows compat "{COMPAT}", not {compat!r}')
    share = float(part_weights[-1]) if compat else parts_weight
    if share < 0 or bool((part_weights < 0).any()) or float(part_weights.sum()) <= 0:
        raise ValueError(f"weights {part_weights.tolist()} of parts and {share:g} of their mean: none negative, some positive")
    weight = torch.where(parts.isnan(), 0, part_weights.double())
    mean = torch.where(parts.isnan(), 0, parts.double() * part_weights).sum(-1) / weight.sum(-1)
    mean = mean if decimals is None else mean.round(decimals=decimals)
    return torch.where(mean.isnan(), overall.double(), (overall.double() + share * mean) / (1 + share))
