"""Densities of a step: means over latent dims, the field's convention, which its clip ranges presume."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowrl.kernels import log_density, mean_each


def _check(s: Tensor) -> None:
    if not isinstance(s, torch._subclasses.FakeTensor) and s.device.type == "cpu" and not (s > 0).all():
        raise ValueError(f"a density of a deterministic step: std is {float(s.min()):g}; train only stochastic steps of the plan")


def _per_row(s: Tensor, like: Tensor) -> Tensor:
    return s.to(like) if s.ndim == like.ndim else s.to(like).view(-1, *[1] * (like.ndim - 1))


def log_prob(x_next: Tensor, mean: Tensor, s: Tensor, form: Literal["full", "quadratic", "bare"] = "full") -> Tensor:
    """Mean over latent dims of the log-density of x' under N(mean, s^2) -> [N], float32 or better.

    full: -(x' - mean)^2 / 2 s^2 - ln s - ln(2 pi) / 2;  quadratic: its first term;  bare: -(x' - mean)^2.
    x_next, mean: [N, *d]; s: [N] or [N, *d], positive. x' is taken as data: no gradient flows into it.

    Raises: ValueError for s <= 0 (checked on the CPU) or an unknown form.
    Source: Flow-GRPO (2505.05470); "quadratic" and "bare" are what MixGRPO's Dance branch and Flow-CPS compute.
    """
    x_next, mean = (
        x_next.detach().to(torch.promote_types(x_next.dtype, torch.float32)),
        mean.to(torch.promote_types(mean.dtype, torch.float32)),
    )
    if form == "bare":
        return mean_each(-((x_next - mean) ** 2))
    _check(s)
    if form == "quadratic":
        return mean_each(-((x_next - mean) ** 2) / (2 * _per_row(s, mean) ** 2))
    if form == "full":
        return log_density(x_next, mean, s)
    raise ValueError(f'form {form!r} of log_prob is unknown; use "full", "quadratic" or "bare"')


def kl(mean: Tensor, mean_ref: Tensor, s: Tensor, s_ref: Tensor | None = None) -> Tensor:
    """KL(N(mean, s^2) || N(mean_ref, s_ref^2)), mean over latent dims -> [N]. With one std: <(mean - mean_ref)^2> / 2 s^2.

    Differs: Flow-GRPO divides by 2 g^2 where g lacks sqrt(sigma - sigma'); pass that g as s to get its number.
    """
    _check(s)
    if s_ref is not None:
        _check(s_ref)
    if s_ref is None:
        return mean_each((mean - mean_ref) ** 2 / (2 * _per_row(s, mean) ** 2))
    own, ref = _per_row(s, mean), _per_row(s_ref, mean)
    return mean_each((ref / own).log() + (own**2 + (mean - mean_ref) ** 2) / (2 * ref**2) - 0.5 + 0 * mean)
