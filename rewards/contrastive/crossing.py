"""Image tokens that attend to text tokens: multi-query attention with gated feed-forwards beside it, as MPS has it.

Names and shapes of the parameters are upstream's, so that its weights fit key for key.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

GROWTH = 4
"""Width of a feed-forward, in widths of the features."""


class Norm(nn.Module):
    """LayerNorm whose bias is not learnt."""

    bias: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.register_buffer("bias", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Gate(nn.Module):
    """[value, gate] -> silu(gate) * value."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class Rotary(nn.Module):
    """Angles of positions, [L, width]; the two halves of a vector turn together."""

    inv_freq: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, width, 2).float() / width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., L, width] turned by its positions."""
        angle = torch.arange(x.shape[-2], device=x.device, dtype=self.inv_freq.dtype)[:, None] * self.inv_freq
        angle = torch.cat([angle, angle], -1)
        low, high = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-high, low], -1) * angle.sin()


class Words(nn.Module):
    """x attends to context [B, L, D] where kept [B, L], all heads by one key and value; beside it a feed-forward of x."""

    def __init__(self, features: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(features)
        self.to_q = nn.Linear(features, heads * width, bias=False)
        self.to_kv = nn.Linear(features, 2 * width, bias=False)
        self.to_out = nn.Linear(heads * width, features, bias=False)
        inner = GROWTH * features
        self.ff = nn.Sequential(nn.Linear(features, 2 * inner, bias=False), Gate(), nn.Linear(inner, features, bias=False))

    def forward(self, x: Tensor, context: Tensor, kept: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(_attend(_split(self.to_q(x), self.heads), key, value, kept)) + self.ff(x)


class Self(nn.Module):
    """x attends to itself, all heads by one key and value, turned by position; beside it a feed-forward of x."""

    def __init__(self, features: int, heads: int, width: int) -> None:
        super().__init__()
        inner = GROWTH * features
        self.heads, self.parts = heads, (heads * width, width, width, 2 * inner)
        self.norm = Norm(features)
        self.rotary_emb = Rotary(width)
        self.fused_attn_ff_proj = nn.Linear(features, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * width, features, bias=False)
        self.ff_out = nn.Sequential(Gate(), nn.Linear(inner, features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, wide = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        turned = self.rotary_emb(_split(query, self.heads))
        return self.attn_out(_attend(turned, self.rotary_emb(key), value)) + self.ff_out(wide)


class Beside(nn.Module):
    """What a block adds to its input."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return x + self.fn(x, *more)


class Crossing(nn.Module):
    """tokens [B, I, D], context [B, L, D], kept bool [B, L] -> tokens [B, I, D]."""

    def __init__(self, features: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Beside(Words(features, heads, width)), Beside(Self(features, heads, width))]) for _ in range(layers)
        )

    def forward(self, tokens: Tensor, context: Tensor, kept: Tensor) -> Tensor:
        for layer in self.layers:
            words, own = cast(nn.ModuleList, layer)
            tokens = own(words(tokens, context, kept))
        return tokens


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * width] -> [B, heads, L, width]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None = None) -> Tensor:
    """query [B, heads, I, width], key and value [B, L, width] -> [B, I, heads * width]."""
    where = None if kept is None else kept[:, None, None, :]
    key, value = (x[:, None].expand(-1, query.shape[1], -1, -1) for x in (key, value))
    found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=where)
    return found.transpose(1, 2).flatten(2)
