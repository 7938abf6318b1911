"""Text rendering: does the image show the words it was asked for?"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowrl.rewards.forms import Detailed, Metadata

from .edits import levenshtein, within
from .quotes import normal, targets
from .reading import Engine, Line, orders, rapid

EVERY = 4
"""Of a video, each fourth frame is read."""
LEGIBLE = 0.5
"""Confidence from which a line counts as text."""
FREE = 4
"""So many texts may stand in any order; of more, in the prompt's."""


class Marks(NamedTuple):
    """What is said of an image. exact: 1 where it shows what was asked and nothing else;  found: share of the characters asked for
    that stand somewhere;  extra: share of the characters read beyond as many as were asked for."""

    value: float
    exact: float
    found: float
    extra: float


class Rule(NamedTuple):
    """A formula. asked: the texts of a prompt;  marks: of (lines, texts, whether it is a video's frame);  pool: of frames, one."""

    asked: Callable[[str, Metadata], list[str]]
    marks: Callable[[Sequence[Line], list[str], bool], Marks]
    pool: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Ocr:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> N numbers with the parts of `Marks`. Built by `ocr`."""

    engine: Engine
    rule: Rule

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        video = images.ndim == 5
        marks = np.full((len(prompts), len(Marks._fields)), np.nan)
        failures: list[Exception] = []
        for index, image in enumerate(images):
            asked = self.rule.asked(prompts[index], metadata[index])
            if not asked:
                continue
            try:
                read = [[Line(*line) for line in self.engine(frame)] for frame in (image[::EVERY] if video else [image])]
            except Exception as error:
                failures.append(error)
                continue
            frames = np.array([self.rule.marks(lines, asked, video) for lines in read])
            marks[index] = [self.rule.pool(frames[:, 0]), *frames[:, 1:].mean(0)]
        if failures:
            first = f"{type(failures[0]).__name__}: {failures[0]}"
            warnings.warn(f"reward ocr could not read {len(failures)} of {len(prompts)} images; the first: {first}", stacklevel=2)
        return Detailed(marks[:, 0], dict(zip(Marks._fields[1:], marks.T[1:], strict=True)))


def ocr(variant: str | None = None, engine: Engine | None = None) -> Ocr:
    """How well the text in an image is the text asked for, in [0, 1]; NaN where none is asked for (`quotes.targets`).

    With t the texts asked for and r all that was read with confidence 0.5 or more, both without case, white space and typography:
    1 - min lev(t, r) / max(|t|, |r|), the least over the orders t may stand in (any, for up to four texts) and the orders r may be
    read in (by rows, by columns). So each missing, wrong or further character costs alike: a text written twice has 1/2, written
    ten times 1/10. 0 says that what was read has nothing of it, or that nothing was read, which is a score; NaN that the engine
    raised. Of a video the mean over each fourth frame.
    Parts: exact, found (further text is free) and extra, see `Marks`.

    variant: "flow_grpo", which is `flow_grpo`;  engine: anything that reads an image, `rapid()` if none is given.

    Raises: ValueError for another variant, or metadata whose text is none; see `rapid` for its own.

    Source: Flow-GRPO (2505.05470) section 4 has max(1 - lev / |t|, 0).
    Differs: from it, in that text beyond what was asked for always costs, though the scene may have use for it.
    """
    rules = {None: STRICT, "flow_grpo": FLOW_GRPO}
    if variant not in rules:
        raise ValueError(f"reward ocr has no variant {variant!r}; write ocr or ocr:flow_grpo")
    return Ocr(engine or rapid(), rules[variant])


def agreement(lines: Sequence[Line], asked: list[str], video: bool = False) -> Marks:
    """The formula of `ocr` for one image or frame. asked: at least one text."""
    del video
    wanted = [normal(text) for text in asked]
    readings = {_read(order) for order in orders([line for line in lines if line.confidence >= LEGIBLE])}
    length, shown = sum(map(len, wanted)), max(map(len, readings))
    arranged = set(itertools.permutations(wanted)) if len(wanted) <= FREE else {tuple(wanted)}
    distance = min(levenshtein("".join(texts), read) for texts in arranged for read in readings)
    missing = sum(min(within(text, read) for read in readings) for text in wanted)
    return Marks(
        1 - distance / max(length, shown), float(distance == 0), 1 - missing / length, max(shown - length, 0) / max(shown, 1)
    )


def flow_grpo(lines: Sequence[Line], asked: list[str], video: bool = False) -> Marks:
    """1 - min(lev(r, t), |t|) / |t|, with lev 0 where t is part of r, except in a video's frame.

    r: the lines of confidence above 0 in the engine's own order;  t: the only text asked for; both without spaces, in lower case.

    Source: yifan123/flow_grpo `flow_grpo/ocr.py::OcrScorer`, `OcrScorer_video_or_image`.
    Differs: they read with PaddleOCR 2.9.1; an image it fails on has 0 there and NaN here.
    """
    read = "".join(line.text for line in lines if line.confidence > 0).replace(" ", "").lower()
    text = asked[0].replace(" ", "").lower()
    distance = 0 if text in read and not video else min(levenshtein(read, text), len(text))
    extra = max(len(read) - len(text), 0) / max(len(read), 1)
    return Marks(1 - distance / len(text), float(read == text), 1 - within(text, read) / len(text), extra)


def _between(prompt: str, metadata: Metadata) -> list[str]:
    """What follows the first straight double quote, up to the second; metadata has no say."""
    del metadata
    return [text for text in prompt.split('"')[1:2] if text.replace(" ", "")]


def _positive(values: np.ndarray) -> float:
    """Mean of what is above 0; 0 where nothing is."""
    return float(values[values > 0].mean()) if (values > 0).any() else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _read(lines: Sequence[Line]) -> str:
    return "".join(normal(line.text) for line in lines)


STRICT = Rule(targets, agreement, _mean)
FLOW_GRPO = Rule(_between, flow_grpo, _positive)
