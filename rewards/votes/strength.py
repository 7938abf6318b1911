"""How strong images are, from who beat whom: the Bradley-Terry model, fitted so that it always has one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .book import Item

Float = NDArray[np.float64]
PRIOR = 3.0
"""Standard deviation a strength has before any vote, in log odds: 3 lets a clear favourite win 95 times of 100."""


def strengths(wins: Mapping[tuple[Item, Item], float], prior: float = PRIOR) -> dict[Item, float]:
    """Log-odds strength s of every image compared: P(a beats b) = 1 / (1 + exp(s_b - s_a)).

    Maximises sum_ab wins(a, b) log P(a beats b) - sum_a s_a^2 / 2 prior^2, which is strictly concave: one answer, whatever the
    order of votes, also where an image won every time. Images that no chain of comparisons connects are fitted apart, each such
    part has mean 0, so strengths of different parts cannot be compared.

    wins: how often the first of a pair was preferred to the second, ties as half.

    Raises: ValueError for a prior that is not above 0, or a negative or infinite number of wins.

    Source: Bradley and Terry, Biometrika 39 (1952) 324; the prior as in Caron and Doucet, 1011.1761, here Gaussian.
    Differs: pairs of one ranking count as independent; Plackett-Luce would not count them so.
    """
    if not prior > 0:
        raise ValueError(f"prior is {prior}; give the standard deviation of strengths, above 0")
    if any(not (count >= 0 and np.isfinite(count)) for count in wins.values()):
        raise ValueError("a number of wins is negative or not finite; count wins, a tie as half for each")
    found: dict[Item, float] = {}
    for part in parts(wins):
        row = {item: index for index, item in enumerate(part)}
        matrix = np.zeros((len(part), len(part)))
        for one in part:
            for other in part:
                matrix[row[one], row[other]] = wins.get((one, other), 0.0)
        found |= dict(zip(part, _fit(matrix, prior).tolist(), strict=True))
    return found


def win_rates(wins: Mapping[tuple[Item, Item], float]) -> dict[Item, float]:
    """Share of its comparisons that each image won, ties as half."""
    won: dict[Item, float] = {}
    lost: dict[Item, float] = {}
    for (one, other), count in sorted(wins.items()):
        won[one] = won.get(one, 0.0) + count
        lost[other] = lost.get(other, 0.0) + count
    items = sorted(won.keys() | lost.keys())
    total = {item: won.get(item, 0.0) + lost.get(item, 0.0) for item in items}
    return {item: won.get(item, 0.0) / total[item] for item in items if total[item]}


def parts(wins: Mapping[tuple[Item, Item], float]) -> list[list[Item]]:
    """Images that comparisons connect, sorted."""
    near: dict[Item, set[Item]] = {}
    for (one, other), count in wins.items():
        if count:
            near.setdefault(one, set()).add(other)
            near.setdefault(other, set()).add(one)
    found: list[list[Item]] = []
    seen: set[Item] = set()
    for start in sorted(near):
        if start in seen:
            continue
        part, waiting = {start}, [start]
        while waiting:
            new = near[waiting.pop()] - part
            part |= new
            waiting += new
        seen |= part
        found.append(sorted(part))
    return found


def ascend(value: Callable[[Float], float], slope: Callable[[Float], tuple[Float, Float]], start: Float) -> Float:
    """The maximum of a strictly concave function, by Newton's steps halved until they climb.

    slope(x): (gradient, minus the Hessian, positive definite). Stops where a step would climb by less than 1e-15 of the value.
    """
    x, height = start, value(start)
    for _ in range(200):
        gradient, curvature = slope(x)
        step = np.linalg.solve(curvature, gradient)
        if gradient @ step <= 1e-15 * max(1.0, abs(height)):
            # below this, rounding hides whether a step climbs; the step itself is still good
            return x + step
        scale = 1.0
        while value(x + scale * step) < height + 1e-4 * scale * float(gradient @ step) and scale > 1e-12:
            scale /= 2
        x = x + scale * step
        height = value(x)
    return x


def log_odds(gap: Float) -> Float:
    """log P of winning by a gap in strength, log 1 / (1 + exp(-gap)), without overflow."""
    return -np.logaddexp(0.0, -gap)


def _fit(wins: Float, prior: float) -> Float:
    met = wins + wins.T

    def value(s: Float) -> float:
        return float((wins * log_odds(s[:, None] - s)).sum() - s @ s / (2 * prior**2))

    def slope(s: Float) -> tuple[Float, Float]:
        chance = np.exp(log_odds(s[:, None] - s))
        weight = met * chance * (1 - chance)
        gradient = (wins - met * chance).sum(1) - s / prior**2
        return gradient, np.diag(weight.sum(1) + 1 / prior**2) - weight

    return ascend(value, slope, np.zeros(len(wins)))
