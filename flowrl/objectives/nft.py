"""DiffusionNFT: a contrast between an implicit positive and negative policy on re-noised leaves. No likelihoods, any sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import mean_each
from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .renoise import renoised


def nft_terms(u: Tensor, u_old: Tensor, x: Tensor, x0: Tensor, sigma: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses of the implicit positive and negative policy per row -> ([N], [N]), float64.

    u+- = u_old +- beta (u - u_old),  x0+- = x - sigma u+-,  L+- = <(x0+- - x0)^2> / max(<|x0+- - x0|>, 1e-5), the divisor
    without gradient.

    Source: DiffusionNFT (2509.16117); DiffusionNFT@24af555 scripts/train_nft_sd3.py l. 908-980.
    """
    level = sigma.double().view(-1, *[1] * (x.ndim - 1))
    terms = []
    for sign in (1, -1):
        error = x.double() - level * (u_old.double() + sign * beta * (u.double() - u_old.double())) - x0.double()
        terms.append(mean_each(error**2) / mean_each(error.detach().abs()).clamp(min=1e-5))
    return terms[0], terms[1]


@dataclass(frozen=True)
class NFT:
    """scale mean[(p L+ + (1 - p) L-) / beta] + kl <(u - u_ref)^2>, p = clip(1/2 + A / 2 scale, 0, 1); see `nft_terms`.

    Sampling and `u_old` use the weight set "old". scale: the advantage at which p saturates. draws: levels asked for each leaf.

    Source: DiffusionNFT (2509.16117) eq. 5.  Differs: levels are stratified over the plan's grid, not permuted.
    """

    beta: float = 1.0
    kl: float = 1e-4
    scale: float = 5.0
    draws: int = 1
    separable = True

    @property
    def needs(self) -> Sequence[str]:
        return ("old", "reference") if self.kl else ("old",)

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        return renoised(rollout, credit, noise, self.draws)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 3]: L+, L-, squared distance to the reference."""
        assert batch.x0 is not None
        positive, negative = nft_terms(u["current"], u["old"], batch.x, batch.x0, batch.sigma, self.beta)
        distance = mean_each((u["current"] - u["reference"]) ** 2).double() if self.kl else torch.zeros_like(positive)
        return torch.stack([positive, negative, distance], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        p = (0.5 + batch.advantage.to(m) / (2 * self.scale)).clamp(0, 1)
        positive, negative, distance = m.unbind(1)
        policy = self.scale * (batch.weight.to(m) * (p * positive + (1 - p) * negative) / self.beta).sum()
        metrics = {"loss/policy": policy.detach(), "kl/mean": (batch.kl_weight.to(m) * distance).sum().detach()}
        return Loss(policy + self.kl * batch.kl_scale * (batch.kl_weight.to(m) * distance).sum(), metrics)


def nft(beta: float = 1.0, kl: float = 1e-4, scale: float = 5.0, draws: int = 1) -> NFT:
    return NFT(beta, kl, scale, draws)
