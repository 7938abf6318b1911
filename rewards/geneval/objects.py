"""What a detector says of a picture, and which of it the rules see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Detections:
    """K objects found in one picture, in any order.

    labels: K of `words.CLASSES`;  boxes: float64 [K, 4], left, top, right, bottom in pixels, right and bottom exclusive;
    scores: float64 [K] in [0, 1];  masks: bool [K, H, W], None of a detector that gives boxes only.

    Raises: ValueError if sizes differ, a number is not finite, or a box ends before it begins.
    """

    labels: Sequence[str]
    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = [tuple(self.boxes.shape), tuple(self.scores.shape), None if self.masks is None else self.masks.shape[0]]
        if shapes[:2] != [(count, 4), (count,)] or shapes[2] not in (None, count):
            raise ValueError(
                f"{count} detections have boxes {list(shapes[0] or ())} and scores {list(shapes[1] or ())} "
                f"and {'no' if shapes[2] is None else shapes[2]} masks; give [K, 4], [K] and [K, H, W] or None"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a detection's box or score is not a finite number; the detector is broken or its weights are")
        if (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise ValueError("a detection's box ends before it begins; give left, top, right, bottom, not width and height")


class Detector(Protocol):
    """Finds GenEval's classes. name: goes into the score's name;  images: uint8 [N, H, W, 3] -> N Detections.

    Detections of low score are given as well: the rules set the threshold.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: np.ndarray) -> list[Detections]: ...


@dataclass(frozen=True)
class Thing:
    """One object. box: float64 [4], left, top, right, bottom in pixels;  mask: bool [H, W] or None."""

    box: np.ndarray
    score: float
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Limits:
    """Numbers of the official evaluator. threshold: an object's score is above it;  counting: that of the counting task;
    most: objects kept of one class;  margin: share of two objects' sizes by which they must be apart to be beside each other.
    """

    threshold: float = 0.3
    counting: float = 0.9
    most: int = 16
    margin: float = 0.1


OFFICIAL = Limits()


def sorted_things(found: Detections, threshold: float, most: int) -> dict[str, list[Thing]]:
    """class -> its objects of a score above the threshold, the highest first, at most `most` of each class.

    Differs: where scores are equal the official order is that of an unstable sort; here the box nearest the top left comes first,
    so the order in which a detector lists its objects does not matter.
    """
    kept: dict[str, list[int]] = {}
    for index in np.flatnonzero(found.scores > threshold).tolist():
        kept.setdefault(found.labels[index], []).append(index)
    return {
        name: [_thing(found, index) for index in sorted(indices, key=lambda i: (-found.scores[i], *found.boxes[i]))[:most]]
        for name, indices in kept.items()
    }


def _thing(found: Detections, index: int) -> Thing:
    mask = None if found.masks is None else found.masks[index]
    return Thing(found.boxes[index], float(found.scores[index]), mask)
