"""LoRA adapters on a diffusers network, through its own PEFT integration: no wrapper, no merge, so files load everywhere."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowrl.recipe import LoraSpec
from flowrl.said import first_line

MARK = ".lora_A."
ADAPTER = "default"
"""Name of the adapter that is trained."""
NETWORK = "flowrl.network"
"""What flowrl's files for ComfyUI say in their metadata, and no other: the class of the network."""


def add_lora(network: nn.Module, spec: LoraSpec, targets: Sequence[str], seed: int) -> None:
    """Freeze `network` and give it a fresh adapter: W x + (alpha / r) B A x with B = 0, so it starts as the base.

    A is Gaussian with std 1 / r from `seed`; the global generators are left alone. Its weights are float32 whatever the base's
    dtype (peft casts the layer's input and output), because optimizer steps are below bfloat16's resolution.

    Raises: ValueError for a target that names no linear layer, or a network that takes no adapters.
    Source: the configuration of flow_grpo, `scripts/train_sd3.py` (r 32, alpha 64, init_lora_weights="gaussian").
    """
    from peft import LoraConfig

    if not hasattr(network, "add_adapter"):
        raise ValueError(
            f"diffusers puts no adapters into a {type(network).__name__}, so its pipeline could not load one; train the whole "
            "network (lora.rank 0)"
        )
    _check(network, targets)
    network.requires_grad_(False)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(targets), init_lora_weights="gaussian")
    before = active(network)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed CUDA, which fork_rng here does not restore
        network.add_adapter(config, ADAPTER)  # pyright: ignore[reportCallIssue]
    _beside(network, before)
    float32(network)


def continue_lora(pipe: Any, modules: Sequence[str], start: str) -> None:
    """Put the adapter of a file or folder into the networks, to be trained on; rank, alpha and targets are the file's.

    start: whatever the pipeline's own load_lora_weights takes (diffusers, kohya, ComfyUI names; a hub name).

    Raises: ValueError for a file that is not there, is no adapter, or is one of another model.
    """
    networks: dict[str, Any] = {name: getattr(pipe, name) for name in modules}
    before = {name: active(network) for name, network in networks.items()}
    for network in networks.values():
        network.requires_grad_(False)
    attach(pipe, modules, start, "lora.start", adapter_name=ADAPTER, low_cpu_mem_usage=True)
    for name, network in networks.items():
        _beside(network, before[name])
        float32(network)
        for inner, p in network.named_parameters():
            p.requires_grad_(f".{ADAPTER}." in inner)


def attach(pipe: Any, modules: Sequence[str], start: str, called: str, **more: Any) -> None:
    """pipe.load_lora_weights(start), and a second expert's adapter from where `export.save_lora` keeps it. called: in messages.

    Of a run's file for ComfyUI, whose names are not all diffusers', the one for diffusers beside it is taken.

    Raises: ValueError for a file that is not there, is no adapter, holds nothing for these networks, or layers that they lack.
    """
    start = _for_diffusers(start, called)
    if (Path(start) / "run.yaml").is_file():
        raise ValueError(f"{called} {start!r} is a run; give the adapter in it: {Path(start) / 'lora'}")
    networks: dict[str, Any] = {name: getattr(pipe, name) for name in modules}
    had = {name: set(getattr(network, "peft_config", {})) for name, network in networks.items()}
    second = Path(start) / modules[-1]
    with _unsaid_where_it_fails():
        try:
            _fits(pipe, networks, start, f"{called} {start!r}")
            pipe.load_lora_weights(start, **more)
            if len(modules) > 1 and second.is_dir():
                pipe.load_lora_weights(str(second), **more, **{f"load_into_{modules[-1]}": True})
        except OtherModel:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            why = f"{called} {start!r} could not be loaded into {type(pipe).__name__} ({first_line(error)})"
            # torch's word for weights of other shapes, PEFT's for modules that are not there
            if any(mark in str(error) for mark in ("size mismatch", "not found in the base model")):
                raise ValueError(f"{why}: it is an adapter of another model; give one of this model") from error
            raise ValueError(f"{why}; give a LoRA file of this model") from error
        if not any(set(getattr(network, "peft_config", {})) - had[name] for name, network in networks.items()):
            raise ValueError(
                f"{called} {start!r} holds nothing for the {' or '.join(modules)} of {type(pipe).__name__}: it is an adapter of "
                "another family; give one of this model"
            )


class OtherModel(ValueError):
    """An adapter with layers that a model lacks: diffusers would load the others without a word."""


def _fits(pipe: Any, networks: Mapping[str, nn.Module], start: str, called: str) -> None:
    """Raises: OtherModel. Nothing is loaded yet."""
    found = pipe.lora_state_dict(start)
    state = found[0] if isinstance(found, tuple) else found
    for name, network in networks.items():
        wanted = {key[len(name) + 1 : key.index(MARK)] for key in state if key.startswith(f"{name}.") and MARK in key}
        lost = sorted(wanted - {inner for inner, _ in network.named_modules()})
        if lost:
            raise OtherModel(
                f"{called} is an adapter of another model: {len(lost)} of its {len(wanted)} layers are not in the {name} of this "
                f"{type(pipe).__name__}, such as {lost[0]}; give one of this model"
            )


def _for_diffusers(start: str, called: str) -> str:
    """The folder with diffusers' file, of a file that flowrl wrote for ComfyUI.

    Raises: ValueError for a path that is not there.
    """
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from safetensors import SafetensorError, safe_open

    path = Path(start).expanduser()
    if not path.exists() and (path.suffix == ".safetensors" or path.is_absolute() or start.startswith((".", "~"))):
        raise ValueError(f"{called} {start!r}: there is no such file or folder; give a run's lora folder or a LoRA file")
    if not path.is_file() or not (path.parent / LORA_WEIGHT_NAME_SAFE).is_file():
        return start
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{called} {start!r} cannot be read as safetensors ({error}); copy the file again") from error
    return str(path.parent) if NETWORK in said else start


class _Kept(logging.Handler):
    """Log records, for later."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _unsaid_where_it_fails() -> Iterator[None]:
    """What libraries warn of and log is told afterwards, but not beside an error, which says it in a sentence."""
    library, kept = logging.getLogger("diffusers"), _Kept()
    handlers, passed_on = library.handlers, library.propagate
    library.handlers, library.propagate = [kept], False
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield
    finally:
        library.handlers, library.propagate = handlers, passed_on
    for record in kept.records:
        library.handle(record)
    for one in warned:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)


def active(network: nn.Module) -> list[str]:
    """Adapters that act already: those that a pipeline came with, which are a part of the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    return sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters} - {ADAPTER})


def _beside(network: nn.Module, before: Sequence[str]) -> None:
    """Adding an adapter silences the others: let them act again, frozen."""
    if not before:
        return
    acting: Any = network
    acting.set_adapters([*before, ADAPTER])
    for name, p in network.named_parameters():
        p.requires_grad_(f".{ADAPTER}." in name)


def float32(network: nn.Module) -> None:
    """Adapter weights to float32, as get_peft_model does; add_adapter and load_lora_adapter leave them in the base's."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(network, ADAPTER)


@contextmanager
def without_adapters(network: nn.Module, only: str | None = None) -> Iterator[None]:
    """The base, bitwise.  only: the one adapter that is off, while others the network carries stay on; None: all are off.

    Differs: diffusers' disable_adapters() also clears requires_grad and enabling sets it again; here only the switch of each
    layer moves, so hooks and sharding see no change.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        for layer in layers:
            others = [] if only is None else [name for name in layer.active_adapters if name != only]
            layer._disable_adapters = layer._disable_adapters or not others
            layer._active_adapter = others or layer._active_adapter
        yield
    finally:
        for layer, (off, names) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = off, names


@contextmanager
def strength(network: nn.Module, value: float) -> Iterator[None]:
    """Inside, the update counts `value` times: W x + value (alpha / r) B A x. At 0 it is the base and at 1 the adapter, bitwise.

    Raises: ValueError for a value that is not finite.
    """
    from peft.tuners.lora import LoraLayer

    if not math.isfinite(value):
        raise ValueError(f"an adapter of strength {value}; give a number, 1 for what was trained")
    if not value:  # 0 times an update would add a zero, of which bits can tell
        with without_adapters(network, ADAPTER):
            yield
        return
    layers = [m for m in network.modules() if isinstance(m, LoraLayer) and ADAPTER in m.scaling]
    before = [layer.scaling[ADAPTER] for layer in layers]
    try:
        for layer, was in zip(layers, before, strict=True):
            layer.scaling[ADAPTER] = was * value
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.scaling[ADAPTER] = was


def _check(network: nn.Module, targets: Sequence[str]) -> None:
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and ".lora_" not in name]
    names = [name.removesuffix(".base_layer") for name in linear]  # a layer that carries an adapter already
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            short = sorted({re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in names})
            near = get_close_matches(target, short, n=5, cutoff=0.3) or short[:5]
            raise ValueError(
                f"lora.targets: {target!r} names no linear layer of {type(network).__name__}; nearest: {', '.join(near)}"
            )
