"""Flow-DPPO: no clip; edges whose policy has moved too far, and would be pushed further, are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import log_ratio
from flowrl.types import Batch, Loss

from .ratio import OnRecord, penalised, surrogate_kl


def outward(log_ratio: Tensor, advantage: Tensor, distance: Tensor, threshold: float) -> Tensor:
    """Edges that are dropped: distance >= threshold, and rho > 1 with A > 0 or rho < 1 with A < 0 -> bool [E]."""
    return (distance >= threshold) & (((log_ratio > 0) & (advantage > 0)) | ((log_ratio < 0) & (advantage < 0)))


@dataclass(frozen=True)
class DPPO(OnRecord):
    """mean of -A rho over edges that are not `outward`; dropped ones count in the denominator.

    threshold: of KL(new || old) of a step, mean over latent dims.

    Raises: ValueError for a threshold that is not positive.
    Source: Flow-DPPO (2606.11025); verl-omni@a1139ba `FlowDPPOLoss`.
    """

    threshold: float
    beta: float = 0.0
    clips = True
    name = "dppo"

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise ValueError(f"a KL threshold of {self.threshold:g} would drop every edge; give a positive one (published: 1e-5)")

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 3]: log-ratio, KL to the old policy, KL to the reference (0 without beta)."""
        assert batch.u_old is not None and batch.x_next is not None
        now, old, x = u["current"][batch.row], batch.u_old[batch.row], batch.x[batch.row]
        ratio = log_ratio(now, old, x, batch.x_next, batch.a, batch.b, batch.s)
        moved = surrogate_kl(now, old, batch.b, batch.s).detach()
        kl = surrogate_kl(now, u["reference"][batch.row], batch.b, batch.s) if self.beta else torch.zeros_like(ratio)
        return torch.stack([ratio, moved, kl], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, moved, kl = m.unbind(1)
        dropped = outward(ratio.detach(), batch.advantage, moved, self.threshold)
        policy = (batch.weight * torch.where(dropped, 0, -batch.advantage * ratio.exp())).sum()
        whole = penalised(batch, policy, ratio, kl, dropped, self.beta)
        return Loss(whole.value, {**whole.metrics, "kl/old": (batch.weight * moved).sum()})


def dppo(threshold: float = 1e-5, beta: float = 0.0) -> DPPO:
    return DPPO(threshold, beta)
