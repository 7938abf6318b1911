"""SVDD: at every noisy step several candidates are drawn, and the one that promises the most goes on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowrl.samplers import Law, Path, laws, paths
from flowrl.samplers.noise import Source

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
Value = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def svdd(
    predict: Predict,
    value: Value,
    sigmas: Tensor,
    start: Tensor,
    noise: Source,
    *,
    candidates: int,
    alpha: float = 0.0,
    law: Law | None = None,
    path: Path = paths.flow,
) -> Tensor:
    """Clean samples [P, *d] of P prompts, steered by `value` at every noisy step. One network call of P * candidates rows a step.

    x'_m = a x + b u + s z_m,  x0_hat_m = E[x0 | x'_m] as the network sees it,  one m is kept by `chances(value(x0_hat), alpha)`.
    predict(x [N, *d], sigma [N], slot [N]) -> u;  value(x0_hat [N, *d], slot [N]) -> [N], higher is better, NaN where there is
      none (never kept while another has one).
    sigmas [n + 1] falls, usually to 0;  start [P, *d]: noise at sigmas[0], its rows are slots 0 to P - 1;  noise: keyed by slot,
      step and candidate, so more candidates include the first ones, and 1 is plain sampling.
    alpha: temperature, 0 keeps the best.  law: default flow_sde(0.7); the last step is the ODE's, so that no noise stays.

    Raises: ValueError for candidates below 1, alpha below 0 or not finite, sigmas that do not fall, or no noisy step.
    Source: SVDD (2408.08252) with the posterior mean as value (PM); SVDD@5ce225a `controlled_sample_tweedie`.
    Differs: the paper draws with temperature alpha, its code keeps the best; here alpha says which.
    """
    law = laws.flow_sde(0.7) if law is None else law
    _falling(sigmas)
    steps = [_numbers(sigmas, i, law, path) for i in range(len(sigmas) - 2)] + [_numbers(sigmas, -2, laws.ode(), path)]
    _check(candidates, alpha, noisy=any(s for _, _, s in steps))
    slots = torch.arange(len(start), device=start.device)
    wide = slots.repeat_interleave(candidates)
    x, u = start, predict(start, _level(sigmas[0], slots), slots)
    for i, (a, b, s) in enumerate(steps[:-1]):
        mean = a * x + b * u
        if s == 0:
            x, u = mean, predict(mean, _level(sigmas[i + 1], slots), slots)
            continue
        z = [noise.normal(x.shape[1:], p, i, f"svdd {m}") for p in range(len(x)) for m in range(candidates)]
        tried = mean.repeat_interleave(candidates, 0) + s * torch.stack(z).to(x)
        answers = predict(tried, _level(sigmas[i + 1], wide), wide)
        clean = path.x0(tried, answers, sigmas[i + 1].to(x))
        chance = chances(value(clean, wide).double().cpu().view(-1, candidates), alpha)
        draws = torch.tensor([noise.uniform(p, i, "svdd choice") for p in range(len(x))], dtype=torch.float64)
        kept = slots * candidates + _drawn(chance, draws).to(slots)
        x, u = tried[kept], answers[kept]
    a, b, _ = steps[-1]
    return a * x + b * u


def chances(values: Tensor, alpha: float) -> Tensor:
    """exp(v / alpha), normalised over the last axis: float64 [..., M]. alpha 0: all on the largest, of equals on the first.

    A missing value (NaN) has chance 0; where all are missing the first candidate is kept, as without a value.
    """
    missing = values.isnan()
    known = values.double().masked_fill(missing, -math.inf)
    known[..., 0] = known[..., 0].masked_fill(missing.all(-1), 0.0)
    top = known.argmax(-1, keepdim=True)
    if alpha == 0:
        return torch.zeros_like(known).scatter(-1, top, 1.0)
    # less the largest first: a small alpha overflows otherwise
    return ((known - known.gather(-1, top)) / alpha).softmax(-1)


def _drawn(chance: Tensor, draws: Tensor) -> Tensor:
    """Inverse of the cumulative chances [P, M] at draws [P] in [0, 1): candidates without chance are never drawn."""
    ends = chance.cumsum(-1)
    return (ends <= draws[:, None] * ends[:, -1:]).sum(-1)


def _numbers(sigmas: Tensor, i: int, law: Law, path: Path) -> tuple[float, float, float]:
    """(a, b, s) of the step that starts at sigmas[i], in float64."""
    grid = sigmas.double().cpu()
    c, s = law(grid[i], grid[i + 1], float(grid[1]), alpha=path.alpha)
    a, b, s = path.coefficients(grid[i], grid[i + 1], c, s)
    return float(a), float(b), float(s)


def _level(sigma: Tensor, slots: Tensor) -> Tensor:
    return torch.full((len(slots),), float(sigma), device=slots.device)


def _falling(sigmas: Tensor) -> None:
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas.diff() < 0).all():
        raise ValueError(f"sigmas {[round(s, 4) for s in sigmas.flatten().tolist()]} do not fall; give levels from 1 down to 0")


def _check(candidates: int, alpha: float, noisy: bool) -> None:
    if candidates < 1:
        raise ValueError(f"svdd with {candidates} candidates a step; give at least 1")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha, the temperature of the choice, is {alpha}; give 0 to keep the best, or a number above it")
    if candidates > 1 and not noisy:
        raise ValueError("no step before the last is noisy, so all candidates are equal; give more steps, or a law with noise")
