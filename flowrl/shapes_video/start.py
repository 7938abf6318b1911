"""Where the autoencoder starts: as the plain means over squares and half-latents that its latents stand for.

From diffusers' own initialisation the decoder draws grey blots for hundreds of steps, since the random branches of its blocks are
louder than the colours that enter them. Here every block begins as the identity (its last layer is zero), and the path around the
blocks averages on the way in and repeats on the way out. What is left to learn is shape, and the fourth quantity, the range.

Channels 0 to 2 are the colours less WHITE, 3 to 5 their negatives, 6 a constant; 8 to 13 the colours of a latent's second half.
x = silu(x) - silu(-x), so that the last activation loses nothing, and the constant outweighs the colours, so that the last norm is
nearly a factor.
"""

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

WHITE = 0.88  # about the background, in [-1, 1]
LOUD = 6.0  # the constant
REST = 0.2  # what is kept of the random weights
CONSTANT, SECOND = 6, 8
LOG_VARIANCE = -6.0  # of the posterior

Taps = Mapping[tuple[int, ...], float]
Pair = tuple[int, int, float]  # output channel, input channel, factor


@torch.no_grad()
def _route(layer: nn.Module, taps: Taps, pairs: Iterable[Pair]) -> Tensor:
    """Makes a convolution send these inputs to these outputs, at each tap with its own factor; returns its bias, zero."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    weight.mul_(REST)
    bias.zero_()
    pairs = list(pairs)
    weight[sorted({out for out, _, _ in pairs})] = 0.0
    for at, share in taps.items():
        for out, into, factor in pairs:
            weight[(out, into, *at)] += share * factor
    return bias


def _copies(n: int, to: int = 0, of: int = 0) -> list[Pair]:
    return [(to + i, of + i, 1.0) for i in range(n)]


def _signed(to: int, of: int) -> list[Pair]:
    """Three colours and their negatives."""
    return [(to + k + 3 * sign, of + k, 1.0 - 2 * sign) for k in range(3) for sign in range(2)]


def _read(to: int, of: int, channels: int) -> list[Pair]:
    """Three colours from themselves and their negatives behind the norm of `channels` and the activation."""
    scale = LOUD / sqrt(channels)
    return [(to + k, of + k + 3 * sign, scale * (1.0 - 2 * sign)) for k in range(3) for sign in range(2)]


NOW: Taps = {(2, 1, 1): 1.0}  # of a causal 3 x 3 x 3 convolution: this frame, this pixel
FLAT: Taps = {(1, 1): 1.0}
LATER: Taps = {(2, 0, 0): 1.0}
SQUARE: Taps = {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.25, (1, 1): 0.25}
POINT: Taps = {(0, 0, 0): 1.0}


@torch.no_grad()
def linear_start(model: AutoencoderKLWan) -> None:
    """Sets the weights of an `networks.autoencoder`; the rest of them stays random, and small."""
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".attentions.0.proj")):
            for parameter in module.parameters():
                parameter.zero_()
    _route(model.post_quant_conv, POINT, _copies(8))
    _route(model.quant_conv, POINT, _copies(16))[8:] = LOG_VARIANCE
    _encoder(model.encoder)
    _decoder(model.decoder)


def _encoder(net: nn.Module) -> None:
    get = net.get_submodule
    bias = _route(get("conv_in"), NOW, _signed(0, 0))
    with torch.no_grad():
        bias[:7] = torch.tensor([-WHITE] * 3 + [WHITE] * 3 + [LOUD])
    _route(get("down_blocks.1.resample.1"), SQUARE, _copies(7))
    _route(get("down_blocks.1.time_conv"), {(1, 0, 0): 0.5, (2, 0, 0): 0.5}, _copies(7))
    _route(get("down_blocks.2.conv_shortcut"), POINT, _copies(7) + _copies(6, SECOND))
    _route(get("down_blocks.3.resample.1"), SQUARE, _copies(7) + _copies(6, SECOND, SECOND))
    halves = get("down_blocks.3.time_conv")
    _route(halves, {(1, 0, 0): 1.0}, _copies(7))
    weight = halves.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight[SECOND : SECOND + 6] = 0.0
        for out, into, factor in _copies(6, SECOND, SECOND):
            weight[out, into, 2, 0, 0] = factor
    _route(get("down_blocks.4.conv_shortcut"), POINT, _copies(7) + _copies(6, SECOND, SECOND))
    _route(get("conv_out"), NOW, _read(0, 0, 32) + _read(4, SECOND, 32))


def _decoder(net: nn.Module) -> None:
    get = net.get_submodule
    bias = _route(get("conv_in"), NOW, _signed(0, 0) + _signed(SECOND, 4) + [(7, 3, 1.0), (15, 7, 1.0)])
    with torch.no_grad():
        bias[CONSTANT] = LOUD
    first, second = _copies(8), [*_copies(6, 32, SECOND), (32 + CONSTANT, CONSTANT, 1.0), (32 + 7, 15, 1.0)]
    _route(get("up_blocks.0.upsamplers.0.time_conv"), LATER, first + second)
    _route(get("up_blocks.0.upsamplers.0.resample.1"), FLAT, _copies(8))
    _route(get("up_blocks.1.upsamplers.0.time_conv"), LATER, _copies(8) + _copies(8, 16))
    _route(get("up_blocks.1.upsamplers.0.resample.1"), FLAT, _copies(8))
    bias = _route(get("conv_out"), NOW, _read(0, 0, 8))
    with torch.no_grad():
        bias[:] = WHITE
