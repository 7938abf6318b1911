"""DiffusionNFT: a contrast between an implicit positive and negative policy on re-noised leaves. No likelihoods, any sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flowrl.kernels import mean_each
from flowrl.samplers import Rollout
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .renoise import renoised

Mode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def probability(advantage: Tensor, scale: float = 5.0, mode: Mode = "all") -> Tensor:
    """How likely a leaf is a good one: clip(1/2 + a / 2 scale, 0, 1) -> [E].

    a by mode: all A,  positive_only max(A, 0),  negative_only min(A, 0),  one_only 1 where A > 0 else 0,  binary sign(A).

    Raises: ValueError for an unknown mode or a scale that is not positive.
    Source: DiffusionNFT (2509.16117); DiffusionNFT@24af555 scripts/train_nft_sd3.py l. 909-929.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} is unknown to NFT; use one of {', '.join(get_args(Mode))}")
    if scale <= 0:
        raise ValueError(f"NFT with scale {scale:g}: give the advantage at which a leaf is surely good, above 0 (published: 5)")
    if mode == "positive_only":
        advantage = advantage.clamp(min=0)
    elif mode == "negative_only":
        advantage = advantage.clamp(max=0)
    elif mode == "one_only":
        advantage = (advantage > 0).to(advantage)
    elif mode == "binary":
        advantage = advantage.sign()
    return (0.5 + advantage / (2 * scale)).clamp(0, 1)


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
    """scale mean[(p L+ + (1 - p) L-) / beta] + kl <(u - u_ref)^2>, p = `probability` of A; see `nft_terms`.

    Sampling and `u_old` use the weight set "old". scale: the advantage at which p saturates. draws: levels asked for each leaf.

    Source: DiffusionNFT (2509.16117) eq. 5.  Differs: levels are stratified over the plan's grid, not permuted.
    """

    beta: float = 1.0
    kl: float = 1e-4
    scale: float = 5.0
    draws: int = 1
    mode: Mode = "all"
    separable = True
    clips = False

    def __post_init__(self) -> None:
        probability(torch.zeros(1), self.scale, self.mode)

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
        p = probability(batch.advantage.to(m), self.scale, self.mode)
        positive, negative, distance = m.unbind(1)
        policy = self.scale * (batch.weight.to(m) * (p * positive + (1 - p) * negative) / self.beta).sum()
        kl = (batch.kl_weight.to(m) * distance).sum()
        return Loss(policy + self.kl * batch.kl_scale * kl, {"loss/policy": policy.detach(), "kl/mean": kl.detach()})


def nft(beta: float = 1.0, kl: float = 1e-4, scale: float = 5.0, draws: int = 1, mode: Mode = "all") -> NFT:
    return NFT(beta, kl, scale, draws, mode)
