"""Estimators with a memory, ported from language-model RL (see `ported`): the state is passed in and returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State

from .group import enough, masked, moments, ratio, zscore


def dcpo(r: Tensor, prompts: Sequence[str], state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
    """r standardised by its group and by all groups of its prompt so far, mixed, r [P, L] -> float32 [P, L] and the next state
    {prompt: [draws, mean, std]}.

    At the i-th draw, with n = i - 1 and (M, S) of the draws before:  M' = (n M + m) / i,
    S'^2 = (n S^2 + s^2 + (n / i) (m - M)^2) / i.  New: (r - m) / s, total: (r - M') / S' (0 where the std is 0); of
    n/i new + 1/i total and 1/i new + n/i total the one nearer 0. Unbiased std. A group with fewer than two valid rewards gets 0
    and is forgotten.

    Raises: ValueError for groups of one.
    Source: DCPO (2509.02333), DCPO@01787b0 `compute_dcpo_outcome_advantage`.
    """
    enough(r.shape[1], 2, "an unbiased std")
    r, valid = masked(r, valid)
    mean, std = moments(r, valid, (1,), 1)
    seen = {k: list(v) for k, v in state.items()}
    a = torch.zeros_like(r)
    for i, text in enumerate(prompts):
        if int(valid[i].sum()) < 2:
            continue
        before, m, s = seen.get(text, [0, 0.0, 0.0]), float(mean[i]), float(std[i])
        n, draw = before[0], before[0] + 1
        total = (n * before[1] + m) / draw
        spread = ((n * before[2] ** 2 + s**2 + n / draw * (m - before[1]) ** 2) / draw) ** 0.5
        seen[text] = [draw, total, spread]
        new, old = ratio(r[i] - m, std[i]), ratio(r[i] - total, torch.tensor(spread, dtype=torch.float64))
        late, early = (n * new + old) / draw, (new + n * old) / draw
        a[i] = torch.where(valid[i], torch.where(late.abs() < early.abs(), late, early), 0)
    return a.float(), seen


def spo_start(scores: Tensor, least: float = 0.875) -> list[float]:
    """[alpha, beta] of a prompt's tracker from rewards in [0, 1] that were drawn before training, [n].

    N = 1 / (1 - least) observations in all: alpha = N (sum + 1/2) / (n + 1), beta = N (n - sum + 1/2) / (n + 1).

    Source: SPO (2509.13232), verl-recipe@48ea0a7 spo_ray_trainer.py.
    """
    n, total, weight = len(scores), float(scores.double().sum()), 1 / (1 - least)
    return [weight * (total + 0.5) / (n + 1), weight * (n - total + 0.5) / (n + 1)]


def spo(
    r: Tensor,
    prompts: Sequence[str],
    state: State,
    change: Tensor | None = None,
    half: float = 0.06,
    keep: tuple[float, float] = (0.875, 0.96),
    eps: float = 1e-8,
) -> tuple[Tensor, State]:
    """r less the success rate its prompt's tracker expected, z-scored over the batch (unbiased), r [P, L] in [0, 1] -> float32
    [P, L] and the next state {prompt: [alpha, beta]}. For single samples (L = 1); more of a prompt add to one update.

    expected = alpha / (alpha + beta) before the update; alpha <- k alpha + r, beta <- k beta + 1 - r, k = 2^(-change / half) within
    `keep`; change [P]: mean |change of log-prob| of the prompt's last sample since (None: 0). A new prompt expects 1/2
    with the weight of 1 / (1 - keep[0]) samples (`spo_start` for one with earlier rewards). NaN is left out and gets 0.

    Raises: ValueError for a reward outside [0, 1] or a batch of one.
    Source: SPO (2509.13232), verl-recipe@48ea0a7 spo_ray_trainer.py.
    """
    enough(r.numel(), 2, "a z-score over the batch")
    r, valid = masked(r, None)
    if bool(((r < 0) | (r > 1)).any()):
        raise ValueError(f"SPO tracks success rates: rewards must lie in [0, 1], got {r.min():g} to {r.max():g}; use one that does")
    seen = {k: list(v) for k, v in state.items()}
    fresh = [0.5 / (1 - keep[0])] * 2
    at = [seen.get(text, fresh) for text in prompts]
    expected = torch.tensor([alpha / (alpha + beta) for alpha, beta in at], dtype=torch.float64)[:, None]
    moved = torch.zeros(len(r)) if change is None else change
    factor = (2 ** (-moved.double() / half)).clamp(*keep).tolist()
    for i, text in enumerate(prompts):
        good, count = float(r[i].sum()), int(valid[i].sum())
        alpha, beta = seen.get(text, fresh)
        if count:
            seen[text] = [factor[i] * alpha + good, factor[i] * beta + count - good]
    a = torch.where(valid, r - expected, 0)
    return zscore(a.view(1, -1), valid.view(1, -1), 1, eps).view_as(r), seen


def spo_weights(prompts: Sequence[str], state: State, explore: float = 0.05) -> Tensor:
    """How often to draw each prompt: sqrt(p (1 - p)) + explore, p the expected success rate (1/2 where unknown). [P] float64.

    Source: SPO (2509.13232), verl-recipe@48ea0a7 spo_ray_trainer.py.
    """
    p = torch.tensor([a / (a + b) for a, b in (state.get(text, [1.0, 1.0]) for text in prompts)], dtype=torch.float64)
    return (p * (1 - p)).sqrt() + explore


@dataclass(frozen=True)
class Risk:
    """A measure of a score x between two quantiles: RVaR = ((x - q_low)+ - (x - q_high)+) / (high - low), less its largest value
    where `baseline`; with mix w, (w CVaR + RVaR) / (w + 1), CVaR = -(q_low - x)+ / low.
    """

    low: float = 0.2
    high: float = 0.8
    mix: float | None = None
    baseline: bool = True

    def __call__(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        inner = (x - down).clamp(min=0) - (x - up).clamp(min=0) + (down - up if self.baseline else 0)
        value = inner / (self.high - self.low + 1e-6)
        if self.mix is None:
            return value
        return (self.mix * -(down - x).clamp(min=0) / (self.low + 1e-6) + value) / (self.mix + 1)


def riskpo(
    r: Tensor,
    bundle: Tensor,
    quantiles: tuple[float, float] | None = None,
    risk: Risk = Risk(),
    share: Literal["uniform", "deviation"] = "uniform",
    eps: float = 1e-6,
) -> Tensor:
    """The risk of what a bundle of prompts earns together, r [P, L] -> float32 [P, L]. bundle [P]: prompts with equal numbers.

    x [bundle, L] sums the l-th samples of the bundle's prompts; A = risk(x) / (std of the bundle's x, unbiased, + eps). quantiles
    of x at risk.low and risk.high (None: the bundle's own).  share "uniform": each of the bundle's samples gets A;  "deviation": A
    is shared out in proportion to r - mean of the prompt, evenly where these cancel. One sample that is NaN drops its x.

    Raises: ValueError for groups of one, or an unknown share.
    Source: RiskPO (2510.00911), RiskPO@65ec40c `compute_grpo_bundle_rvar_outcome_advantage_quantile_tracking`.
    """
    enough(r.shape[1], 2, "an unbiased std")
    if share not in ("uniform", "deviation"):
        raise ValueError(f'a share {share!r} of a bundle\'s advantage is unknown; use "uniform" or "deviation"')
    x = earned(r, bundle)
    names, at = bundle.unique(return_inverse=True)
    known = torch.isfinite(x)
    levels = torch.tensor([risk.low, risk.high] if quantiles is None else quantiles, dtype=torch.float64)
    down, up = torch.where(known, x, torch.nan).nanquantile(levels, 1, keepdim=True) if quantiles is None else levels
    value = torch.where(known, ratio(risk(x, down, up), moments(x.nan_to_num(0), known, (1,), 1)[1] + eps), 0)
    a = value[at]
    if share == "deviation":
        values, valid = masked(r, None)
        own = torch.where(valid, values - moments(values, valid, (1,), 0)[0], 0)
        total = torch.zeros_like(x).index_add_(0, at, own)[at]
        size = torch.bincount(at, minlength=len(names))[at].double()[:, None]
        # deviations that cancel say nothing about who earned it
        even = total.abs() < 1e-8
        a = a * torch.where(even, 1 / size, own / torch.where(even, 1, total))
    return torch.where(known[at], a, 0).float()


def earned(r: Tensor, bundle: Tensor) -> Tensor:
    """Sums of the l-th samples of each bundle's prompts, r [P, L] -> [bundles, L] float64, bundles by rising number."""
    names, at = bundle.unique(return_inverse=True)
    return torch.zeros(len(names), r.shape[1], dtype=torch.float64).index_add_(0, at, r.double())


def followed(x: Tensor, state: State, rate: float = 0.1, levels: int = 19) -> State:
    """The next state {"quantiles": [...]}: estimates of the quantiles of x at 1 / (levels + 1), 2 / (levels + 1), ...; at first the
    batch's own, then moved by rate (level - share of x below the estimate).

    Source: RiskPO@65ec40c, stochastic gradient on the quantile loss (rate 0.1, 19 levels).
    """
    at = [(i + 1) / (levels + 1) for i in range(levels)]
    known = x[torch.isfinite(x)]
    if not len(known):
        return dict(state)
    if "quantiles" not in state:
        return {"quantiles": torch.quantile(known, torch.tensor(at, dtype=torch.float64)).tolist()}
    moved = [q + rate * (level - float((known < q).double().mean())) for q, level in zip(state["quantiles"], at, strict=True)]
    return {"quantiles": moved}
