"""Two predictions, with the text and without it, as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]
"""combine(positive, negative [N, *d], scale, x [N, *d], sigma [N]) -> u [N, *d], all float32 and in the path's parametrisation."""


def linear(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
    """negative + scale (positive - negative): scale 1 is no guidance.

    Source: classifier-free guidance (2207.12598) eq. 6, with w = scale - 1.
    """
    return negative + scale * (positive - negative)


def zero_based(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
    """positive + scale (positive - negative): scale 0 is no guidance.

    Source: the original form of 2207.12598; Z-Image and Krea 2 in diffusers 0.42.1.
    """
    return positive + scale * (positive - negative)


def token_norm(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
    """`linear`, each token [.., C] scaled back to the norm of the positive one.

    Source: diffusers 0.42.1 `QwenImagePipeline`.
    """
    both = linear(positive, negative, scale, x, sigma)
    return both * (positive.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))


def rescaled(factor: float, base: Combine = linear) -> Combine:
    """`base`, moved by `factor` towards the standard deviation of the positive prediction, per row.

    Source: 2305.08891 section 3.4; diffusers 0.42.1 `rescale_noise_cfg`.
    """

    def combine(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
        both = base(positive, negative, scale, x, sigma)
        axes = list(range(1, both.ndim))
        matched = both * (positive.std(dim=axes, keepdim=True) / both.std(dim=axes, keepdim=True))
        return factor * matched + (1 - factor) * both

    return combine if factor else base


def capped(most: float, base: Combine = zero_based) -> Combine:
    """`base`, whose norm over a row is at most `most` times that of the positive prediction.

    Source: diffusers 0.42.1 `ZImagePipeline`, cfg_normalization.
    """

    def combine(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
        both = base(positive, negative, scale, x, sigma)
        axes = list(range(1, both.ndim))
        limit = most * torch.linalg.vector_norm(positive, dim=axes, keepdim=True)
        norm = torch.linalg.vector_norm(both, dim=axes, keepdim=True)
        return torch.where(norm > limit, both * (limit / norm), both)

    return combine if most else base


def in_x0(base: Combine = linear, rescale: float = 0.0) -> Combine:
    """`base` of the two clean predictions x - sigma u, and back to u (flow path). Without rescale it equals `base` of u.

    Source: LTX-2 in diffusers 0.42.1, which rescales there.
    """
    inner = rescaled(rescale, base)

    def combine(positive: Tensor, negative: Tensor, scale: float, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
        return (x - inner(x - level * positive, x - level * negative, scale, x, sigma)) / level

    return combine


@dataclass(frozen=True)
class Guider:
    """joined: one network call on [negative; positive], else two calls.  above: a scale at most this large is no guidance."""

    combine: Combine = linear
    joined: bool = False
    above: float = 1.0
