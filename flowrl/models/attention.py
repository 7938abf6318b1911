"""How a network computes attention: one backend a run, the same for rollout and training."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowrl.said import first_line, near

INFERENCE_ONLY = ("sage", "_sage")
"""Beginnings of backends without a backward."""


def use(network: nn.Module, backend: str | None) -> None:
    """Set a diffusers attention backend by its name ("native", "_native_math", "flex", "xformers", ...); None leaves it.

    Raises: ValueError for a backend that does not exist, cannot run here, or has no backward.
    """
    if backend is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    known = [str(name.value) for name in AttentionBackendName]
    if backend not in known:
        raise ValueError(f"policy.attention {backend!r} is unknown{near(backend, known)}; diffusers has: {', '.join(known)}")
    if backend.startswith(INFERENCE_ONLY):
        raise ValueError(f"policy.attention {backend!r} has no backward, so nothing could be trained; use native, flex or flash")
    set_backend: Any = getattr(network, "set_attention_backend", None)
    if set_backend is None:
        raise ValueError(f"{type(network).__name__} has no choice of attention backends; take policy.attention out")
    try:
        with attention_backend(backend):  # set_attention_backend also sets what every other network uses; here that ends
            set_backend(backend)
    except (RuntimeError, ImportError, ValueError) as error:
        said = first_line(error)
        raise ValueError(f"policy.attention {backend!r} cannot be used here: {said}; take it out, or use native") from error
