"""DPM-Solver++ steps from a state and its latest data predictions; also their stochastic forms, which have no replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["midpoint", "heun"]


def check(order: int, kind: str) -> None:
    """Raises: ValueError for an unknown order or kind."""
    if order not in (1, 2, 3):
        raise ValueError(f"DPM-Solver++ of order {order} does not exist; use 1, 2 or 3")
    if kind not in ("midpoint", "heun"):
        raise ValueError(f'kind {kind!r} of DPM-Solver++ is unknown; use "midpoint" or "heun"')


def step(
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    data: Sequence[tuple[Tensor, Tensor]],
    kind: Kind = "midpoint",
    alpha: Callable[[Tensor], Tensor] = lambda sigma: 1 - sigma,
    noise: Tensor | None = None,
    compat: str | None = None,
) -> Tensor:
    """One step of order len(data) from sigma to sigma' [N], in h = lambda' - lambda with lambda = ln(alpha / sigma).

    data: (sigma, x0_hat) at this state and at one or two before it, latest first.  With z = h,

        x' = (sigma' / sigma) e^(h - z) x + alpha' (p1 D0 + p2 D1 + p3 D2) + sigma' sqrt(1 - e^(2 (h - z))) noise,
        p1 = 1 - e^-z,  p2 = 1 - p1 / z,  p3 = 1 / 2 - (z - p1) / z^2,

    D0 the latest x0_hat, D1 and D2 its divided differences in units of h. Order 2 with kind "midpoint" takes p1 / 2 for p2.
    noise [N, *d]: the stochastic form, z = 2 h; its density is not that of one edge, so it cannot be trained on.
    A step to sigma' = 0 must be of order 1 and is x0_hat. A predecessor at sigma = 1 is infinitely far and adds nothing.

    Raises: ValueError for an unknown order, kind or compat.
    Source: DPM-Solver++ (2211.01095); stochastic: diffusers 0.42.1 `DPMSolverMultistepScheduler` ("sde-dpmsolver++").
    Differs: the third order of the stochastic form has p3 - 1 in diffusers and MixGRPO, which does not vanish with the step;
    compat="mixgrpo@e5cdd6a" is theirs.
    """
    check(len(data), kind)
    if compat not in (None, "mixgrpo@e5cdd6a"):
        raise ValueError(f'compat {compat!r} is unknown to multistep.step; it knows "mixgrpo@e5cdd6a"')
    wide = (-1, *[1] * (x.ndim - 1))

    def rows(t: Tensor) -> Tensor:
        return t.to(x).view(wide)

    lambdas = [(alpha(s) / s).log() for s, _ in data]
    h = (alpha(sigma_next) / sigma_next).log() - lambdas[0]
    decay = (sigma_next * alpha(sigma) / (sigma * alpha(sigma_next))).clamp(0, 1)  # e^-h, exact at both ends
    z, shrink = (h, decay) if noise is None else (2 * h, decay**2)
    p1, keep = 1 - shrink, sigma_next / sigma * (1 if noise is None else decay)
    out = rows(keep) * x + rows(alpha(sigma_next) * p1) * data[0][1]
    if len(data) > 1:
        p2 = p1 / 2 if len(data) == 2 and kind == "midpoint" else 1 - p1 / z
        r0 = (lambdas[0] - lambdas[1]) / h
        first = (data[0][1] - data[1][1]) / rows(r0)
        if len(data) == 3:
            r1 = (lambdas[1] - lambdas[2]) / h
            second = (first - (data[1][1] - data[2][1]) / rows(r1)) / rows(r0 + r1)
            # an infinite r1 leaves the first difference alone
            first = first + torch.where(rows(r1).isinf(), 0, rows(r0) * second)
            p3 = 0.5 - (z - p1) / z**2 - (1 if compat and noise is not None else 0)
            out = out + rows(alpha(sigma_next) * p3) * second
        out = out + rows(alpha(sigma_next) * p2) * first
    return out if noise is None else out + rows(sigma_next * (1 - decay**2).sqrt()) * noise
