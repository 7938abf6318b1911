"""Does a reward work here? It is loaded, its weights key for key, and must order six drawn pairs of pictures."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import NamedTuple

import numpy as np
import torch

from . import specimens
from .base import Reward, Samples, knowing
from .names import make
from .place import Place

PACKAGES = ("torch", "transformers", "open_clip_torch", "pillow")
QUALITY = frozenset({"aesthetic", "deqa", "nsfw", "musiq"})
REFERENCE = frozenset({"similarity", "lpips", "gram", "style"})
TEXT = frozenset({"ocr"})
RULES = frozenset({"shapes", "shapes_video", "motion", "flicker", "jpeg_compressibility", "jpeg_incompressibility"})
"""Without weights, and not made for pictures like these."""


class Told(NamedTuple):
    """Scores of a pair. ordered: the better picture has the higher one, and both are scores."""

    differ: str
    better: float
    worse: float

    @property
    def ordered(self) -> bool:
        return self.better > self.worse


class Checked(NamedTuple):
    """What `check` found.  line: to be reported as it is."""

    name: str
    kind: str
    told: tuple[Told, ...]
    line: str

    @property
    def ordered(self) -> int:
        return sum(told.ordered for told in self.told)

    @property
    def passed(self) -> bool:
        return self.ordered == len(self.told)


def check(reward: str | Reward, place: Place | None = None, kind: str | None = None) -> Checked:
    """Loads a reward by its name (or takes one) and lets it score the pairs of its kind (`specimens.KINDS`), all at once: each pair
    is a prompt with two leaves in one rival class, so that rewards that compare see both.

    kind: None, by the reward's name; agreement where nothing is known of it.

    Raises: ValueError for an unknown kind, a rule that these pairs do not suit or a reward that learns; whatever loading and
    scoring raise.
    """
    place = place or Place()
    name = reward if isinstance(reward, str) else reward.name
    if kind is None and name.partition(":")[0] in RULES:
        raise ValueError(f"there is no check for the reward {name!r}: it is a rule without weights, which our tests check")
    kind = kind or kind_of(name)
    if kind not in specimens.KINDS:
        raise ValueError(f"there are no pairs of kind {kind!r}; give one of {', '.join(specimens.KINDS)}")
    made = knowing(make(reward, place=place))
    drawn = specimens.KINDS[kind]()
    scores, _ = made(_samples(drawn), made.init())
    values = torch.where(scores.valid, scores.values, torch.nan).tolist()
    told = tuple(Told(pair.differ, *both) for pair, both in zip(drawn, values, strict=True))
    return Checked(name, kind, told, _line(name, kind, told, place))


def kind_of(name: str) -> str:
    """The kind of pairs that suits a reward, by the word before its colon."""
    head = name.partition(":")[0]
    kinds = {"quality": QUALITY, "reference": REFERENCE, "text": TEXT}
    return next((kind for kind, heads in kinds.items() if head in heads), "agreement")


def _samples(drawn: tuple[specimens.Pair, ...]) -> Samples:
    pixels = np.stack([np.stack([pair.better, pair.worse]) for pair in drawn])
    return Samples(
        torch.from_numpy(pixels),
        [pair.prompt for pair in drawn],
        [{} for _ in drawn],
        torch.ones(len(drawn), 2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.long),
        [list(pair.references) for pair in drawn],
    )


def _line(name: str, kind: str, told: tuple[Told, ...], place: Place) -> str:
    pairs_told = "; ".join(f"{t.differ} {t.better:.4g} {'>' if t.ordered else 'NOT >'} {t.worse:.4g}" for t in told)
    versions = ", ".join([f"python {platform.python_version()}", *(f"{p} {_version(p)}" for p in PACKAGES)])
    where = f"{place.device.partition(':')[0]}, {place.dtype or 'own dtype'}"
    flowrl = _version("flowrl-toolkit")
    count = sum(t.ordered for t in told)
    return f"{name}: {count} of {len(told)} {kind} pairs in order ({pairs_told}); {where}; flowrl {flowrl}, {versions}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
