"""A preference learned from votes: a linear head on frozen features of image and prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .strength import Float, ascend, log_odds

SPREAD = 2.0
"""Standard deviation that the gap in score between two images has before any vote, in log odds."""
FOLDS = 5


@dataclass(frozen=True)
class Pairs:
    """Comparisons of two images of one prompt.

    gap: features of the first minus the second, float64 [M, D];  share: 1 where the first was preferred, 0 where the second, 0.5
    for a tie [M];  prompt: of each [M];  plain: gap in cosine, first minus second [M].
    """

    gap: Float
    share: Float
    prompt: Sequence[str]
    plain: Float

    def take(self, rows: NDArray[np.bool_]) -> Pairs:
        """The comparisons marked True."""
        return Pairs(self.gap[rows], self.share[rows], [self.prompt[i] for i in np.flatnonzero(rows).tolist()], self.plain[rows])


@dataclass(frozen=True)
class Accuracy:
    """How often the image that people preferred scores higher, ties of people left out, equal scores as half.

    low, high: 95 % (Wilson).  n: comparisons, 0: all NaN.
    """

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Learned:
    """A head and what it is worth.

    weight: float64 [D], score = weight . features;  heldout: on prompts it was not fitted on, of n = 0 with one prompt;  plain: of
    the cosine itself on the same comparisons.
    """

    weight: Float
    heldout: Accuracy
    plain: Accuracy


def features(picture: Float, text: Float) -> Float:
    """What the head sees: [image, image * text], float64 [N, 2 D], from unit features [N, D] of image and prompt.

    The sum of the second half is CLIP's cosine, so the head can say how well the prompt is met as well as how good it looks.
    """
    return np.concatenate([picture, picture * text], 1).astype(np.float64)


def learn(pairs: Pairs) -> Learned:
    """The head fitted on all comparisons, and its accuracy on held-out prompts by cross-validation in 5 folds of prompts.

    Raises: ValueError where no two images differ in their features.
    """
    fold = folds(pairs.prompt)
    score = np.full(len(pairs.share), np.nan)
    for number in np.unique(fold):
        held = fold == number
        if not held.all():
            score[held] = pairs.gap[held] @ fit(pairs.take(~held))
    known = ~np.isnan(score)
    return Learned(fit(pairs), accuracy(score[known], pairs.share[known]), accuracy(pairs.plain, pairs.share))


def fit(pairs: Pairs, spread: float = SPREAD) -> Float:
    """Weights [D] of the Bradley-Terry model score(a) - score(b) = weight . (features(a) - features(b)), with a Gaussian prior.

    Maximises sum_m share_m log P(first beats second) + (1 - share_m) log P(second beats first) - |weight|^2 g^2 / 2 spread^2, where
    g^2 is the mean of |gap|^2, so that `spread` is about the standard deviation of a gap in score before any vote. One answer,
    whatever the order of votes.

    Raises: ValueError where no two images differ in their features.
    """
    size = float(np.sqrt((pairs.gap**2).sum(1).mean()))
    if not size:
        raise ValueError("the images voted on have all the same features, so nothing can be learned from the votes")
    # the best weights lie in the span of the gaps, which has fewer dimensions than the features
    _, _, basis = np.linalg.svd(pairs.gap / size, full_matrices=False)
    x, share = pairs.gap / size @ basis.T, pairs.share

    def value(w: Float) -> float:
        gap = x @ w
        return float((share * log_odds(gap) + (1 - share) * log_odds(-gap)).sum() - w @ w / (2 * spread**2))

    def slope(w: Float) -> tuple[Float, Float]:
        chance = np.exp(log_odds(x @ w))
        gradient = x.T @ (share - chance) - w / spread**2
        return gradient, (x.T * (chance * (1 - chance))) @ x + np.eye(len(w)) / spread**2

    return ascend(value, slope, np.zeros(x.shape[1])) @ basis / size


def folds(prompts: Sequence[str], count: int = FOLDS) -> np.ndarray:
    """The fold of each comparison, 0 to count - 1: prompts are dealt out in the order of their hashes, none is in two folds."""
    dealt = sorted(set(prompts), key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    fold = {prompt: index % count for index, prompt in enumerate(dealt)}
    return np.array([fold[prompt] for prompt in prompts])


def accuracy(gap: Float, share: Float) -> Accuracy:
    """How often the sign of the gap in score agrees with people, see `Accuracy`."""
    decided = share != 0.5
    right = np.where(gap == 0, 0.5, (gap > 0) == (share > 0.5))[decided]
    if not len(right):
        return Accuracy(float("nan"), float("nan"), float("nan"), 0)
    return Accuracy(float(right.mean()), *wilson(float(right.mean()), len(right)), len(right))


def wilson(rate: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of n independent trials; it stays inside [0, 1] and does not collapse where all agree.

    Source: Wilson, JASA 22 (1927) 209, without continuity correction.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle, half = rate + z * z / (2 * n), z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
