"""From templates and a back end to scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowrl.rewards.base import waits
from flowrl.rewards.forms import Detailed, Metadata, References, over_frames

from .ask import Backend, Question
from .checklist import Node, nodes, passed
from .read import joined, read
from .template import Template

LEAST = 0.01
"""Probability that must lie on the words a judge may answer with: below it, it answers something else."""


@dataclass(frozen=True)
class Reading:
    """value in [0, 1], NaN where there is no answer or it cannot be read;  parts: the same by axes."""

    value: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Point:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> scores in [0, 1], each image judged alone; of a video the mean over
    its frames, as no template here is worded for videos.

    labelled, tagged: grade / high;  digits: sum_k k p(k) / (high sum_k p(k)) over the digits low .. high;  yes:
    p(yes) / (p(yes) + p(no)), both merged over the ways a token may write the word;  checklist: see `checklist`.
    """

    backend: Backend
    template: Template

    @property
    def waits(self) -> bool:
        return waits(self.backend)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        return over_frames(self._stills, images, prompts, metadata)

    def _stills(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        if self.template.answer == "checklist":
            return self._checked(images, prompts, [nodes(m) for m in metadata])
        asked = [question(self.template, (image,), prompt) for image, prompt in zip(images, prompts, strict=True)]
        return gathered(readings(self.backend, self.template, asked))

    def _checked(self, images: np.ndarray, prompts: list[str], lists: list[tuple[Node, ...]]) -> Detailed:
        asked = [
            question(self.template, (image,), prompt, node.question)
            for image, prompt, some in zip(images, prompts, lists, strict=True)
            for node in some
        ]
        told = iter(_weighed(self.backend, self.template, asked))
        return Detailed([passed(some, [next(told).value for _ in some], self.template.hard) for some in lists])


@dataclass(frozen=True)
class Against:
    """f(images, prompts, metadata, references) -> scores in [0, 1] of images beside the first reference of their prompt; of a video
    the mean over its frames.

    "yes": (P(yes | reference, image) + 1 - P(yes | image, reference)) / 2 with both_orders, else the first of them alone: 1/2 for
    an image as good as the reference. NaN where there is no reference.
    """

    backend: Backend
    template: Template
    both_orders: bool = True

    @property
    def waits(self) -> bool:
        return waits(self.backend)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], references: list[References]) -> Detailed:
        return over_frames(self._stills, images, prompts, metadata, references)

    def _stills(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata], references: list[References]) -> Detailed:
        del metadata
        rows = [i for i, given in enumerate(references) if given]
        shown = [(references[i][0], images[i]) for i in rows]
        if self.template.answer == "yes" and self.both_orders:
            shown += [(second, first) for first, second in shown]
        asked = [question(self.template, both, prompts[rows[n % len(rows)]]) for n, both in enumerate(shown)]
        told = readings(self.backend, self.template, asked)
        out = [Reading()] * len(prompts)
        for n, i in enumerate(rows):
            turned = told[n + len(rows)].value if len(told) > len(rows) else None
            out[i] = told[n] if turned is None else Reading((told[n].value + 1 - turned) / 2)
        return gathered(out)


@dataclass(frozen=True)
class Pair:
    """A judge for win rates: P(the first of a pair is better), one order as it is asked."""

    backend: Backend
    template: Template

    @property
    def waits(self) -> bool:
        return waits(self.backend)

    def seated(self, images: np.ndarray, pairs: np.ndarray, prompt: str, metadata: Metadata) -> Detailed:
        del metadata
        still(images, self.template)
        views = list(images)
        # "is the second better than the first?" is asked with the first of the pair shown second
        turned = -1 if self.template.shown == "reference" else 1
        asked = [question(self.template, (views[i], views[j])[::turned], prompt) for i, j in pairs]
        return gathered(readings(self.backend, self.template, asked))


def question(template: Template, images: tuple[np.ndarray, ...], prompt: str, about: str = "") -> Question:
    return Question(images, template.filled(prompt, about), template.tokens)


def readings(backend: Backend, template: Template, asked: Sequence[Question]) -> list[Reading]:
    """Answers to questions as numbers."""
    if not asked:
        return []
    if template.answer in ("yes", "digits"):
        return _weighed(backend, template, asked)
    texts = backend.write(asked)
    told = [Reading() if text is None else _graded(text, template) for text in texts]
    odd = [text for text, one in zip(texts, told, strict=True) if text is not None and math.isnan(one.value)]
    if odd:
        warnings.warn(
            f"{len(odd)} of {len(asked)} answers to template {template.name!r} could not be read ({template.answer}), "
            f"such as one that ends in {odd[0][-120:]!r}; they count as no score",
            stacklevel=2,
        )
    return told


def gathered(told: Sequence[Reading]) -> Detailed:
    """Readings as columns."""
    names = dict.fromkeys(name for one in told for name in one.parts)
    return Detailed([one.value for one in told], {name: [one.parts.get(name, math.nan) for one in told] for name in names})


def still(images: np.ndarray, template: Template) -> None:
    """Raises: ValueError for videos: no template here is worded for them."""
    if images.ndim != 4:
        raise ValueError(f"template {template.name!r} compares images [N, H, W, 3], not videos {list(images.shape)}; score a frame")


def _graded(text: str, template: Template) -> Reading:
    told = read(template.answer, text, template.axes)
    if "winner" in told:
        return Reading(told.pop("winner"), told)
    # NaN is in no range
    kept = {name: grade / template.high if template.low <= grade <= template.high else math.nan for name, grade in told.items()}
    return Reading(joined(list(kept.values()), template.join), kept if len(kept) > 1 else {})


def _weighed(backend: Backend, template: Template, asked: Sequence[Question]) -> list[Reading]:
    """Expected grade over words: 1 and 0 for yes and no, else the digits."""
    if template.answer == "digits":
        words = [str(k) for k in range(int(template.low), int(template.high) + 1)]
        grades = np.array([int(word) / template.high for word in words])
    else:
        words, grades = ["yes", "no"], np.array([1.0, 0.0])
    out = []
    for told in backend.weigh(asked, words) if asked else []:
        p = np.array((math.nan,) if told is None else told, dtype=np.float64)
        out.append(Reading(float(grades @ p / p.sum())) if p.sum() >= LEAST else Reading())
    return out
