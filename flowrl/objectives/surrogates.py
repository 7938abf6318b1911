"""Other surrogates of the ratio family, most of them from language models, where a token is what a denoising step is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowrl.types import Batch, Loss

from .pools import mean_of, trajectories
from .ratio import KL, OnRecord, beyond, clipped, measured, penalised, resolvable
from .scales import Scale

Each = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""(log-ratio [E], batch) -> (loss [E], edges whose gradient is cut off, bool [E])."""


def truncated(log_ratio: Tensor, advantage: Tensor, low: float, high: float, log_prob: Tensor | None = None) -> Tensor:
    """-sg(clip(rho, 1 - low, 1 + high)) A log p per edge -> [E]: the weight is clipped, no gradient ever is.

    log_prob [E]: only the value depends on it; None: the log-ratio, which has the same gradient.

    Source: CISPO, MiniMax-M1 (2506.13585); verl@b178a3c `compute_policy_loss_cispo`.
    """
    weight = log_ratio.detach().exp().clamp(1 - low, 1 + high)
    return -weight * advantage * (log_ratio if log_prob is None else log_prob)


def soft(log_ratio: Tensor, advantage: Tensor, up: float = 1.0, down: float = 1.05) -> Tensor:
    """-A (4 / tau) sigmoid(tau (rho - 1)) per edge -> [E], tau = up where A > 0, down elsewhere: the gradient fades instead of
    ending at a clip.

    Source: SAPO (2511.20347); verl@b178a3c `compute_policy_loss_sapo`.
    """
    tau = torch.where(advantage > 0, up, down).to(log_ratio)
    return -advantage * 4 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1))


def sequence(log_ratio: Tensor, pool: Tensor, counted: Tensor | None = None, most: float = 10.0) -> Tensor:
    """The log-ratio of a whole trajectory, the mean over its steps, given to each of its steps -> [E]. Each step's gradient is its
    own: log p - sg(log p) + sg(mean), as the ratio of a trajectory has it.

    pool [E]: which trajectory;  counted bool [E]: steps that count;  most: bound of the result.

    Source: GSPO (2507.18071) eq. 8 and its token form; verl@b178a3c `compute_policy_loss_gspo`.
    """
    mean = mean_of(log_ratio.detach(), pool, counted)
    return (log_ratio - log_ratio.detach() + mean).clamp(max=most)


def geometric(log_ratio: Tensor, advantage: Tensor, pool: Tensor, clip: float, counted: Tensor | None = None) -> Tensor:
    """-A exp(mean over a trajectory of the clipped log-ratio) -> [E], the same for each of its steps; log-ratios are clipped at
    +-clip on the side that A would push them further.

    Source: GMPO (2507.20673); verl@b178a3c `compute_policy_loss_geo_mean`.
    """
    sign = advantage.sign()
    bounded = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-clip, clip))
    return -mean_of(advantage, pool, counted) * mean_of(bounded, pool, counted).exp()


def dynamic_range(probability: Tensor, low: float = 0.2, high: float = 0.28, most: float = 10.0) -> tuple[Tensor, Tensor]:
    """DCPO's bounds of rho for a token of old probability q: 1/2 + sqrt(max(1 - 4 low / q, 0)) / 2 and
    1/2 + sqrt(1 + 4 high / q) / 2, the latter at most max(most, 10).

    Raises: ValueError for a "probability" above 1. The bounds keep q rho a probability; a step of a flow has a density, which may
    be any positive number and has no such bound, so they mean nothing there: use clip().
    Source: DCPO (2509.02333); DCPO@01787b0 `compute_policy_loss_dcpo`.
    """
    if (probability > 1).any() or (probability < 0).any():
        raise ValueError(
            f"DCPO's clip is made of the old probability of a token, in [0, 1]; got {float(probability.max()):g}. A step of a flow "
            "has a density, for which its bounds have no meaning; use objectives.clip with a fixed range"
        )
    lower = 0.5 + (1 - 4 * low / probability).clamp(min=0).sqrt() / 2
    return lower, (0.5 + (1 + 4 * high / probability).sqrt() / 2).clamp(max=max(most, 10.0))


@dataclass(frozen=True)
class Surrogate(OnRecord):
    """mean of each(log rho, batch) + beta KL to the "reference".

    separable: each edge's loss is its own; otherwise it is taken over the whole optimizer step.
    single: every recorded edge must lead to one image.  clips: see `types.Objective`.
    """

    each: Each
    name: str = "surrogate"
    separable: bool = True
    single: bool = False
    beta: float = 0.0
    scale: Scale | None = None
    kl: KL = "exact"
    clips: bool = True
    learnable = True

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: log-ratio to the recorded step, KL to the reference (0 without beta)."""
        return measured(batch, u, self.beta, self.kl)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, kl = m.unbind(1)
        each, cut = self.each(ratio, batch)
        return penalised(batch, (batch.weight * each).sum(), ratio, kl, cut, self.beta)


def cispo(low: float = 10.0, high: float = 1e-4, beta: float = 0.0, scale: Scale | None = None) -> Surrogate:
    """See `truncated`. low, high: the range of the weight; low above 1: no lower end."""

    def each(ratio: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return truncated(ratio, batch.advantage, low, high), torch.zeros_like(ratio, dtype=torch.bool)

    return Surrogate(each, "cispo", beta=beta, scale=scale)


def sapo(up: float = 1.0, down: float = 1.05, beta: float = 0.0, scale: Scale | None = None) -> Surrogate:
    """See `soft`. On mean log-ratios, which stay near 0, it is nearly -A rho: taus of 1e3 and more make it bend."""
    if min(up, down) <= 0:
        raise ValueError(f"temperatures {up:g} and {down:g} of sapo must be positive")

    def each(ratio: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return soft(ratio, batch.advantage, up, down), torch.zeros_like(ratio, dtype=torch.bool)

    return Surrogate(each, "sapo", beta=beta, scale=scale, clips=False)


def gspo(low: float = 3e-4, high: float = 4e-4, beta: float = 0.0, scale: Scale | None = None) -> Surrogate:
    """Clip on the ratio of whole trajectories; see `sequence`. For plans whose recorded steps lead to one image each.

    Raises: ValueError for a range below 3 x 2^-23; while training, for a plan whose images share a recorded step.
    """
    resolvable(low, high)
    return Surrogate(partial(_gspo, low=low, high=high), "gspo", separable=False, single=True, beta=beta, scale=scale)


def _gspo(ratio: Tensor, batch: Batch, low: float, high: float) -> tuple[Tensor, Tensor]:
    whole = sequence(ratio, trajectories(batch), batch.weight > 0)
    return clipped(whole, batch.advantage, low, high), beyond(whole, low, high)


def gmpo(clip: float = 4e-4, beta: float = 0.0, scale: Scale | None = None) -> Surrogate:
    """Geometric mean of the clipped ratios of a trajectory; see `geometric`. For plans as `gspo`'s.

    Raises: ValueError for a range below 3 x 2^-23; while training, for a plan whose images share a recorded step.
    """
    resolvable(clip, clip)
    return Surrogate(partial(_gmpo, clip=clip), "gmpo", separable=False, single=True, beta=beta, scale=scale)


def _gmpo(ratio: Tensor, batch: Batch, clip: float) -> tuple[Tensor, Tensor]:
    each = geometric(ratio, batch.advantage, trajectories(batch), clip, batch.weight > 0)
    return each, (batch.advantage.sign() * ratio).detach() > clip
