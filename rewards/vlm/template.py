"""Templates: what a judge is shown and asked, and how its answer is read. Data, in templates.yaml or a file of yours."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .read import READERS

SHOWN = ("image", "pair", "reference")
WEIGHED = ("yes", "digits", "checklist")
"""Answers read from the probabilities of the first token instead of from text."""


@dataclass(frozen=True)
class Template:
    """One way of asking.

    shown: "image"; "pair" (Image 1, Image 2); "reference" (the reference first, then the image).
    answer: "yes": P(yes) of the first token; "digits": its expected digit; "checklist": P(yes) of each question in
    metadata["questions"]; or the name of a reader of text (`read.READERS`).
    text: with {prompt}, or {question}; braces that are meant are doubled.
    axes: name of each part -> the label its number stands behind, in order.
    low, high: of the grades; the score is grade / high.  join: how parts make the score, their "mean" or the "least".
    aspects: weight of the parts' own win rates beside the verdict's (pairs).  hard: an answer counts 1 or 0 instead of P(yes).
    tokens: the longest answer.

    Raises: ValueError for a field that does not fit.
    """

    name: str
    text: str
    shown: str = "image"
    answer: str = "yes"
    axes: Mapping[str, str] = field(default_factory=dict[str, str])
    low: float = 0.0
    high: float = 1.0
    join: str = "mean"
    aspects: float = 0.0
    hard: bool = False
    tokens: int = 512
    about: str = ""

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.shown, SHOWN, "shown"),
            (self.answer, (*WEIGHED, *READERS), "answer"),
            (self.join, ("mean", "least"), "join"),
        ):
            if value not in known:
                raise ValueError(f"template {self.name!r} has {what}: {value!r}; give one of {', '.join(known)}")
        if self.answer == "digits" and not (self.low.is_integer() and self.high.is_integer() and 0 <= self.low < self.high <= 9):
            raise ValueError(
                f"template {self.name!r} asks for digits from {self.low:g} to {self.high:g}; a grade of one token is 0 to 9"
            )
        if not self.low < self.high or self.high <= 0:
            raise ValueError(f"template {self.name!r} has grades from {self.low:g} to {self.high:g}; give low < high, high > 0")
        if self.tokens < 1:
            raise ValueError(f"template {self.name!r} allows answers of {self.tokens} tokens; give at least 1")
        if self.answer == "checklist" and self.shown != "image":
            raise ValueError(f"template {self.name!r} is a checklist of {self.shown!r}; a checklist is of one image")
        try:
            self.filled("a prompt", "a question")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template {self.name!r} has a text with {error} in braces; write {{prompt}} or {{question}}, double other braces"
            ) from None

    @property
    def compares(self) -> bool:
        """Whether it can say which of two images is better."""
        return self.shown == "pair" or (self.shown == "reference" and self.answer == "yes")

    def filled(self, prompt: str, question: str = "") -> str:
        # a prompt may hold braces itself: they are not read again
        return self.text.format(prompt=prompt, question=question).strip()


def template(name: str) -> Template:
    """A template by its name in templates.yaml, or of a file.yaml that holds the fields of one.

    Raises: ValueError for an unknown name, an unknown field or one that does not fit; FileNotFoundError for a missing file.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"template {name!r}: there is no such file (looked in {Path.cwd()})")
        return _read(path.stem, yaml.safe_load(path.read_text(encoding="utf-8")))
    known = templates()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)};"
        raise ValueError(f"there is no template {name!r}; {hint} your own is a file.yaml")
    return known[name]


@cache
def templates() -> Mapping[str, Template]:
    """All that come with flowrl."""
    text = importlib.resources.files(__name__.rpartition(".")[0]).joinpath("templates.yaml").read_text(encoding="utf-8")
    return {name: _read(name, values) for name, values in yaml.safe_load(text).items()}


def _read(name: str, values: Any) -> Template:
    if not isinstance(values, dict) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"template {name!r} is {type(values).__name__}; give a mapping of {', '.join(_kinds())}")
    given: dict[str, Any] = {}
    for key, value in values.items():
        kind = _kinds().get(key)
        if kind is None:
            near = difflib.get_close_matches(str(key), _kinds(), n=2)
            raise ValueError(f"template {name!r} has no field {key!r}; did you mean {' or '.join(near) or ', '.join(_kinds())}?")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"template {name!r} has {key}: {value!r}; give a {kind.__name__}")
        given[key] = value
    if "text" not in given:
        raise ValueError(f"template {name!r} asks nothing; give it a text")
    return Template(name, **given)


def _kinds() -> dict[str, type]:
    kinds: dict[str, type] = {"str": str, "float": float, "bool": bool, "int": int}
    return {f.name: kinds.get(str(f.type), dict) for f in fields(Template) if f.name != "name"}
