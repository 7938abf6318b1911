"""Several scores as one: sums, thresholds, gates, hierarchies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Rule:
    """What a reward does beside being added up.

    threshold: it counts as 1 where its score is above, else 0.
    gate: the rewards after it in the list count only where its score (as it was given, before any threshold) is at least so much;
    elsewhere they are 0.

    Raises: ValueError for a number that is not finite.
    """

    threshold: float | None = None
    gate: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("gate", self.gate)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"the {name} of a reward is {value}; give a finite number")


def ruled(scores: Mapping[str, Scores], rules: Mapping[str, Rule]) -> dict[str, Scores]:
    """What scores count for, in the order they are listed: r_k = [s_k, or 1[s_k > threshold_k]] * prod over j before k of
    1[s_j >= gate_j].

    A gate that could not be scored leaves what comes after it invalid: nobody knows whether it was open. Parts stay as they are.

    Source: gates: gated reward accumulation (2508.10548);  thresholds: DanceGRPO (2505.07818).
    Differs: a gated reward is 0, whatever the range of its scores; give rewards whose scores are above 0.
    """
    out: dict[str, Scores] = {}
    open_, known = None, None
    for name, score in scores.items():
        rule = rules.get(name, Rule())
        values, valid = score.values, score.valid
        if rule.threshold is not None:
            values = torch.where(valid, (values > rule.threshold).to(values.dtype), math.nan)
        if open_ is not None and known is not None:
            valid = valid & known
            values = torch.where(valid, torch.where(open_, values, 0), math.nan)
        out[name] = Scores(values, valid, score.parts)
        if rule.gate is not None:
            passed = score.valid & (score.values >= rule.gate)
            open_ = passed if open_ is None else open_ & passed
            known = score.valid if known is None else known & score.valid
    return out


def hierarchy(whole: Tensor, subjects: Tensor, relations: Tensor, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    """w_0 R_global + w_1 mean over subjects + w_2 mean over relations, [N].

    whole [N]; subjects [N, S], relations [N, R] in [0, 1]: NaN where an image has fewer, 0 for a subject that was not found.
    An image without subjects (or relations) loses that term; what could not be scored as a whole is NaN.

    Source: HiCoGen, hierarchical reward: global (CLIP, HPSv2), subject (likeness and attributes of each crop), relation.
    Differs: their code is not released; the weights of the three terms are ours to choose.
    """
    terms = (whole, subjects.nanmean(1).nan_to_num(0), relations.nanmean(1).nan_to_num(0))
    return sum((w * term.double() for w, term in zip(weights, terms, strict=True)), torch.zeros_like(whole, dtype=torch.float64))
