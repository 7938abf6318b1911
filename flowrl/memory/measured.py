"""The same peaks on a real GPU: the model is loaded and its phases are run once."""

from __future__ import annotations

from typing import Any

import torch

from flowrl.recipe import PolicySpec

PROMPT = "a photograph of a red bicycle leaning on a white wall"


def check() -> None:
    """Raises: ValueError where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise ValueError("there is no CUDA device to measure on; leave --measure out for the computed peaks")


def measured(spec: PolicySpec, rows: int, device: str = "cuda") -> dict[str, int]:
    """Bytes allocated at most in each phase, by torch.cuda.max_memory_allocated, with `rows` rows a training call.

    encode: one prompt;  train: one call and its backward pass;  decode: as many images as the policy decodes at once.
    Without context and allocator (see plan.overhead), moments and reward.

    Raises: ValueError where there is no CUDA device, or the model cannot be loaded.
    """
    check()
    from flowrl.models import load_policy

    policy = load_policy(spec, device)
    found: dict[str, int] = {}

    def phase(name: str, run: Any) -> Any:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        out = run()
        found[name] = torch.cuda.max_memory_allocated()
        return out

    cond = phase("encode", lambda: policy.encode([PROMPT])).take(torch.zeros(rows, dtype=torch.long))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *policy.latent_shape(), generator=draw).to(device)
    sigma = torch.full((rows,), 0.5, device=device)

    def train() -> None:
        out = policy.predict(x, sigma, cond)
        (out[0] if isinstance(out, tuple) else out).square().sum().backward()

    phase("train", train)
    phase("decode", lambda: policy.decode(x))
    return found
