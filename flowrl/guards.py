"""Guards against reward hacking: what a run may not do while its reward rises, and what is done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowrl.recipe import GuardSpec


@dataclass(frozen=True)
class Look:
    """One evaluation. scores: judge -> one number a caption, NaN where it could not score;  trained: the trained reward's mean;
    looks: name -> mean (saturation ...)."""

    iteration: int
    scores: Mapping[str, Sequence[float]]
    trained: float
    looks: Mapping[str, float]

    def mean(self, judge: str) -> float:
        known = [v for v in self.scores[judge] if not math.isnan(v)]
        return sum(known) / len(known) if known else math.nan


def fallen(then: Sequence[float], now: Sequence[float]) -> float:
    """By how many standard errors of their difference, caption by caption, the scores are now lower; NaN below two captions.

    z = -mean(d) / (std(d) / sqrt(n)), d = now - then, std with n - 1. All captions changed alike: infinite, with the sign.
    """
    d = np.asarray(now, dtype=float) - np.asarray(then, dtype=float)
    d = d[~np.isnan(d)]
    if len(d) < 2:
        return math.nan
    mean, error = -float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def changed(then: float, now: float) -> float:
    """|now - then| as a share of |then|."""
    return abs(now - then) / abs(then) if then else (math.inf if now else 0.0)


def suspects(spec: GuardSpec, seen: Sequence[Look], judges: Sequence[str]) -> list[str]:
    """What looks bad in the last of several evaluations, a sentence each. judges: those that are not trained.

    A judge is compared with its own best evaluation, and only while the trained reward is higher now than it was then; how
    pictures look is compared with the first evaluation.
    """
    found: list[str] = []
    first, last = seen[0], seen[-1]
    for judge in judges:
        best = max(seen, key=lambda look: (not math.isnan(look.mean(judge)), look.mean(judge)))
        z = fallen(best.scores[judge], last.scores[judge])
        if best is not last and last.trained > best.trained and z > spec.fall:
            found.append(
                f"{judge} fell from {best.mean(judge):.4g} (iteration {best.iteration}) to {last.mean(judge):.4g}, "
                f"{z:.1f} standard errors, while the trained reward rose from {best.trained:.4g} to {last.trained:.4g}"
            )
    if spec.change is not None:
        for name, value in last.looks.items():
            share = changed(first.looks[name], value) if name in first.looks else 0.0
            if share > spec.change:
                found.append(f"{name} went from {first.looks[name]:.4g} to {value:.4g}")
    return found


def verdict(spec: GuardSpec, seen: Sequence[Look], judges: Sequence[str]) -> list[str]:
    """`suspects` of the last evaluation, if the `patience` last ones all had some; else nothing."""
    if spec.act == "off" or len(seen) <= spec.patience:
        return []
    told = [suspects(spec, seen[: len(seen) - back], judges) for back in range(spec.patience)]
    return told[0] if all(told) else []
