"""How averages of the weights follow."""

from __future__ import annotations

from collections.abc import Callable


def warming(decay: float, every: int = 1) -> Callable[[int], float]:
    """Decay of an "ema" weight set by iteration s: min((1 + s) / (10 + s), decay) at every `every`-th, 1 (no change) between.

    Raises: ValueError for a decay outside [0, 1) or every < 1.
    Source: Flow-GRPO (2505.05470), flow_grpo@9745241 `EMAModuleWrapper`, 0.9 every 8.
    """
    if not 0 <= decay < 1 or every < 1:
        raise ValueError(f"an average with decay {decay:g} every {every}: give a decay in [0, 1) and every >= 1")
    return lambda s: min((1 + s) / (10 + s), decay) if (s + 1) % every == 0 else 1.0
