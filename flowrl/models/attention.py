"""How a network computes attention: one backend a run, the same for rollout and training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowrl.said import first_line, near

INFERENCE_ONLY = ("sage", "_sage")
"""Beginnings of backends without a backward."""
KERNELS = {
    "_native_math": SDPBackend.MATH,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Backends that are a kernel of torch's own attention, which an attention can be held to that takes no backend."""
UNABLE = ("No available kernel", "No viable backend")
"""Beginnings of what torch says where its kernel does not fit."""


@dataclass(frozen=True)
class Held:
    """An attention's forward, inside which torch has one kernel: also where a checkpointed block runs it again in its backward.

    Raises: ValueError where the kernel does not compute this attention, as flash none with a mask on CUDA.
    """

    forward: Callable[..., Any]
    kernel: SDPBackend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with sdpa_kernel(self.kernel):
                return self.forward(*args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith(UNABLE):
                raise
            named = next(name for name, kernel in KERNELS.items() if kernel == self.kernel)
            raise ValueError(f"policy.attention {named!r} cannot compute this network's attention; use native") from error


def use(network: nn.Module, backend: str | None, device: torch.device | str = "cpu") -> None:
    """Set a diffusers attention backend by its name ("native", "_native_math", "flex", "xformers", ...); None leaves it.

    Attentions that call torch's themselves (Stable Diffusion's, SD3's, CogView4's, ...) follow to torch's own kernels alone.
    device: where the network will be; the backend is tried there.

    Raises: ValueError for a backend that does not exist, that not every attention follows to, that cannot run here, or that has
    no backward.
    """
    if backend is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [str(name.value) for name in AttentionBackendName]
    if backend not in known:
        raise ValueError(f"policy.attention {backend!r} is unknown{near(backend, known)}; diffusers has: {', '.join(known)}")
    if backend.startswith(INFERENCE_ONLY):
        raise ValueError(f"policy.attention {backend!r} has no backward, so nothing could be trained; use native, flex or flash")
    if getattr(network, "set_attention_backend", None) is None:
        raise ValueError(f"{type(network).__name__} has no choice of attention backends; take policy.attention out")
    own = _on_their_own(network, backend)
    _set(network, backend, device)
    for module in own:
        right = module.forward.forward if isinstance(module.forward, Held) else module.forward
        module.forward = Held(right, KERNELS[backend]) if backend in KERNELS else right


def _on_their_own(network: nn.Module, backend: str) -> list[Any]:
    """The attentions that do not ask diffusers for a backend. Raises: ValueError where one would not follow to this backend."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention, MochiAttention

    found: list[Any] = [m for m in network.modules() if isinstance(m, Attention | MochiAttention | AttentionModuleMixin)]
    found = [m for m in found if "LinearAttn" not in type(m.processor).__name__]  # SANA's, which is no softmax of anything
    own = [m for m in found if not hasattr(m.processor, "_attention_backend")]
    if backend == "native":
        return own
    lost = [m for m in own if backend not in KERNELS or not _calls_torch(m.processor)]
    if lost or not found:
        count = "none" if len(lost) == len(found) else f"only {len(found) - len(lost)}"
        raise ValueError(
            f"policy.attention {backend!r}: {count} of the {len(found)} attentions of {type(network).__name__} can take it; "
            "take it out, or use native"
        )
    return own


def _calls_torch(processor: Any) -> bool:
    """Whether a processor calls torch.nn.functional.scaled_dot_product_attention itself."""
    code = getattr(type(processor).__call__, "__code__", None)
    return code is not None and "scaled_dot_product_attention" in code.co_names


def _set(network: Any, backend: str, device: torch.device | str) -> None:
    """Tell the attentions that take a backend, and run it once, forward and backward, on a little of nothing.

    Raises: ValueError for one that cannot run here.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

    failures = (RuntimeError, ImportError, ValueError, TypeError, AttributeError, AssertionError, OSError)
    try:
        with attention_backend(backend), torch.enable_grad():  # set_attention_backend also sets what others use; here that ends
            network.set_attention_backend(backend)
            q, k, v = (torch.ones(1, 128, 2, 64, device=device, dtype=network.dtype, requires_grad=True) for _ in range(3))
            dispatch_attention_fn(q, k, v, backend=AttentionBackendName(backend)).sum().backward()
    except failures as error:
        said = first_line(error)
        raise ValueError(f"policy.attention {backend!r} cannot be used here: {said}; take it out, or use native") from error
