"""Weighted matching on the policy's own images: fine-tuning on the best, reward-weighted regression, a mix with a ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flowrl.samplers import Plan, Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Objective, Queries

from .renoise import LEVELS, Levels, distance, renoised


@dataclass(frozen=True)
class Matching:
    """mean of A <(u - target)^2> over re-noised leaves + beta <(u - u_ref)^2>; leaves of weight 0 are not asked.

    A is what the credit says: 1 for the best (SFT), the reward (RWR). The target is the path's own.

    Source: Flow-GRPO (2505.05470), flow_grpo@ac4c86e scripts/train_sd3_sft.py l. 836 (logit-normal levels).
    """

    draws: int = 1
    beta: float = 0.0
    levels: Levels = LEVELS["logit_normal"]
    separable = True
    clips = False

    @property
    def needs(self) -> Sequence[str]:
        return ("reference",) if self.beta else ()

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        asked = (credit.weight > 0) | (credit.kl_weight > 0) if self.beta else credit.weight > 0
        return renoised(rollout, credit, noise, self.draws, self.levels, asked=asked)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: matching error, squared distance to the reference (0 without beta)."""
        assert batch.target is not None
        error = distance(u["current"], batch.target)
        return torch.stack([error, distance(u["current"], u["reference"]) if self.beta else torch.zeros_like(error)], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        error, far = m.unbind(1)
        policy = (batch.weight * batch.advantage * error).sum()
        kl = (batch.kl_weight * far).sum()
        metrics = {"loss/policy": policy.detach(), "kl/mean": kl.detach()}
        return Loss(policy + self.beta * batch.kl_scale * kl, metrics)


def matching(draws: int = 1, beta: float = 0.0, levels: Levels = LEVELS["logit_normal"]) -> Matching:
    return Matching(draws, beta, levels)


def best_leaf(plan: Plan, credit: Credit) -> Credit:
    """Advantage and weight 1 for the leaf of each prompt with the largest advantage above 0, 0 elsewhere."""
    a = torch.where(credit.weight[:, plan.leaves] > 0, credit.advantage[:, plan.leaves], -torch.inf)
    top, at = a.max(1)
    chosen = torch.zeros_like(credit.advantage)
    chosen[torch.arange(len(at)), plan.leaves[at]] = (top > 0).to(chosen)
    return Credit(chosen, chosen.clone(), chosen.clone())


@dataclass(frozen=True)
class Mixed:
    """ratio + share matching: an objective on recorded steps, and the matching loss of each prompt's best leaf beside it, each a
    mean of its own.

    Raises: ValueError for objectives that compare edges, or have a KL: its denominator is the matching term's.
    Source: LayerTuning-RL, in Dynamic-TreeRPO (2509.23352): lambda |v - V*|^2 toward the velocity of the path of largest reward.
    Differs: inspired by the text alone. Lambda, its schedule and the exact V* are not published; here V* is the velocity that
    joins the best image to fresh noise. The policy's own velocity on its best path would pull nowhere before the first update.
    """

    ratio: Objective
    matching: Matching
    share: float
    separable = True

    def __post_init__(self) -> None:
        if not self.ratio.separable:
            raise ValueError(
                f"{type(self.ratio).__name__.lower()} compares edges with each other and cannot be mixed with matching"
            )
        if getattr(self.ratio, "beta", 0) or self.matching.beta:
            raise ValueError("a mix of a ratio and matching has no KL; set both betas to 0")
        if self.share <= 0:
            raise ValueError(f"a share of {self.share:g} of matching: give a positive one, or the ratio alone")

    @property
    def clips(self) -> bool:
        return self.ratio.clips

    @property
    def needs(self) -> Sequence[str]:
        return self.ratio.needs

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        first = self.ratio.queries(rollout, credit, noise)
        second = self.matching.queries(rollout, best_leaf(rollout.plan, credit), noise)
        # of the two denominators a step has, the ratio keeps its own and the matching term takes that of the KL
        first = replace(first, kl_weight=torch.zeros_like(first.kl_weight))
        return joined(first, replace(second, weight=torch.zeros_like(second.weight)))

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        return (self.ratio if batch.x0 is None else self.matching).measure(batch, u)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        if batch.x0 is None:
            return self.ratio.loss(batch, m)
        value = self.matching.loss(replace(batch, weight=batch.kl_weight), m).value
        return Loss(self.share * value, {"loss/matching": value.detach()})


def mixed(ratio: Objective, matching: Matching, share: float) -> Mixed:
    return Mixed(ratio, matching, share)


def joined(first: Queries, second: Queries) -> Queries:
    """Queries of two objectives as one, the first one's slices first; no slice holds rows of both."""
    count = len(first.row_prompt)
    if first.share is not None or second.share is not None:
        ones = [torch.ones_like(q.weight) if q.share is None else q.share for q in (first, second)]
        first, second = replace(first, share=ones[0]), replace(second, share=ones[1])
    second = replace(second, row=second.row + count, slices=[rows + count for rows in second.slices])
    both: dict[str, Tensor | Sequence[Tensor] | Sequence[int]] = {}
    for name in (f.name for f in fields(Queries)):
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, Tensor):
            both[name] = torch.cat([one, other.to(one)])
    return replace(first, **both, slices=[*first.slices, *second.slices], block=[*first.block, *second.block])
