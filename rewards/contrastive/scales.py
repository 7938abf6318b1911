"""What is made of a cosine: the scales in use, by name. All grow with it; group-normalised advantages see only the clipping."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Scale = Callable[[Tensor, float], Tensor]
"""Of cosines and the model's own factor exp(logit_scale), 100 for CLIP and its kin."""


def cosine(cosines: Tensor, factor: float) -> Tensor:
    """In [-1, 1]."""
    del factor
    return cosines


def logits(by: float = 1.0) -> Scale:
    """factor * cos / by."""
    return lambda cosines, factor: cosines * (factor / by)


def clipped(factor: float) -> Scale:
    """factor * max(cos, 0), the factor given and not the model's: 2.5 for Hessel et al., 100 for torchmetrics."""
    return lambda cosines, _: factor * cosines.clamp(min=0)
