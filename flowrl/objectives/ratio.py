"""What objectives on the likelihood ratio of recorded steps share: queries, surrogates, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from flowrl.kernels import log_density, log_ratio, mean_each, step
from flowrl.samplers import Rollout, kl
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .pools import chains_only
from .scales import Scale, Steps

KL = Literal["exact", "forward"]
"""exact: of the two Gaussians of a step;  forward: `forward_kl` of the sampled step."""

Range = float | Tensor
"""How far a ratio may go, the same for all edges or of each."""


def clipped(log_ratio: Tensor, advantage: Tensor, low: Range, high: Range | None = None, dual: float | None = None) -> Tensor:
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


def recorded(rollout: Rollout, credit: Credit, scale: Scale | None = None, kl_scale: Scale | None = None) -> Queries:
    """The recorded slices of a rollout as queries: rows are recorded states, edges their noisy children walked here."""
    plan = rollout.plan
    a, b, s = plan.coefficients(plan.edges, rollout.path)
    steps = Steps(plan.sigma[plan.parent[plan.edges]], plan.sigma[plan.edges], b, s, plan.guard)
    share, kl_share = (None if s is None else s(steps).float() for s in (scale, kl_scale))
    a, b, s = (t.float() for t in (a, b, s))
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
        kl_scale=credit.kl_scale,
        group=rollout.slots[mine],
        node=node,
        draw=torch.zeros_like(node),
        slices=[torch.arange(i, j) for i, j in zip(starts, ends, strict=True)],
        block=[s.block for s in rollout.slices],
        share=None if share is None else share[edge],
        kl_share=None if kl_share is None else kl_share[edge],
    )


def edge_ratio(batch: Batch, now: Tensor, old: Tensor) -> Tensor:
    """log p - log p_old of every edge under two predictions at its row -> [E]; exactly 0 iff they have the same bits.

    Learned noise has two stds, and the ratio is that of two Gaussians.
    """
    assert batch.x_next is not None
    x = batch.x[batch.row]
    if batch.learned is None:
        return log_ratio(now, old, x, batch.x_next, batch.a, batch.b, batch.s)
    new, was = (
        log_density(batch.x_next, step(x, u[:, 0], batch.a, batch.b, batch.s), batch.learned.std(u[:, 1])) for u in (now, old)
    )
    return new - was


def edge_kl(batch: Batch, now: Tensor, ref: Tensor) -> Tensor:
    """KL of every edge's step to that of another prediction at its row -> [E]."""
    if batch.learned is None:
        return surrogate_kl(now, ref, batch.b, batch.s)
    x = batch.x[batch.row]
    mean, mean_ref = (step(x, u[:, 0], batch.a, batch.b, batch.s) for u in (now, ref))
    return kl(mean, mean_ref, batch.learned.std(now[:, 1]), batch.learned.std(ref[:, 1]))


def forward_kl(log_ratio: Tensor) -> Tensor:
    """x log x - x + 1 with x = p_ref / p = exp(-log_ratio): KL(ref || policy) from the policy's own samples, never negative.

    log_ratio [E]: log p - log p_ref.

    Source: RAPO (2510.03865), the sample estimator of its forward KL; its reweighting of the reference by reward is `tempered`.
    """
    log_x = -log_ratio
    return log_x.exp() * log_x - log_x.expm1()


def tempered(log_prob: Tensor, log_prob_ref: Tensor, power: Tensor) -> Tensor:
    """log p - log p_ref^power, the log-ratio to a reference that is raised to a power by reward (unnormalised), [E].

    Source: RAPO (2510.03865), p_ref^phi(r).
    """
    return log_prob - power * log_prob_ref


def estimated_kl(log_ratio: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """KL(policy || ref) from the policy's samples, d = log p_ref - log p: k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1 -> [E].

    k1 and k3 are unbiased; k3 is never negative. The gradient of k2 is that of the KL, those of the others are not.

    Raises: ValueError for another kind.
    Source: Schulman, Approximating KL divergence (2020); verl@b178a3c `kl_penalty`.
    """
    d = -log_ratio
    if kind == "k1":
        return -d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return d.expm1() - d
    raise ValueError(f'KL estimator {kind!r} is unknown; use "k1", "k2" or "k3"')


def measured(batch: Batch, u: Mapping[str, Tensor], beta: float, kl: KL = "exact", compat: str | None = None) -> Tensor:
    """[E, 2]: log-ratio to the recorded step, KL to the reference (0 without beta)."""
    assert batch.u_old is not None
    now = u["current"][batch.row]
    ratio = edge_ratio(batch, now, batch.u_old[batch.row])
    if not beta:
        return torch.stack([ratio, torch.zeros_like(ratio)], 1)
    ref = u["reference"][batch.row]
    if kl == "forward":
        return torch.stack([ratio, forward_kl(edge_ratio(batch, now, ref))], 1)
    exact = edge_kl(batch, now, ref)
    return torch.stack([ratio, exact * batch.delta.to(exact) if compat else exact], 1)


def penalised(batch: Batch, policy: Tensor, ratio: Tensor, kl: Tensor, cut: Tensor, beta: float) -> Loss:
    """The policy's loss with its KL term and what is logged of it. cut [E]: edges whose gradient was cut off."""
    total = policy + beta * batch.kl_scale * (batch.kl_weight * kl).sum()
    return Loss(total, metrics(batch, ratio, cut, policy, kl))


class OnRecord:
    """Objectives that ask at the recorded states of a plan with noisy steps.

    beta: strength of a KL to the "reference".  scale, kl_scale: how much each step counts, of the policy and of the KL; None:
    alike.
    """

    separable = True
    beta: float = 0.0
    scale: Scale | None = None
    kl_scale: Scale | None = None
    learnable = False
    """Whether it has a form for learned noise."""
    clips = False
    single = False
    """Whether every recorded edge must lead to one image."""
    name: str = "this objective"
    """What messages call it."""

    @property
    def needs(self) -> Sequence[str]:
        return ("reference",) if self.beta else ()

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        if not len(rollout.plan.edges):
            raise ValueError("a ratio objective needs a plan with noisy steps; this plan has none")
        if rollout.plan.learned is not None and not self.learnable:
            raise ValueError(f"{self.name} has no form for learned noise, whose std changes with the weights; use clip")
        if self.single:
            chains_only(rollout.plan, self.name)
        return recorded(rollout, credit, self.scale, self.kl_scale)


def resolvable(low: float, high: float) -> None:
    """Raises: ValueError for a clip range below 3 x 2^-23, where float32 cannot tell rho from 1."""
    floor = 3 * 2.0**-23
    if min(low, high) < floor:
        raise ValueError(
            f"clip range {min(low, high):g} is below {floor:.2g}, 3x the float32 resolution of the ratio; use at least 1e-6"
        )


def metrics(batch: Batch, ratio: Tensor, outside: Tensor, policy: Tensor, kl: Tensor) -> dict[str, Tensor]:
    """What is logged of every ratio objective. outside [E]: the edges whose gradient was cut off."""
    with torch.no_grad():
        return {
            "ratio/max_abs": ratio.abs().max(),
            "ratio/bias": (batch.weight * ratio).sum(),
            "loss/policy": policy.detach(),
            "clip/fraction": (batch.weight * outside).sum(),
            "kl/mean": (batch.kl_weight * kl).sum(),
        }


def beyond(ratio: Tensor, low: float, high: float) -> Tensor:
    """Edges whose ratio lies outside [1 - low, 1 + high]; low of 1 and more has no lower end, a ratio being positive."""
    return (ratio > math.log1p(high)) | (ratio < (math.log1p(-low) if low < 1 else -math.inf))
