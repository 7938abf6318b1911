"""The head of a discriminator as a dict of tensors: Linear D -> H, GELU, Linear H -> 1, shared by class and patch tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


class Tokens(NamedTuple):
    """What a frozen network says of N images: class tokens [N, D] and k of their patches [N, k, D], float32."""

    whole: Tensor
    patches: Tensor

    def take(self, rows: Tensor) -> Tokens:
        return Tokens(self.whole[rows], self.patches[rows])

    def unit(self) -> Tokens:
        """With tokens of length 1."""
        return Tokens(functional.normalize(self.whole, dim=-1), functional.normalize(self.patches, dim=-1))


def fresh(width: int, hidden: int, draw: torch.Generator) -> Weights:
    """An untrained head, each Linear drawn as torch.nn.Linear draws it: uniform in +-1/sqrt(inputs)."""

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (torch.rand(shape, generator=draw) * 2 - 1) * inputs**-0.5

    return {
        "inner": uniform(hidden, width, inputs=width),
        "inner_bias": uniform(hidden, inputs=width),
        "outer": uniform(1, hidden, inputs=hidden),
        "outer_bias": uniform(1, inputs=hidden),
    }


def logits(weights: Mapping[str, Tensor], tokens: Tensor, spectral: bool = False) -> Tensor:
    """Tokens [..., D] -> [...]. spectral: each matrix divided by its largest singular value, so that no score changes faster than
    1.13 times its token, GELU's steepest slope."""
    inner, outer = weights["inner"], weights["outer"]
    if spectral:
        inner, outer = (w / torch.linalg.matrix_norm(w, 2) for w in (inner, outer))
    hidden = functional.gelu(functional.linear(tokens, inner, weights["inner_bias"]))
    return functional.linear(hidden, outer, weights["outer_bias"]).squeeze(-1)


class Told(NamedTuple):
    """A head's outputs. whole [N], of the class tokens;  patches [N, k]."""

    whole: Tensor
    patches: Tensor

    def score(self, share: float) -> Tensor:
        """[N]: (1 - share) whole + share mean(patches)."""
        return (1 - share) * self.whole + share * self.patches.mean(1)


def tell(weights: Mapping[str, Tensor], tokens: Tokens, spectral: bool = False) -> Told:
    return Told(logits(weights, tokens.whole, spectral), logits(weights, tokens.patches, spectral))


def r1(weights: Mapping[str, Tensor], tokens: Tokens, share: float, spectral: bool = False) -> Tensor:
    """Mean over images of |d score / d tokens|^2 / 2 -> scalar, differentiable in the weights.

    Source: R1 (1801.04406) eq. 9, of what the head sees instead of pixels.
    """
    seen = Tokens(*(part.detach().requires_grad_() for part in tokens))
    score = tell(weights, seen, spectral).score(share)
    found = torch.autograd.grad(score.sum(), list(seen), create_graph=True)
    return sum((part.flatten(1).square().sum(1).mean() for part in found), torch.zeros(())) / 2
