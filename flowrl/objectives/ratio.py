"""Objectives on the likelihood ratio of recorded steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import log_ratio, mean_each
from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries


def clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float | None = None, dual: float | None = None) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) per edge, rho = exp(log_ratio) -> [E].

    dual > 1: for A < 0 the loss is at most -A dual.

    Source: PPO (1707.06347) eq. 7; Flow-GRPO scripts/train_sd3.py@9745241 l. 886-899; dual clip: 1912.09729.
    """
    rho = log_ratio.exp()
    loss = torch.maximum(-advantage * rho, -advantage * rho.clamp(1 - low, 1 + (low if high is None else high)))
    return loss if dual is None else torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def surrogate_kl(u: Tensor, u_ref: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """KL of one step to the reference: b^2 <(u - u_ref)^2> / 2 s^2 -> [E]. Equals `samplers.kl` of the two means."""
    return (b**2 / (2 * s**2)).to(u) * mean_each((u - u_ref) ** 2)


def recorded(rollout: Rollout, credit: Credit) -> Queries:
    """The recorded slices of a rollout as queries: rows are recorded states, edges their noisy children walked here."""
    plan = rollout.plan
    a, b, s = (t.float() for t in plan.coefficients(plan.edges, rollout.path))
    kept = {int(n): i for i, n in enumerate(plan.kept)}
    children = [[e for e, n in enumerate(plan.edges.tolist()) if int(plan.parent[n]) == int(r)] for r in plan.rows]
    prompt = torch.cat([s.prompt for s in rollout.slices])
    row = torch.cat([s.row for s in rollout.slices])
    pairs = [(i, e) for i, r in enumerate(row.tolist()) for e in children[r]]
    at = torch.tensor([i for i, _ in pairs])
    edge = torch.tensor([e for _, e in pairs])
    mine, node = prompt[at], plan.edges[edge]
    ends = torch.tensor([len(s.row) for s in rollout.slices]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return Queries(
        row_prompt=prompt,
        kept=torch.tensor([kept[int(plan.rows[r])] for r in row.tolist()]),
        sigma=plan.sigma[plan.rows[row]],
        key=torch.full_like(row, -1),
        old=row,
        row=at,
        child=torch.tensor([kept[int(n)] for n in node]),
        a=a[edge],
        b=b[edge],
        s=s[edge],
        delta=(plan.sigma[plan.parent[node]] - plan.sigma[node]).float(),
        advantage=credit.advantage[mine, node],
        weight=credit.weight[mine, node],
        kl_weight=credit.kl_weight[mine, node],
        slices=[torch.arange(i, j) for i, j in zip(starts, ends, strict=True)],
        block=[s.block for s in rollout.slices],
    )


@dataclass(frozen=True)
class Clip:
    """mean of clipped(log rho, A) + beta KL to the frozen "reference"; see `clipped` and `surrogate_kl`.

    low, high: clip range of rho on the per-element mean log-ratio (the field's 1e-5 to 1e-3).

    Raises: ValueError for a range below 3 x 2^-23, where float32 cannot tell rho from 1.
    Differs: Flow-GRPO's KL lacks sigma - sigma'; compat="flow_grpo@9745241" multiplies it in.
    """

    low: float
    high: float
    dual: float | None = None
    beta: float = 0.0
    compat: str | None = None
    separable = True

    def __post_init__(self) -> None:
        floor = 3 * 2.0**-23
        if min(self.low, self.high) < floor:
            raise ValueError(
                f"clip range {min(self.low, self.high):g} is below {floor:.2g}, 3x the float32 resolution of the ratio; "
                "use at least 1e-6"
            )
        if self.compat not in (None, "flow_grpo@9745241"):
            raise ValueError(f'compat {self.compat!r} is unknown to clip; it knows "flow_grpo@9745241"')

    @property
    def needs(self) -> Sequence[str]:
        return ("reference",) if self.beta else ()

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        if not len(rollout.plan.edges):
            raise ValueError("a ratio objective needs a plan with noisy steps; this plan has none")
        return recorded(rollout, credit)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: log-ratio to the recorded step, KL to the reference (0 without beta)."""
        assert batch.u_old is not None and batch.x_next is not None
        now, x = u["current"][batch.row], batch.x[batch.row]
        ratio = log_ratio(now, batch.u_old[batch.row], x, batch.x_next, batch.a, batch.b, batch.s)
        if not self.beta:
            return torch.stack([ratio, torch.zeros_like(ratio)], 1)
        kl = surrogate_kl(now, u["reference"][batch.row], batch.b, batch.s)
        return torch.stack([ratio, kl * batch.delta.to(kl) if self.compat else kl], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, kl = m.unbind(1)
        policy = (batch.weight * clipped(ratio, batch.advantage, self.low, self.high, self.dual)).sum()
        total = policy + self.beta * (batch.kl_weight * kl).sum()
        with torch.no_grad():
            outside = (ratio > math.log1p(self.high)) | (ratio < math.log1p(-self.low))
            metrics = {
                "ratio/max_abs": ratio.abs().max(),
                "ratio/bias": (batch.weight * ratio).sum(),
                "loss/policy": policy.detach(),
                "clip/fraction": (batch.weight * outside).sum(),
                "kl/mean": (batch.kl_weight * kl).sum(),
            }
        return Loss(total, metrics)


def clip(
    low: float = 1e-4, high: float | None = None, dual: float | None = None, beta: float = 0.0, compat: str | None = None
) -> Clip:
    return Clip(low, low if high is None else high, dual, beta, compat)
