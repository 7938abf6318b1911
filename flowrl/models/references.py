"""Reference pictures as tokens behind those that are denoised, for networks that take one set of places a call and no mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_place(places: Tensor, ask: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Answers [N, ...] of one call for all rows whose references lie at the same places; such rows are never padded.

    places: [N, R, k], padded with zeros; the first coordinate of a reference's token is above 0.
    ask(rows [M], places [R', k]) -> [M, ...].
    """
    kinds, kind = torch.unique(places.flatten(1), dim=0, return_inverse=True)
    groups = [(kind == i).nonzero()[:, 0] for i in range(len(kinds))]
    found = [ask(rows, own[own[:, 0] > 0]) for rows, own in zip(groups, kinds.unflatten(1, places.shape[1:]), strict=True)]
    return torch.cat(found)[torch.cat(groups).argsort()]
