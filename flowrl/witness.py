"""What the network did in a call, module by module, so that a replay that differs can be told where it began to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowrl.samplers import Plan

SWAPPED = "adapters were merged, switched off or replaced in between"

Mark = tuple[str, tuple[int, ...], str, str, bool]
Trace = list[Mark]
"""(module, shape, dtype, digest of the values, whether all are finite) in order of completion; the network's own inputs come
first."""


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)


def _mark(name: str, value: Tensor) -> Mark:
    bits = value.detach().contiguous().view(torch.uint8) if value.ndim else value.detach().reshape(1).view(torch.uint8)
    digest = hashlib.blake2b(bits.cpu().numpy().tobytes(), digest_size=8).hexdigest()
    return name, tuple(value.shape), str(value.dtype), digest, bool(value.detach().isfinite().all())


@contextmanager
def watched(network: nn.Module) -> Iterator[Trace]:
    """Record every module's outputs, and the network's inputs, while inside."""
    trace: Trace = []

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        named = {**{f"input {i}": a for i, a in enumerate(args)}, **{f"input {k}": v for k, v in kwargs.items()}}
        trace.extend(_mark(name, t) for name, value in named.items() for t in _tensors(value))

    def after(name: str):
        return lambda module, args, output: trace.extend(_mark(f"module {name}", t) for t in _tensors(output))

    handles = [network.register_forward_pre_hook(before, with_kwargs=True)]
    handles += [m.register_forward_hook(after(name or "network")) for name, m in network.named_modules()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


class Witness:
    """Watches the first recorded call of a rollout."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.network = network
        self.sigma = float(plan.sigma[plan.rows].max().float())
        self.trace: Trace | None = None

    @contextmanager
    def over(self, sigma: Tensor) -> Iterator[None]:
        if self.trace is not None or float(sigma[0]) != self.sigma:
            yield
            return
        with watched(self.network) as trace:
            yield
        self.trace = trace


def difference(rollout: Trace, replay: Trace) -> str:
    """A sentence that names the first place where two calls part."""
    here, there = ({mark[0] for mark in trace} for trace in (rollout, replay))
    for name, *_ in (*rollout, *replay):
        if name not in here & there:
            only = "rollout and not in the replay" if name in here else "replay and not in the rollout"
            return f"{name} ran in the {only}: {SWAPPED}"
    for old, new in zip(rollout, replay, strict=False):
        if old[0] != new[0]:
            return f"the rollout ran {old[0]} where the replay ran {new[0]}: {SWAPPED}"
        if old[1] != new[1]:
            shapes = f"shape {list(old[1])} in the rollout and {list(new[1])} in the replay"
            return f"{old[0]} has {shapes}: the calls hold different rows"
        if old[2] != new[2]:
            return f"{old[0]} is {old[2]} in the rollout and {new[2]} in the replay"
        if old[3] != new[3]:
            cause = "the stored state was rounded or altered" if old[0].startswith("input") else "its weights or its kernel changed"
            return f"{old[0]} is the first that differs between rollout and replay: {cause}"
    if len(rollout) != len(replay):
        return f"the rollout ran {len(rollout)} modules and the replay {len(replay)}: {SWAPPED}"
    for name, _, kind, _, finite in replay:
        if not finite:
            return f"{name} is the first whose values are not all finite, in {kind}: it overflows, or was given no numbers"
    return "every module agrees: the difference lies outside the network (guidance, or the stored predictions)"
