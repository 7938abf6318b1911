"""The optimizer a recipe asks for, and its moments as a checkpoint holds them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.recipe import OptimSpec

log = logging.getLogger("flowrl")
PACKED = ("codes", "scale", "qmap", "signed")
"""What a block-wise 8-bit moment of torchao consists of."""


def make(spec: OptimSpec, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with moments in float32, or in 8 bits with a scale a block of 256 values ("adamw8bit").

    8 bits: bitsandbytes on a CUDA device, torchao elsewhere. Both keep float32 moments for tensors of fewer than 4096 values, and
    both go on from their state to the bit (tests/test_optimizers.py, on a CPU).

    Raises: ValueError for 8 bits where the package is not installed.
    """
    if spec.name == "adamw":
        kind: Any = torch.optim.AdamW
    elif next((p.device.type for p in parameters), "cpu") == "cuda":
        _installed("bitsandbytes", "on a CUDA device")
        from bitsandbytes.optim import AdamW8bit as kind  # pyright: ignore[reportMissingImports]
    else:
        _installed("torchao", "without a CUDA device")
        log.warning("adamw8bit is compiled by torch at the first optimizer step, which takes minutes without a CUDA device")
        from torchao.optim import AdamW8bit as kind  # pyright: ignore[reportMissingImports]
    return kind(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group, in place where the optimizer keeps it as a tensor (torchao refuses another object)."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state_dict with plain tensors only, so that a checkpoint can be read where torchao is not installed."""
    told = optimizer.state_dict()
    return {**told, "state": {key: {k: _plain(v) for k, v in held.items()} for key, held in told["state"].items()}}


def load(optimizer: torch.optim.Optimizer, moments: Mapping[Any, Mapping[str, Any]]) -> None:
    """Give it the moments `state(...)["state"]`. Its settings stay: a resumed run may change them.

    Raises: ValueError for moments of another optimizer.
    """
    mine, theirs = _kind(optimizer), _stored(moments)
    if theirs is not None and mine != theirs:
        raise ValueError(
            f"the checkpoint holds moments of {theirs}, and the run is now given {mine}; resume with the optim.name and on "
            "the kind of device it was trained with"
        )
    held = {key: {k: _packed(v) for k, v in one.items()} for key, one in moments.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": held})


def _kind(optimizer: torch.optim.Optimizer) -> str:
    package = type(optimizer).__module__.partition(".")[0]
    return {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}.get(package, "adamw")


def _stored(moments: Mapping[Any, Mapping[str, Any]]) -> str | None:
    """Whose moments these are; None where there are none, or none in 8 bits that would tell torchao's from plain ones."""
    if any("__bnb_optimizer_quant_state__" in one or "state1" in one for one in moments.values()):
        return "bitsandbytes"
    if any(isinstance(v, Mapping) and set(v) == set(PACKED) for one in moments.values() for v in one.values()):
        return "torchao"
    large = any(
        isinstance(v, Tensor) and v.numel() >= 4096 and v.numel() % 256 == 0 for one in moments.values() for v in one.values()
    )
    return "adamw" if large else None


def _plain(value: Any) -> Any:
    if type(value).__name__ != "OptimState8bit":
        return value
    return {name: getattr(value, name) for name in PACKED}


def _packed(value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) != set(PACKED):
        return value
    from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

    return OptimState8bit(*(value[name] for name in PACKED))


def _installed(package: str, where: str) -> None:
    if find_spec(package) is None:
        raise ValueError(
            f"optim.name adamw8bit {where} needs the package {package}, which is not installed; pip install {package}, or use "
            "--set optim.name=adamw"
        )
