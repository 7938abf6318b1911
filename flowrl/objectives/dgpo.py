"""DGPO: a group's good images against its bad ones, as one preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .renoise import Grid, Levels, distance, renoised

FIRST_HALF = Grid(0, 0.5)
"""DGPO's levels: the first half of the steps."""


def balanced(advantage: Tensor, group: Tensor, weight: Tensor) -> Tensor:
    """Advantages [E] whose two sides have equal sums within each group, the mean of the two; 0 for weight 0, and in a group with
    one side only.

    group: long [E], from 0 on.
    """
    a = torch.where(weight > 0, advantage, 0)
    zero = a.new_zeros(int(group.max()) + 1 if len(group) else 0)
    above, below = (zero.index_add(0, group, side.clamp(min=0)) for side in (a, -a))
    half = torch.where((above > 0) & (below > 0), (above + below) / 2, 0)
    scale = torch.where(a > 0, (half / above)[group], (half / below)[group])
    return torch.where(a == 0, 0, a * scale)


@dataclass(frozen=True)
class DGPO:
    """mean over groups of -(1 / beta) log sigmoid(-(beta / G) sum A~ [e - e_ref]) + kl <(u - u_ref)^2>,  e = <(u - target)^2>,
    e_ref under "reference".

    G counts a group's leaves of weight above 0; A~ are `balanced` advantages, so that the partition function cancels. Level and
    noise are shared by the leaves of a prompt. beta: 1 / beta makes the gradient of a leaf A~ grad e, weighed by the sigmoid.
    clip: leaves whose exp(e_old - e) under the weight set "old" left 1 +- clip on the side of their advantage pull no further;
    None: no such limit, and no such set.

    Raises: ValueError for a beta or clip that is not positive.
    Source: DGPO (2510.08425); DGPO@4894284 scripts/train_sd3_dgpo.py (beta 100, clip 1e-3, kl 0.02).
    Differs: theirs leaves sides that a limit of advantages or a missing score put out of balance as they are; its reference has
    guidance 4.5, ours the policy's own.
    """

    beta: float = 100.0
    kl: float = 0.02
    clip: float | None = 1e-3
    draws: int = 4
    levels: Levels = FIRST_HALF
    separable = False
    clips = False

    def __post_init__(self) -> None:
        if self.beta <= 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"DGPO with beta {self.beta:g} and clip {self.clip}: give positive ones (published: 100 and 1e-3)")

    @property
    def needs(self) -> Sequence[str]:
        return ("reference",) if self.clip is None else ("reference", "old")

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        return renoised(rollout, credit, noise, self.draws, self.levels, shared=True)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 4]: errors of the policy, of the reference and of the old policy, squared distance to the reference."""
        assert batch.target is not None
        error = distance(u["current"], batch.target)
        old = error.detach() if self.clip is None else distance(u["old"], batch.target)
        return torch.stack([error, distance(u["reference"], batch.target), old, distance(u["current"], u["reference"])], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        assert batch.group is not None and batch.draw is not None
        error, ref, old, far = m.unbind(1)
        advantage, weight = batch.advantage.to(m), batch.weight.to(m)
        stopped = torch.zeros_like(advantage, dtype=torch.bool)
        if self.clip is not None:
            ratio = (old - error).detach().exp()
            stopped = torch.where(advantage > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
        group = torch.stack([batch.group, batch.draw], 1).unique(dim=0, return_inverse=True)[1]
        zero = m.new_zeros(int(group.max()) + 1)
        size = zero.index_add(0, group, (weight > 0).to(m)).clamp(min=1)
        moved = balanced(advantage, group, weight) * (torch.where(stopped, error.detach(), error) - ref)
        sums = zero.index_add(0, group, moved) / size
        share = zero.index_add(0, group, weight)
        policy = (share * functional.softplus(self.beta * sums)).sum() / self.beta
        kl = (batch.kl_weight.to(m) * far).sum()
        metrics = {
            "loss/policy": policy,
            "kl/mean": kl,
            "clip/fraction": (weight * stopped).sum(),
            "preference/accuracy": (share * (sums < 0)).sum(),
        }
        return Loss(policy + self.kl * batch.kl_scale * kl, {name: value.detach() for name, value in metrics.items()})


def dgpo(beta: float = 100.0, kl: float = 0.02, clip: float | None = 1e-3, draws: int = 4) -> DGPO:
    return DGPO(beta, kl, clip, draws)
