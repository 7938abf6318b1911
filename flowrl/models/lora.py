"""LoRA adapters on a diffusers network, through its own PEFT integration: no wrapper, no merge, so files load everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import nn

from flowrl.recipe import LoraSpec

ADAPTER = "default"
"""Name of the adapter that is trained."""


def add_lora(network: nn.Module, spec: LoraSpec, targets: Sequence[str], seed: int) -> None:
    """Freeze `network` and give it a fresh adapter: W x + (alpha / r) B A x with B = 0, so it starts as the base.

    A is Gaussian with std 1 / r from `seed`; the global generators are left alone. Its weights are float32 whatever the base's
    dtype (peft casts the layer's input and output), because optimizer steps are below bfloat16's resolution.

    Raises: ValueError for a target that names no linear layer.
    Source: the configuration of flow_grpo, `scripts/train_sd3.py` (r 32, alpha 64, init_lora_weights="gaussian").
    """
    from peft import LoraConfig

    _check(network, targets)
    network.requires_grad_(False)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(targets), init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed CUDA, which fork_rng here does not restore
        network.add_adapter(config, ADAPTER)  # pyright: ignore[reportCallIssue]
    float32(network)


def float32(network: nn.Module) -> None:
    """Adapter weights to float32, as get_peft_model does; add_adapter and load_lora_adapter leave them in the base's."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(network, ADAPTER)


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """The base alone, bitwise.

    Differs: diffusers' disable_adapters() also clears requires_grad and enabling sets it again; here only the switch of each
    layer moves, so hooks and sharding see no change.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


@contextmanager
def strength(network: nn.Module, value: float) -> Iterator[None]:
    """Inside, the update counts `value` times: W x + value (alpha / r) B A x. At 0 it is the base and at 1 the adapter, bitwise.

    Raises: ValueError for a value that is not finite.
    """
    from peft.tuners.lora import LoraLayer

    if not math.isfinite(value):
        raise ValueError(f"an adapter of strength {value}; give a number, 1 for what was trained")
    if not value:  # 0 times an update would add a zero, of which bits can tell
        with without_adapters(network):
            yield
        return
    layers = [m for m in network.modules() if isinstance(m, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: scale * value for name, scale in layer.scaling.items()})
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.scaling.update(was)


def _check(network: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            short = sorted({re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in names})
            near = get_close_matches(target, short, n=5, cutoff=0.3) or short[:5]
            raise ValueError(
                f"lora.targets: {target!r} names no linear layer of {type(network).__name__}; nearest: {', '.join(near)}"
            )
