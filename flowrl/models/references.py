"""Rows that cannot share a call, for networks that take one set of places, or one length of text, and no mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_key(keys: Tensor, ask: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Answers [N, ...] of one call for all rows of the same key.

    keys: [N, k].  ask(rows [M], key [k]) -> [M, ...].
    """
    kinds, kind = torch.unique(keys, dim=0, return_inverse=True)
    groups = [(kind == i).nonzero()[:, 0] for i in range(len(kinds))]
    found = [ask(rows, key) for rows, key in zip(groups, kinds, strict=True)]
    return torch.cat(found)[torch.cat(groups).argsort()]


def by_place(places: Tensor, ask: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Answers [N, ...] of one call for all rows whose references lie at the same places; such rows are never padded.

    places: [N, R, k], padded with zeros; the first coordinate of a reference's token is above 0.
    ask(rows [M], places [R', k]) -> [M, ...].
    """

    def own(rows: Tensor, key: Tensor) -> Tensor:
        mine = key.unflatten(0, places.shape[1:])
        return ask(rows, mine[mine[:, 0] > 0])

    return by_key(places.flatten(1), own)
