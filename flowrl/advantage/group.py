"""Estimators on one reward: r [P, L] with a mask -> float32 [P, L]; groups are rows.

Statistics are taken in float64 over what is valid; what is invalid takes no part in them and gets 0. Equal rewards give 0, not
rounding over rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Estimate = Callable[[Tensor, Tensor], Tensor]
"""(r [P, m], valid [P, m]) -> advantages [P, m]: 0 where invalid; NaN drops a valid one."""

Spread = Literal["group", "global", "max"]


def masked(r: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """r in float64, 0 where it is not valid or not finite, and the mask of what is left."""
    valid = torch.isfinite(r) if valid is None else valid & torch.isfinite(r)
    return torch.where(valid, r, 0).double(), valid


def enough(size: int, least: int, what: str) -> None:
    """Raises: ValueError where fewer than `least` compete."""
    if size < least:
        raise ValueError(f"{what} needs at least {least} that compete, and there are {size}; make the group larger")


def moments(r: Tensor, valid: Tensor, dim: tuple[int, ...], ddof: int) -> tuple[Tensor, Tensor]:
    """Masked mean and std over `dim`, kept; std is 0 where fewer than ddof + 1 values are valid, mean where there is none."""
    count = valid.sum(dim, keepdim=True)
    low = torch.where(valid, r, torch.inf).amin(dim, keepdim=True)
    high = torch.where(valid, r, -torch.inf).amax(dim, keepdim=True)
    mean = torch.where(valid, r, 0).sum(dim, keepdim=True) / count.clamp(min=1)
    # a rounded mean of equal values can lie beside them; inside their range it is exact, and their std is 0
    mean = torch.where(count > 0, mean.clamp(low, high), 0)
    square = torch.where(valid, (r - mean) ** 2, 0).sum(dim, keepdim=True)
    return mean, torch.where(count > ddof, square / (count - ddof).clamp(min=1), 0).sqrt()


def ratio(up: Tensor, down: Tensor) -> Tensor:
    """up / down, and 0 where down is 0."""
    return torch.where(down == 0, 0, up / torch.where(down == 0, 1, down))


def zscore(
    r: Tensor,
    valid: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-4,
    std: Spread = "group",
    clamp: float | None = None,
    floor: float = 0.0,
) -> Tensor:
    """(r - mean of the group) / max(std + eps, floor), [P, L] -> float32 [P, L].

    std "group": of each row;  "global": of every valid reward (still centred by group);  "max": the largest of the rows'.
    ddof 0: population, 1: unbiased. A group with one valid reward, or equal ones, gets 0.

    Raises: ValueError for an unknown std.
    Source: Flow-GRPO (2505.05470) `PerPromptStatTracker` (ddof 0, eps 1e-4, group or global); DanceGRPO (ddof 1, eps 1e-8);
    LongCat-Video (2510.22200), GenRL@82a867e (max).
    """
    if std not in ("group", "global", "max"):
        raise ValueError(f'std over {std!r} is unknown; use "group", "global" or "max"')
    r, valid = masked(r, valid)
    mean, own = moments(r, valid, (1,), ddof)
    spread = moments(r, valid, (0, 1), ddof)[1] if std == "global" else own.amax() if std == "max" else own
    a = torch.where(valid, ratio(r - mean, (spread + eps).clamp(min=floor)), 0)
    return (a if clamp is None else a.clamp(-clamp, clamp)).float()


def center(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """r - mean of the group, [P, L] -> float32 [P, L].

    Source: Dr.GRPO (2503.20783).
    """
    r, valid = masked(r, valid)
    return torch.where(valid, r - moments(r, valid, (1,), 0)[0], 0).float()


def rloo(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """r - mean of the others of the group = G / (G - 1) (r - mean), [P, L] -> float32 [P, L]. G counts what is valid; alone: 0.

    Raises: ValueError for groups of one.
    Source: RLOO (2402.14740), verl@b178a3c `compute_rloo_outcome_advantage`.  Differs: theirs gives a group of one its reward.
    """
    enough(r.shape[1], 2, "a leave-one-out mean")
    r, valid = masked(r, valid)
    count = valid.sum(1, keepdim=True)
    return torch.where(valid, (r - moments(r, valid, (1,), 0)[0]) * count / (count - 1).clamp(min=1), 0).float()


def raw(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """The reward itself, as weighted regression takes it, [P, L] -> float32 [P, L].

    Source: Flow-GRPO, flow_grpo@ac4c86e `PerPromptStatTracker`, type rwr.
    """
    return masked(r, valid)[0].float()


def best(r: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 for all that reach the maximum of their group, else 0, [P, L] -> float32 [P, L]: the best of n, to imitate.

    Source: Flow-GRPO, flow_grpo@ac4c86e `PerPromptStatTracker`, type sft.
    """
    r, valid = masked(r, valid)
    return (valid & (r == torch.where(valid, r, -torch.inf).amax(1, keepdim=True))).float()


def best_worst(r: Tensor, valid: Tensor | None = None, compat: str | None = None) -> Tensor:
    """+1 for the first best, -1 for the first worst of a group, else 0, [P, L] -> float32 [P, L]: one pair a group.

    Raises: ValueError for groups of one, or an unknown compat.
    Source: Flow-GRPO, flow_grpo@ac4c86e `PerPromptStatTracker`, type dpo.
    Differs: equal rewards make no pair; compat="flow_grpo@ac4c86e" then takes the second for the best and the first for the worst.
    """
    if compat not in (None, "flow_grpo@ac4c86e"):
        raise ValueError(f'best_worst() knows compat "flow_grpo@ac4c86e", not {compat!r}')
    enough(r.shape[1], 2, "a pair of best and worst")
    r, valid = masked(r, valid)
    top = torch.where(valid, r, -torch.inf)
    low = torch.where(valid, r, torch.inf)
    equal = top.amax(1) <= low.amin(1)
    a = torch.zeros(r.shape)
    a.scatter_(1, top.argmax(1, keepdim=True), 1.0).scatter_(1, low.argmin(1, keepdim=True), -1.0)
    a[equal] = 0
    if compat:
        for row in (equal & (valid.sum(1) > 1)).nonzero().flatten():
            a[row, valid[row].nonzero().flatten()[:2]] = torch.tensor([-1.0, 1.0])
    return a


def quasi(r: Tensor, valid: Tensor | None = None, power: float = 0.8) -> Tensor:
    """(r - mean) / (mean |r - mean|^p)^(1/p), [P, L] -> float32 [P, L]: with p < 1 a group whose rewards lie close together but for
    a few counts less than by its std. A group of equal rewards gets 0.

    Raises: ValueError for a power that is not positive.
    Source: Neighbor-GRPO (2511.16955), group-level quasi-norm reweighting, p = 0.8.
    Differs: written from the text, which gives p.
    """
    if power <= 0:
        raise ValueError(f"a quasi-norm of power {power:g}: give a positive one (published: 0.8)")
    r, valid = masked(r, valid)
    centred = torch.where(valid, r - moments(r, valid, (1,), 0)[0], 0)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    norm = ((centred.abs() ** power).sum(1, keepdim=True) / count) ** (1 / power)
    return ratio(centred, norm).float()
