"""GenEval as a reward: a rule, a detector, and who says what colour things have."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from flowrl.rewards.forms import Detailed, Metadata
from flowrl.rewards.place import Place

from .colours import Colours, PixelColours, clip_colours
from .objects import OFFICIAL, Detections, Detector, Limits
from .rules import Task, Verdict, judge, read

RULES = {"soft": "soft", "official": "correct", "flow_grpo": "flow_grpo"}
"""rule -> the part that is the score."""
DETECTORS = ("mask2former", "yolox")
FILE = "FLOWRL_YOLOX"
CHUNK = 64  # pictures whose masks are held at once


@dataclass(frozen=True)
class GenEval:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> N scores and the parts correct, strict, soft. Built by `geneval`.

    Prompts are not read: metadata says what they ask for. Metadata that cannot be read is NaN, and warned of once for each fault.
    Of a video the mean over its frames. limits: the official ones; others are part of the name.
    """

    rule: str
    detector: Detector
    colours: Colours
    limits: Limits = OFFICIAL

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            near = difflib.get_close_matches(self.rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RULES)}"
            raise ValueError(f"reward geneval has no rule {self.rule!r}; {hint}")

    @property
    def name(self) -> str:
        """geneval:RULE@DETECTOR, and the colours and limits that are not the official ones."""
        colours = "" if self.colours.name == "clip" else f"+{self.colours.name}"
        pairs = [(f.name, getattr(self.limits, f.name)) for f in fields(self.limits)]
        limits = "".join(f",{name} {value:g}" for name, value in pairs if value != getattr(OFFICIAL, name))
        return f"geneval:{self.rule}@{self.detector.name}{colours}{limits}"

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        del prompts
        tasks = [_read(one) for one in metadata]
        frames = images[:, None] if images.ndim == 4 else images
        told = np.full((len(tasks), frames.shape[1], 4), np.nan)
        asked = [(i, t) for i, task in enumerate(tasks) if task is not None for t in range(frames.shape[1])]
        for start in range(0, len(asked), CHUNK):
            places = asked[start : start + CHUNK]
            pictures = np.stack([frames[place] for place in places])
            for (i, t), picture, found in zip(places, pictures, self.detector(pictures), strict=True):
                verdict = self._judge(tasks[i], picture, found)
                told[i, t] = verdict.correct, verdict.strict, verdict.soft, verdict.flow_grpo
        parts: dict[str, np.ndarray] = dict(zip(("correct", "strict", "soft", "flow_grpo"), told.mean(1).T, strict=True))
        return Detailed(parts[RULES[self.rule]], {name: parts[name] for name in ("correct", "strict", "soft")})

    def _judge(self, task: Task | None, picture: np.ndarray, found: Detections) -> Verdict:
        assert task is not None  # only readable metadata is asked for
        return judge(task, found, lambda things, kind: self.colours(picture, things, kind), self.limits)


class Choice(NamedTuple):
    """What a variant asks for; weights, model: None for the default."""

    rule: str
    detector: str
    weights: str | None
    colours: str
    model: str | None


def geneval(variant: str | None = None, place: Place | None = None) -> GenEval:
    """GenEval's judgement of each image as a reward.

    variant: "[RULE][@DETECTOR][+COLOURS]", such as "soft", "official@mask2former" or "soft@yolox:yolox_nano.onnx+hsv".
    RULE: soft (default), the share of what was asked for, in [0, 1]; official, 1 where the evaluator says correct, else 0;
    flow_grpo, their own soft score, at most 1, negative where objects are far too many, and 1/2 for a relation that fails.
    DETECTOR: mask2former (default; wants a GPU), or mask2former:REPOSITORY or :FOLDER; yolox:FILE.onnx, or yolox with the file
    named by the environment variable FLOWRL_YOLOX.
    COLOURS: clip (default; open_clip's ViT-L-14 of OpenAI), or clip:MODEL as the reward clip names models; hsv, which counts pixels
    and needs no weights.

    The reward's name says what judged: rule, detector with its weights, and colours other than the official ones.
    The parts correct, strict and soft are always told. `rules.judge` has the rules, `aggregate.overall` the benchmark's number.

    Raises: ValueError for a variant that cannot be read; what the detector's and classifier's own loading raises.

    Source: GenEval (2310.11513); djghosh13/geneval@16f1681; yifan123/reward-server@7131478 for flow_grpo's soft score.
    Differs: the detector, see `mask2former.mask2former`; numbers of different detectors must not be compared. soft clamps each term
    at 0 and gives a failed relation 0, flow_grpo as theirs. Their per-task dictionaries with -10 for other tasks are not made.
    """
    choice = parse(variant or "")
    if choice.detector == "yolox":
        from .yolox import yolox

        detector: Detector = yolox(choice.weights or _file())
    else:
        from .mask2former import mask2former

        detector = mask2former(choice.weights, place)
    return GenEval(choice.rule, detector, PixelColours() if choice.colours == "hsv" else clip_colours(choice.model, place))


def parse(variant: str) -> Choice:
    """Read "[RULE][@DETECTOR[:WEIGHTS]][+COLOURS[:MODEL]]".

    Raises: ValueError for an unknown rule, detector or classifier of colours.
    """
    end = re.search(r"\+(clip|hsv)(?::(.+))?$", variant)
    head = variant[: end.start()] if end else variant
    colours, model = (end[1], end[2]) if end else ("clip", None)
    rule, at, rest = head.partition("@")
    detector, _, weights = rest.partition(":")
    if rule and rule not in RULES:
        near = difflib.get_close_matches(rule, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RULES)}."
        raise ValueError(f"reward geneval has no rule {rule!r}; {hint} It is written geneval:RULE@DETECTOR+COLOURS")
    if at and detector not in DETECTORS:
        raise ValueError(
            f"reward geneval has no detector {detector!r}; there are mask2former, mask2former:FOLDER and yolox:FILE.onnx"
        )
    if colours == "hsv" and model:
        raise ValueError(f"reward geneval: hsv has no models, but {variant!r} asks for {model!r}; write +hsv")
    return Choice(rule or "soft", detector or DETECTORS[0], weights or None, colours, model)


def _file() -> str:
    file = os.environ.get(FILE, "")
    if not file:
        raise ValueError(f"reward geneval@yolox has no file; write geneval:soft@yolox:FILE.onnx, or set {FILE}")
    return file


def _read(metadata: Metadata) -> Task | None:
    try:
        return read(metadata)
    except ValueError as error:
        # the same text is shown once: Python's own filter
        warnings.warn(f"reward geneval: {error}; images of such prompts are not scored", stacklevel=3)
        return None
