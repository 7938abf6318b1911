"""One sampler step and its Gaussian density: mean = a x + b u, std = s.

x, u, z: [N, *d] float32; a, b: [N] float32; s: [N], or [N, *d] for per-element noise. Everything is row-local: a row's result does
not depend on its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _rows(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like) if t.ndim == like.ndim > 1 else t.to(like).view(-1, *[1] * (like.ndim - 1))


def mean_each(x: Tensor) -> Tensor:
    """Mean of every row of [N, *d], each reduced on its own: the order of summation never depends on N."""
    return torch.stack([row.mean() for row in x]) if len(x) else x.new_zeros(0)


def step(x: Tensor, u: Tensor, a: Tensor, b: Tensor, s: Tensor, z: Tensor | None = None) -> Tensor:
    """x' = a x + b u + s z; without z the mean."""
    mean = _rows(a, x) * x + _rows(b, x) * u
    return mean if z is None else mean + _rows(s, x) * z


def log_density(x_next: Tensor, mean: Tensor, s: Tensor) -> Tensor:
    """Mean over latent dims of log N(x'; mean, s^2) -> [N]. s: [N], or [N, *d] for per-element noise."""
    s = _rows(s, mean)
    z = (x_next - mean) / s
    return mean_each(-0.5 * z * z - s.log() - 0.5 * math.log(2 * math.pi))


def log_ratio(u: Tensor, u_old: Tensor, x: Tensor, x_next: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """log p(x') - log p_old(x') = b <(u - u_old)(2 x' - mean - mean_old)> / 2 s^2 -> [N].

    Never a difference of two rounded log-densities: exactly 0 iff the bits of u are those of u_old.
    """
    mean, mean_old = step(x, u, a, b, s), step(x, u_old, a, b, s)
    product = (u - u_old) * ((x_next - mean) + (x_next - mean_old))
    return (b / (2 * s * s)).to(product) * mean_each(product)
