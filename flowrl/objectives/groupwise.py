"""Losses over a whole group of one prompt: regression of the advantage (Reg-GRPO) and good against bad (DisCO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import log_density, step
from flowrl.types import Batch, Loss

from .pools import mean_of, rivals, trajectories
from .ratio import OnRecord, edge_kl, edge_ratio, estimated_kl, measured, penalised


def standardised(values: Tensor, pool: Tensor, counted: Tensor, eps: float = 0.0) -> Tensor:
    """(value - mean) / (population std + eps) over the counted edges of each pool, with gradient -> [E]; 0 where a pool's values
    are all equal, and there the gradient is that of (value - mean) / (1 + eps), so that training can leave the point.
    """
    centred = values - mean_of(values, pool, counted)
    variance = mean_of(centred**2, pool, counted)
    alike = variance <= 0
    return centred / torch.where(alike, 1.0, torch.where(alike, 1.0, variance).sqrt()).add(eps)


@dataclass(frozen=True)
class Reg(OnRecord):
    """mean (A - standardised log rho)^2 + beta KL, the log-ratio standardised among the rivals of a step. No clip.

    Source: Reg-GRPO, DeepVideo-R1 (2506.07464), from its text; no code was found.
    Differs: the paper leaves ddof and epsilon open: population std, none. Before the first update all ratios are equal and have no
    std; there the gradient is that of the centred log-ratio.
    """

    beta: float = 0.0
    eps: float = 0.0
    separable = False
    name = "reg"

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: log-ratio to the recorded step, KL to the reference (0 without beta)."""
        return measured(batch, u, self.beta)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, kl = m.unbind(1)
        miss = (batch.advantage - standardised(ratio, rivals(batch), batch.weight > 0, self.eps)) ** 2
        return penalised(batch, (batch.weight * miss).sum(), ratio, kl, torch.zeros_like(ratio, dtype=torch.bool), self.beta)


def reg(beta: float = 0.0, eps: float = 0.0) -> Reg:
    return Reg(beta, eps)


def contrast(score: Tensor, good: Tensor, group: Tensor, counted: Tensor, temperature: float | None = None) -> Tensor:
    """mean over prompts of (mean score of the good - that of the bad), scalar; score, good, group, counted [S], one a sample.

    temperature: of the bad, temperature log mean exp(score / temperature) instead of the mean: the likeliest weigh most. Prompts
    without both kinds add 0 and count.

    Source: DisCO (2505.12366), DisCO-b with the mean; DisCO@bd2b078 `compute_policy_loss_disco*`.
    Differs: with a temperature their value is a constant whose gradient is right; ours is the value itself.
    """
    total, prompts = score.new_zeros(()), group[counted].unique()
    for prompt in prompts:
        mine = counted & (group == prompt)
        up, down = score[mine & good], score[mine & ~good]
        if len(up) and len(down):
            if temperature is None:
                total = total + up.mean() - down.mean()
            else:
                log_mean = (down / temperature).logsumexp(0) - torch.tensor(float(len(down)), dtype=score.dtype).log()
                total = total + up.mean() - temperature * log_mean
    return total / max(1, len(prompts))


def hinge(kl: Tensor, limit: float, strength: float) -> Tensor:
    """sg(strength (kl - limit)+) kl: no force below the limit.

    Source: DisCO (2505.12366), squared-hinge constraint.
    """
    return (strength * (kl.detach() - limit)).clamp(min=0) * kl


@dataclass(frozen=True)
class Disco(OnRecord):
    """-contrast(score) + hinge(KL to the old policy): images with A > 0 against those with A < 0, by their scores.

    score "likelihood": mean over steps of log p;  "ratio": of rho.  temperature None: DisCO-b, with it DisCO (theirs 10 for
    likelihood, 1 for ratio).  limit, strength: of the constraint on k3 of old and new.

    Source: DisCO (2505.12366).  Differs: see `contrast`; log p is the field's mean over latent dims, not a sum over tokens.
    """

    score: str = "likelihood"
    temperature: float | None = None
    limit: float = 1e-4
    strength: float = 1e3
    beta: float = 0.0
    separable = False
    single = True
    name = "disco"

    def __post_init__(self) -> None:
        if self.score not in ("likelihood", "ratio"):
            raise ValueError(f'score {self.score!r} of disco is unknown; use "likelihood" or "ratio"')
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature:g} of disco must be positive; None takes the mean of the bad instead")

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 3]: log-ratio to the recorded step, log p, KL to the reference (0 without beta)."""
        assert batch.u_old is not None and batch.x_next is not None
        now = u["current"][batch.row]
        ratio = edge_ratio(batch, now, batch.u_old[batch.row])
        mean = step(batch.x[batch.row], now, batch.a, batch.b, batch.s)
        kl = edge_kl(batch, now, u["reference"][batch.row]) if self.beta else torch.zeros_like(ratio)
        return torch.stack([ratio, log_density(batch.x_next, mean, batch.s), kl], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio, likelihood, kl = m.unbind(1)
        assert batch.group is not None
        counted, pool = batch.weight > 0, trajectories(batch)
        value = mean_of(likelihood if self.score == "likelihood" else ratio.exp(), pool, counted)
        first = _firsts(pool, counted)
        policy = -contrast(
            value[first], batch.advantage[first] > 0, batch.group[first], (batch.advantage[first] != 0), self.temperature
        )
        moved = (estimated_kl(-ratio) * counted).sum() / counted.sum().clamp(min=1)
        whole = penalised(batch, policy, ratio, kl, torch.zeros_like(ratio, dtype=torch.bool), self.beta)
        return Loss(whole.value + hinge(moved, self.limit, self.strength), {**whole.metrics, "kl/old": moved.detach()})


def _firsts(pool: Tensor, counted: Tensor) -> Tensor:
    """An edge of every pool that has a counted one."""
    seen: dict[int, int] = {}
    for edge, which in enumerate(pool.tolist()):
        if bool(counted[edge]):
            seen.setdefault(which, edge)
    return torch.tensor(list(seen.values()), dtype=torch.long, device=pool.device)


def disco(
    score: str = "likelihood",
    temperature: float | None = 10.0,
    limit: float = 1e-4,
    strength: float = 1e3,
    beta: float = 0.0,
) -> Disco:
    return Disco(score, temperature, limit, strength, beta)
