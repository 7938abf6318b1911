"""Win rates: rewards made of comparisons inside a group."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.rewards.pairs import rates

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
    """`flowrl.rewards.pairs.rates.win_rate` of groups: [P, L, L] in {0, 1/2, 1, NaN} -> [P, L].

    Raises: ValueError for groups of one.
    """
    enough(verdicts.shape[1], 2, "a win rate")
    return rates.win_rate(verdicts, decimals)
