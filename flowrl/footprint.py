"""Memory of one call, counted: what it keeps for backward and the most that is alive at once. On meta nothing is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

SLACK = 0.9
"""Share of free memory that rows may fill: the allocator rounds sizes up and keeps pieces it cannot hand out again."""


@dataclass(frozen=True)
class Footprint:
    """Bytes beyond parameters, buffers, gradients and inputs.

    saved: kept for backward when the forward call is over;  peak: most alive at once, in forward and backward.
    """

    saved: int
    peak: int


def footprint(call: Callable[[], Tensor], module: nn.Module, inputs: Iterable[Tensor] = (), backward: bool = True) -> Footprint:
    """Run call() once, with its backward pass from the sum of squares of what it returns, and count.

    module: whose parameters and buffers are not counted, nor are gradients of its trained parameters; their `.grad` is as before
    afterwards. backward False: under no_grad, nothing is saved.
    Exact in the tensors that operations return, on any device. Not seen: workspaces inside kernels (cuDNN, cuBLAS), the allocator's
    rounding. On meta, attention is taken to be a fused kernel, which keeps q, k, v, its answer and a float32 a query.
    """
    trained = [p for p in module.parameters() if p.requires_grad] if backward else []
    before = [p.grad for p in trained]
    known = [*module.parameters(), *module.buffers(), *inputs]
    try:
        for p in trained:
            p.grad = torch.zeros_like(p)
        live = Live([*known, *(p.grad for p in trained if p.grad is not None)])
        with live, fused(), torch.set_grad_enabled(backward), _saved(live) as kept:
            answer = call()
            saved = sum(kept.values())
            if backward:
                torch.autograd.backward(answer.float().square().sum())
        return Footprint(saved, live.peak)
    finally:
        for p, grad in zip(trained, before, strict=True):
            p.grad = grad


def rows_that_fit(call: Callable[[int], Tensor], module: nn.Module, free: float, most: int = 32) -> int:
    """Rows of one training call for which `free` bytes suffice, from 1 to `most`.

    call(rows) -> what the network answers, with a graph. It is run with two rows, forward and backward: with one, parts of a joined
    sequence are views that are copies with more. Where two rows do not fit the answer is 1.
    """
    try:
        row = max(1, footprint(lambda: call(2), module).peak / 2)
    except torch.OutOfMemoryError:
        return 1
    return max(1, min(most, int(SLACK * free / row)))


class Live(TorchDispatchMode):
    """Follows every storage that an operation returns until nothing holds it. now, peak: bytes."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {key(x) for x in known}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                self._follow(x)
        return out

    def counts(self, x: Tensor) -> bool:
        return key(x) not in self._known

    def _follow(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._known or name in self._alive:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._alive[name]

        self._alive[name] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def fused() -> Iterator[None]:
    """Inside, attention on meta tensors is what a fused kernel has, not the plain formula with its score matrix.

    By exchanging the function: a TorchFunctionMode is off inside backward, where checkpointed blocks are run again.
    """
    plain = nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if query.device.type == "meta":
            return _Attention.apply(query, key, value, attn_mask)  # pyright: ignore[reportReturnType]
        return plain(query, key, value, attn_mask, *args, **kwargs)

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = plain


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # tokens before heads in memory, as kernels leave it: merging the heads afterwards is then a view
        *batch, heads, length, _ = q.shape
        out = q.new_empty((*batch, length, heads, v.shape[-1])).transpose(-2, -3)
        normaliser = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, normaliser, *(() if mask is None else (mask,)))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def key(x: Tensor) -> int:
    """The same for tensors that share memory."""
    return x.untyped_storage()._cdata


@contextmanager
def _saved(live: Live) -> Iterator[dict[int, int]]:
    """Bytes by storage of what is saved for backward inside."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if live.counts(x):
            kept[key(x)] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept
