"""Diffusion-DPO: the better and the worse leaf of a prompt, re-noised alike, against a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .renoise import LEVELS, Levels, distance, renoised


def paired(group: Tensor, draw: Tensor, node: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """Pairs of entries, (winner, loser) -> long [k, 2]: of one group and draw the k-th largest advantage above 0 with the k-th
    smallest below 0.

    Entries of advantage 0 or weight 0, and those left over, are in no pair; the lower node goes first among equals.
    """
    sides: dict[tuple[int, int], tuple[list[tuple[float, int, int]], list[tuple[float, int, int]]]] = {}
    columns = (group.tolist(), draw.tolist(), node.tolist(), advantage.tolist(), weight.tolist())
    for i, (g, d, n, a, w) in enumerate(zip(*columns, strict=True)):
        if a and w:
            sides.setdefault((g, d), ([], []))[a < 0].append((-abs(a), n, i))
    pairs = [(w[2], l[2]) for won, lost in sides.values() for w, l in zip(sorted(won), sorted(lost), strict=False)]
    return torch.tensor(pairs, dtype=torch.long, device=advantage.device).view(-1, 2)


@dataclass(frozen=True)
class DPO:
    """mean over pairs of -log sigmoid(-beta / 2 [(e_w - e_l) - (e_w - e_l)_ref]),  e = <(u - target)^2>, the reference's under the
    weight set "reference".

    Pairs are told by the sign of the advantage (`paired`), and have noise and level in common; leaves in no pair are not asked.
    e is a mean over latent dims: a beta published for a sum is multiplied by their number. The target is the path's own, noise for
    an epsilon network and the velocity on a flow.

    Raises: ValueError for a beta that is not positive.
    Source: Diffusion-DPO (2311.12908) eq. 14, DiffusionDPO@5233e75 train.py l. 1125-1145 (beta 5000, epsilon);
    flow_grpo@ac4c86e scripts/train_sd3_dpo.py (beta 100, flow, logit-normal levels).
    Differs: errors and their differences are taken in float64, theirs in float32.
    """

    beta: float = 100.0
    draws: int = 1
    levels: Levels = LEVELS["logit_normal"]
    separable = False
    clips = False
    needs: Sequence[str] = ("reference",)

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(
                f"DPO with beta {self.beta:g} prefers nothing; give a positive one (published: 100 flow, 5000 epsilon)"
            )

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        leaves = rollout.plan.leaves
        asked = torch.zeros(credit.advantage.shape, dtype=torch.bool)
        prompt, node = torch.meshgrid(torch.arange(len(asked)), leaves, indexing="ij")
        prompt, node = prompt.flatten(), node.flatten()
        at = paired(prompt, torch.zeros_like(prompt), node, credit.advantage[prompt, node], credit.weight[prompt, node]).flatten()
        asked[prompt[at], node[at]] = True
        return renoised(rollout, credit, noise, self.draws, self.levels, shared=True, asked=asked)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: error of the policy, error of the reference."""
        assert batch.target is not None
        return torch.stack([distance(u["current"], batch.target), distance(u["reference"], batch.target)], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        assert batch.group is not None and batch.draw is not None and batch.node is not None
        winner, loser = paired(batch.group, batch.draw, batch.node, batch.advantage, batch.weight).unbind(1)
        gain = m[:, 1] - m[:, 0]
        margin = gain[winner] - gain[loser]
        weight = (batch.weight[winner] + batch.weight[loser]).to(m)
        value = (weight * functional.softplus(-self.beta / 2 * margin)).sum()
        metrics = {
            "loss/policy": value,
            "preference/margin": (weight * margin).sum(),
            "preference/accuracy": (weight * (margin > 0)).sum(),
        }
        return Loss(value, {name: v.detach() for name, v in metrics.items()})


def dpo(beta: float = 100.0, draws: int = 1, levels: Levels = LEVELS["logit_normal"]) -> DPO:
    return DPO(beta, draws, levels)
