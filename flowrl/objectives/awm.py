"""AWM: the clipped policy gradient on a forward-process stand-in for the likelihood, the matching loss of re-noised leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .pools import of
from .ratio import beyond, clipped
from .renoise import Grid, Levels, distance, renoised

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
Order = Literal["exp_first", "sum_first"]

PUBLISHED = Grid(1, 0.9)
"""AWM's levels: of the first 0.9 of the steps all but the first."""


def likelihood(error: Tensor, sigma: Tensor, weighting: Weighting = "ghuber", power: float = 0.25) -> Tensor:
    """What stands for log p of a leaf at a level: minus a weighted matching error [N] -> [N].

    d = <(u - target)^2>: uniform -d,  t -d sigma,  t2 -d sigma^2,  huber -(sqrt(d + 1e-10) - 1e-5) sigma,
    ghuber -((d + 1e-10)^power - 1e-10^power) sigma / power.

    Raises: ValueError for an unknown weighting, or a power outside (0, 1].
    Source: AWM (2509.25050), advantage_weighted_matching@be51372 `compute_log_prob_awm`.
    """
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting {weighting!r} is unknown to AWM; use one of {', '.join(get_args(Weighting))}")
    if not 0 < power <= 1:
        raise ValueError(f"a power of {power:g} for AWM's weighting: give one in (0, 1] (published: 0.25)")
    level = sigma.to(error)
    if weighting == "huber":
        return -((error + 1e-10).sqrt() - 1e-5) * level
    if weighting == "ghuber":
        return -((error + 1e-10) ** power - 1e-10**power) * level / power
    return -error * level ** {"uniform": 0, "t": 1, "t2": 2}[weighting]


@dataclass(frozen=True)
class AWM:
    """mean of clipped(l - l_old, A') + beta <(u - u_ref)^2> + pull <(u - u_recent)^2>,  A' = clip(A / scale, -1, 1),
    l = `likelihood`.

    order: "exp_first" takes a ratio of every draw, "sum_first" one of every leaf, of the mean of l - l_old over its draws.
    clip: range of the ratio, on both sides.  elbo: the distances are divided by 2 g^2, g^2 = 0.49 sigma / (1 - min(sigma, 0.99)).
    old: whether l_old is taken under the weight set "old"; without it l_old is l without gradient, so the ratio is 1 and its
    gradient that of l, which is right for the one optimizer step after a rollout and for no other.
    "recent": an average of the weights that follows closely, where `pull` is not 0.

    Raises: ValueError for an unknown order, a scale or clip that is not positive, and what `likelihood` refuses.
    Source: AWM (2509.25050), advantage_weighted_matching@be51372 scripts/train_sd3_awm.py l. 1060-1160.
    Differs: `pull` without `beta` works (theirs crashes); each leaf has levels of its own, theirs one set a micro-batch.
    """

    weighting: Weighting = "ghuber"
    power: float = 0.25
    order: Order = "exp_first"
    clip: float = 1.0
    beta: float = 1e-3
    pull: float = 1.0
    elbo: bool = False
    scale: float = 5.0
    draws: int = 6
    old: bool = False
    levels: Levels = PUBLISHED
    clips = True

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f'order {self.order!r} is unknown to AWM; use "exp_first" or "sum_first"')
        if self.scale <= 0 or self.clip <= 0:
            raise ValueError(f"AWM with scale {self.scale:g} and clip {self.clip:g}: both must be positive (published: 5 and 1)")
        likelihood(torch.zeros(1), torch.ones(1), self.weighting, self.power)

    @property
    def separable(self) -> bool:
        return self.order == "exp_first"

    @property
    def needs(self) -> Sequence[str]:
        return [name for name, wanted in (("old", self.old), ("reference", self.beta), ("recent", self.pull)) if wanted]

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        return renoised(rollout, credit, noise, self.draws, self.levels)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 4]: l, l_old, squared distances to the reference and to the recent average (0 where not asked for)."""
        assert batch.target is not None
        now, level = u["current"], batch.sigma.double()
        likely = likelihood(distance(now, batch.target), level, self.weighting, self.power)
        was = likelihood(distance(u["old"], batch.target), level, self.weighting, self.power) if self.old else likely.detach()
        share = 2 * 0.49 * level / (1 - level.clamp(max=0.99)) if self.elbo else torch.ones_like(level)
        far = [distance(now, u[name]) / share if name in u else torch.zeros_like(likely) for name in ("reference", "recent")]
        return torch.stack([likely, was, *far], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        likely, was, far, pulled = m.unbind(1)
        ratio, advantage, weight = likely - was, (batch.advantage.to(m) / self.scale).clamp(-1, 1), batch.weight.to(m)
        if self.order == "sum_first":
            ratio, advantage, weight = by_leaf(batch, ratio, advantage, weight)
        policy = (weight * clipped(ratio, advantage, self.clip)).sum()
        kl, near = ((batch.kl_weight.to(m) * d).sum() for d in (far, pulled))
        metrics = {"loss/policy": policy, "kl/mean": kl, "kl/recent": near}
        if self.old:
            outside = beyond(ratio, self.clip, self.clip)
            metrics |= {
                "ratio/max_abs": ratio.abs().max(),
                "ratio/bias": (weight * ratio).sum(),
                "clip/fraction": (weight * outside).sum(),
            }
        total = policy + self.beta * batch.kl_scale * kl + self.pull * near
        return Loss(total, {name: value.detach() for name, value in metrics.items()})


def by_leaf(batch: Batch, ratio: Tensor, advantage: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of one leaf as one: mean log-ratio over its draws, its advantage, and the sum of their weights."""
    assert batch.group is not None and batch.node is not None
    leaf = of(batch.group, batch.node)
    zero = ratio.new_zeros(int(leaf.max()) + 1)
    draws = zero.index_add(0, leaf, torch.ones_like(ratio))
    return (
        zero.index_add(0, leaf, ratio) / draws,
        zero.index_add(0, leaf, advantage) / draws,
        zero.index_add(0, leaf, weight),
    )


def awm(
    weighting: Weighting = "ghuber",
    order: Order = "exp_first",
    beta: float = 1e-3,
    pull: float = 1.0,
    draws: int = 6,
    old: bool = False,
) -> AWM:
    """See `AWM`, whose other fields are as published."""
    return AWM(weighting, order=order, beta=beta, pull=pull, draws=draws, old=old)
