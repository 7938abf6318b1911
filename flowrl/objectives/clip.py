"""The clipped ratio of PPO and Flow-GRPO, and GRPO-Guard's normalised form of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flowrl.kernels import mean_each, step
from flowrl.types import Batch, Loss

from .ratio import KL, OnRecord, beyond, clipped, measured, penalised, resolvable, surrogate_kl
from .scales import Scale


@dataclass(frozen=True)
class Clip(OnRecord):
    """mean of clipped(log rho, A) + beta KL to the frozen "reference"; see `clipped` and `surrogate_kl`.

    low, high: clip range of rho on the per-element mean log-ratio (the field's 1e-5 to 1e-3).  scale: how much a step counts, by
      the plan's edges; see `scales`.  kl_scale: the same of the KL.

    kl: "exact", of the two Gaussians of a step, or "forward", RAPO's estimate (`forward_kl`).

    Raises: ValueError for a range below 3 x 2^-23, where float32 cannot tell rho from 1, or an unknown form of the KL.
    Differs: Flow-GRPO's KL lacks sigma - sigma'; compat="flow_grpo@9745241" multiplies it in.
    """

    low: float
    high: float
    dual: float | None = None
    beta: float = 0.0
    compat: str | None = None
    scale: Scale | None = None
    kl: KL = "exact"
    kl_scale: Scale | None = None
    learnable = True
    clips = True
    name = "clip"

    def __post_init__(self) -> None:
        resolvable(self.low, self.high)
        if self.compat not in (None, "flow_grpo@9745241"):
            raise ValueError(f'compat {self.compat!r} is unknown to clip; it knows "flow_grpo@9745241"')
        if self.kl not in get_args(KL):
            raise ValueError(f"kl {self.kl!r} is unknown to clip; it knows {', '.join(get_args(KL))}")

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: log-ratio to the recorded step, KL to the reference (0 without beta)."""
        return measured(batch, u, self.beta, self.kl, self.compat)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, kl = m.unbind(1)
        policy = (batch.weight * clipped(ratio, batch.advantage, self.low, self.high, self.dual)).sum()
        return penalised(batch, policy, ratio, kl, beyond(ratio, self.low, self.high), self.beta)


def clip(
    low: float = 1e-4,
    high: float | None = None,
    dual: float | None = None,
    beta: float = 0.0,
    compat: str | None = None,
    scale: Scale | None = None,
    kl: KL = "exact",
    kl_scale: Scale | None = None,
) -> Clip:
    """See `Clip`; high None: as low."""
    return Clip(low, low if high is None else high, dual, beta, compat, scale, kl, kl_scale)


def guarded(log_ratio: Tensor, drift: Tensor, s: Tensor, compat: str | None = None) -> Tensor:
    """GRPO-Guard's log-ratio (log rho + drift) s -> [E], with drift = <(mean - mean_old)^2> / 2 s^2 per edge.

    log rho has the mean -drift under the old policy; adding it centres the ratio, and s gives all steps one spread.

    Source: GRPO-Guard (2510.22319); verl-omni@a1139ba `GRPOGuardLoss`.
    Differs: the authors' code takes one drift for the whole batch (a mean over no dimension in particular);
    compat="flow_grpo@9745241" is theirs.
    """
    if compat not in (None, "flow_grpo@9745241"):
        raise ValueError(f'compat {compat!r} is unknown to guarded; it knows "flow_grpo@9745241"')
    return (log_ratio + (drift.mean() if compat else drift)) * s.to(log_ratio)


@dataclass(frozen=True)
class Guard(OnRecord):
    """Clip on `guarded`, each edge divided by sigma - sigma' (by "step") or by |b| (by "slope", Precise): steps share one spread of
    the ratio and one size of the gradient.

    low, high: clip range; the published 2e-6 to 4e-6 is finer than a difference of two log-densities resolves, so the guarded
    ratio is formed at once as <(mean - mean_old)(x' - mean_old)> / s.

    Raises: ValueError for a range below 3 x 2^-23.
    Source: GRPO-Guard (2510.22319), flow_grpo@9745241 scripts/train_sd3_GRPO_Guard.py l. 915-933.
    """

    low: float
    high: float
    beta: float = 0.0
    by: Literal["step", "slope"] = "step"
    clips = True
    name = "guard"

    def __post_init__(self) -> None:
        resolvable(self.low, self.high)
        if self.by not in ("step", "slope"):
            raise ValueError(f'guard divides by "step" or by "slope", not by {self.by!r}')

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: guarded log-ratio, KL to the reference (0 without beta)."""
        assert batch.u_old is not None and batch.x_next is not None
        now, old, x = u["current"][batch.row], batch.u_old[batch.row], batch.x[batch.row]
        ratio = (batch.b / batch.s).to(now) * mean_each((now - old) * (batch.x_next - step(x, old, batch.a, batch.b, batch.s)))
        if not self.beta:
            return torch.stack([ratio, torch.zeros_like(ratio)], 1)
        return torch.stack([ratio, surrogate_kl(now, u["reference"][batch.row], batch.b, batch.s)], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, kl = m.unbind(1)
        share = batch.delta if self.by == "step" else batch.b.abs()
        policy = (batch.weight * clipped(ratio, batch.advantage, self.low, self.high) / share).sum()
        return penalised(batch, policy, ratio, kl, beyond(ratio, self.low, self.high), self.beta)


def guard(low: float = 2e-6, high: float | None = None, beta: float = 0.0, by: Literal["step", "slope"] = "step") -> Guard:
    """See `Guard`; high None: as low."""
    return Guard(low, low if high is None else high, beta, by)
