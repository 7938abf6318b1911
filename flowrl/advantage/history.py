"""Estimators with a memory: the state is passed in and returned, plain numbers by prompt; what was passed in is left alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.rewards.base import State


def tracked(
    r: Tensor, prompts: Sequence[str], state: State, buffer: int = 16, least: int = 16, eps: float = 1e-6
) -> tuple[Tensor, State]:
    """(r - mean) / (std + eps) by the last `buffer` rewards of each prompt, r [P, L] -> float32 [P, L] and the next state.

    A prompt with fewer than `least` rewards so far takes mean and std of the whole batch. Population std; NaN is left out and
    gets 0.

    Source: DDPO, ddpo-pytorch@1958463 `PerPromptStatTracker`.
    """
    seen: dict[str, list[float]] = {k: list(v) for k, v in state.items()}
    valid, r = torch.isfinite(r), r.double()
    for text, row, known in zip(prompts, r, valid, strict=True):
        seen[text] = [*seen.get(text, []), *row[known].tolist()][-buffer:]
    pooled = r[valid]
    a = torch.zeros_like(r)
    for i, text in enumerate(prompts):
        values = torch.tensor(seen[text], dtype=torch.float64) if len(seen[text]) >= least else pooled
        if not len(values):
            continue
        a[i] = torch.where(valid[i], (r[i] - values.mean()) / (values.std(correction=0) + eps), 0)
    return a.float(), seen
