"""GARDO (2512.24138): rewards that are hacked are held near the reference, and only they; what is unlike the rest counts more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .group import enough, masked, moments, ratio
from .preference import win_rate, wins

CODE = "GARDO@1cc77fb"


def known_compat(compat: str | None) -> None:
    if compat not in (None, CODE):
        raise ValueError(f'GARDO knows compat "{CODE}", not {compat!r}')


def nearest(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cosine distance to the nearest other valid sample of the group, features [P, L, D] -> [P, L] float64 in [0, 2]; NaN where
    there is none.

    Raises: ValueError for groups of one.
    Source: GARDO (2512.24138), on DINO features.
    """
    enough(features.shape[1], 2, "a distance to the nearest")
    x = torch.nn.functional.normalize(features.double(), dim=-1)
    valid = torch.isfinite(x).all(-1) if valid is None else valid & torch.isfinite(x).all(-1)
    x = torch.where(valid[..., None], x, 0)
    pairs = valid[:, :, None] & valid[:, None] & ~torch.eye(x.shape[1], dtype=torch.bool)
    distance = torch.where(pairs, 1 - x @ x.mT, torch.inf).amin(2).clamp(min=0)
    return torch.where(torch.isfinite(distance), distance, torch.nan)


def diverse(a: Tensor, distance: Tensor, valid: Tensor | None = None, compat: str | None = None) -> Tensor:
    """Advantages whose positive ones are multiplied by the sample's `distance`, [P, L] -> float32 [P, L]. An unknown distance
    leaves them as they are.

    Raises: ValueError for an unknown compat.
    Source: GARDO (2512.24138).  Differs: compat="GARDO@1cc77fb" divides the distance by its mean over the group.
    """
    known_compat(compat)
    d, known = masked(distance, valid)
    if compat:
        d = ratio(d, moments(d, known, (1,), 0)[0])
    return torch.where(known & (a > 0), a.double() * d, a.double()).float()


def uncertainty(proxy: Tensor, further: Tensor, valid: Tensor | None = None, compat: str | None = None) -> Tensor:
    """Win rate in the batch by the trained reward less the mean win rate by the others, [P, L] float64 in [-1, 1]; NaN where
    invalid. proxy [P, L], further [K, P, L]. Large: the trained reward likes what the others do not.

    Raises: ValueError for an unknown compat.
    Source: GARDO (2512.24138).  Differs: the released scripts rank with 1 = best, which turns the sign:
    compat="GARDO@1cc77fb".
    """
    known_compat(compat)
    valid = torch.ones_like(proxy, dtype=torch.bool) if valid is None else valid
    known = (valid & torch.isfinite(proxy) & torch.isfinite(further).all(0)).reshape(1, -1)
    rates = [win_rate(wins(r.reshape(1, -1), known)) for r in (proxy, *further)]
    u = (rates[0] - torch.stack(rates[1:]).mean(0)).view_as(proxy)
    return -u if compat else u


def gate(u: Tensor, share: float, compat: str | None = None) -> Tensor:
    """Which samples are held near the reference: the `share` of the batch with the largest u [P, L] -> bool; NaN never.

    Raises: ValueError for a share outside (0, 1] or an unknown compat.
    Source: GARDO (2512.24138).  Differs: compat="GARDO@1cc77fb" takes the share among those with u >= 0 only.
    """
    known_compat(compat)
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share:g} of the batch: give a number in (0, 1]")
    known = torch.isfinite(u)
    among = known & (u >= 0) if compat else known
    if not among.any():
        return among
    if compat:
        return among & (u >= torch.quantile(u[among].double(), 1 - share))
    count = max(1, round(share * int(among.sum())))
    order = torch.where(among, u, -torch.inf).flatten().argsort(descending=True, stable=True)
    on = torch.zeros(u.numel(), dtype=torch.bool)
    on[order[:count]] = True
    return on.view_as(u) & among


def adapted(
    share: float, mean: float, recent: Sequence[float], low: float = 0.02, high: float = 0.2, memory: int = 20
) -> tuple[float, list[float]]:
    """The next share and the means to remember: 1.1 share where the mean u is above all of the last `memory`, 0.9 share where it is
    below all, in [low, high].

    Source: GARDO@1cc77fb `RiskCompensator`.
    """
    factor = 1.1 if recent and mean > max(recent) else 0.9 if recent and mean < min(recent) else 1.0
    return min(max(share * factor, low), high), [*recent, mean][-memory:]


def drifted(kl: float, since: int, limit: float = 3e-4, every: int = 15) -> bool:
    """Whether the reference should now become the current policy: the KL is above `limit`, or `every` iterations have passed since
    it last did.

    Source: GARDO (2512.24138), GARDO@1cc77fb (limit 3e-4, for NFT 0.15).
    """
    return kl > limit or since >= every
