"""How averages of the weights follow."""

from __future__ import annotations

from collections.abc import Callable

from flowrl.types import WeightSet


def warming(decay: float, every: int = 1) -> Callable[[int], float]:
    """Decay of an "ema" weight set by iteration s: min((1 + s) / (10 + s), decay) at every `every`-th, 1 (no change) between.

    Raises: ValueError for a decay outside [0, 1) or every < 1.
    Source: Flow-GRPO (2505.05470), flow_grpo@9745241 `EMAModuleWrapper`, 0.9 every 8.
    """
    if not 0 <= decay < 1 or every < 1:
        raise ValueError(f"an average with decay {decay:g} every {every}: give a decay in [0, 1) and every >= 1")
    return lambda s: min((1 + s) / (10 + s), decay) if (s + 1) % every == 0 else 1.0


def ramp(rate: float, most: float, start: int = 0) -> Callable[[int], float]:
    """Decay of an "ema" weight set by iteration s: min(rate (s - start), most), 0 (a copy) up to `start`.

    Raises: ValueError for a negative rate or start, or a largest decay outside [0, 1).
    Source: DiffusionNFT (2509.16117), DiffusionNFT@24af555 `return_decay`: type 0 is ramp(0, 0), type 1 ramp(0.001, 0.5), type 2
    ramp(0.0075, 0.999, 75).
    """
    if rate < 0 or start < 0 or not 0 <= most < 1:
        raise ValueError(
            f"a decay of {rate:g} an iteration from {start} on, at most {most:g}: give rate and start >= 0 and most in [0, 1)"
        )
    return lambda s: min(rate * max(s - start, 0), most)


def renewed(every: int) -> WeightSet:
    """A set that becomes the current weights every so many iterations.

    Raises: ValueError for every < 1.
    """
    if every < 1:
        raise ValueError(f"a reference that is replaced every {every} iterations: give 1 or more")
    return WeightSet("copy", when=lambda iteration, metrics: (iteration + 1) % every == 0)
