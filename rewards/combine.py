"""Several scores as one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .base import Scores


def total(scores: Mapping[str, Scores], weights: Mapping[str, float]) -> Scores:
    """Weighted sum of scores, invalid wherever one of them is.

    values = sum over names of weights[name] * scores[name].values, in float64, rounded to float32 once, so the order of names
    does not show. A weight of 0: the score is a part and nothing else, valid or not.
    parts: {name: values [P, L]} unweighted, and "name/part" for the parts a score has itself.

    Raises: ValueError if there is nothing to add, if names, shapes or devices differ, or a weight is not finite.
    """
    if not scores:
        raise ValueError("there are no scores to add up; give at least one reward")
    if set(scores) != set(weights):
        raise ValueError(f"scores are named {sorted(scores)} but weights {sorted(weights)}; give one weight a score")
    shapes = {name: list(score.values.shape) for name, score in scores.items()}
    first = next(iter(scores.values()))
    if any(shape != list(first.values.shape) for shape in shapes.values()):
        raise ValueError(f"scores differ in shape: {shapes}; all must be [P, L] of the same rollout")
    value, valid = torch.zeros_like(first.values, dtype=torch.float64), torch.ones_like(first.valid)
    for name in sorted(scores):
        if not math.isfinite(weights[name]):
            raise ValueError(f"the weight of {name!r} is {weights[name]}; give a finite number")
        if weights[name]:
            value = value + weights[name] * scores[name].values.double()
            valid = valid & scores[name].valid
    parts = {name: score.values for name, score in scores.items()}
    parts |= {f"{name}/{part}": values for name, score in scores.items() for part, values in score.parts.items()}
    return Scores(value.float().masked_fill(~valid, math.nan), valid, parts)
