"""Votes as scores: of the images people saw, or of any image by what was learned from them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.rewards.contrastive.agreement import Agreement
from flowrl.rewards.contrastive.clip import clip
from flowrl.rewards.forms import Detailed
from flowrl.rewards.place import FRAMES, Place
from flowrl.rewards.videos import chosen

from . import head
from .book import Item, Vote, better, comparisons, content, locate, pixels, read
from .strength import strengths, win_rates

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> strengths [N], NaN for an image of a prompt that has no vote."""

    strength: Mapping[Item, float]
    rate: Mapping[Item, float]

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
        del metadata
        items = [(prompt, content(image)) for image, prompt in zip(images, prompts, strict=True)]
        rates = [self.rate.get(item, np.nan) for item in items]
        return Detailed([self.strength.get(item, np.nan) for item in items], {"win_rate": rates})


@dataclass(frozen=True)
class Preference:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> log odds float64 [N]. Built by `learned`."""

    encoder: Agreement
    found: head.Learned

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
        del metadata
        return _features(self.encoder, images, prompts)[0] @ self.found.weight


def known(variant: str | None = None) -> Known:
    """Bradley-Terry strength in log odds of each image that people compared, by the content of its pixels and its prompt.

    Part "win_rate": the share of its comparisons it won, ties as half. Images of different prompts were never compared, so only
    differences within a prompt mean anything; every prompt's mean is 0 if its images are connected by comparisons.

    variant: a book of votes, or the folder that holds votes.jsonl.

    Raises: ValueError without a variant, or where the book compares nothing; FileNotFoundError if there is no book.
    """
    if variant is None:
        raise ValueError("reward votes-known needs a book of votes: votes-known:RUN or votes-known:FILE")
    wins = comparisons(read(locate(variant)))
    return Known(strengths(wins), win_rates(wins))


def learned(variant: str | None = None, place: Place | None = None) -> Preference:
    """What people prefer, learned from votes: a Bradley-Terry head on frozen CLIP features of image and prompt, see `head.fit`.

    How well it does on prompts it was not fitted on is logged, and warned of where it may be chance. Differences within a prompt
    are log odds of being preferred; the zero means nothing. Features of a video are the mean over 8 frames.

    variant: a book of votes or the folder that holds votes.jsonl; with "@MODEL" behind it, features of another CLIP, named as in
    `contrastive.clip`. The images must lie where they were voted on.

    Raises: ValueError without a variant, or where nothing can be learned; FileNotFoundError if there is no book.
    """
    if variant is None:
        raise ValueError("reward votes needs a book of votes: votes:RUN or votes:FILE, with @MODEL for another CLIP")
    name, model = (variant, None) if Path(variant).exists() or "@" not in variant else variant.split("@", 1)
    book = locate(name)
    encoder = clip(model, place)
    found = head.learn(pairs(read(book), book.parent, encoder))
    _log.info("votes: %s", told(found))
    if not found.heldout.low > 0.5:
        warnings.warn(
            f"reward votes:{variant} may have learned nothing: {told(found)}; collect more votes with flowrl vote", stacklevel=2
        )
    return Preference(encoder, found)


def told(found: head.Learned) -> str:
    """What a head is worth, as a sentence."""
    held, plain = found.heldout, found.plain
    if not held.n:
        return "votes on one prompt cannot show whether they can be learned; vote on more prompts"
    return (
        f"on prompts it did not learn from, the head agrees with {held.rate:.0%} of {held.n} choices "
        f"(95 % interval {held.low:.0%} to {held.high:.0%}); CLIP's cosine alone agrees with {plain.rate:.0%}, chance with 50 %"
    )


def pairs(votes: list[Vote], folder: Path, encoder: Agreement) -> head.Pairs:
    """The comparisons of votes with the features of their images, which are read from `folder`.

    Images that are gone or have changed since are left out with a warning.

    Raises: ValueError if none is left.
    """
    where = {(v.prompt, i.content): i.file for v in votes for i in v.images}
    row: dict[Item, int] = {}
    seen: list[tuple[np.ndarray, float]] = []
    for item, file in sorted(where.items()):
        image = pixels(folder / file) if (folder / file).is_file() else None
        if image is not None and content(image) == item[1]:
            shown = image[chosen(len(image), FRAMES)] if image.ndim == 4 else image
            features, cosine = _features(encoder, shown[None], [item[0]])
            row[item] = len(seen)
            seen.append((features[0], float(cosine[0])))
    if len(row) < len(where):
        lost = len(where) - len(row)
        warnings.warn(f"{lost} of {len(where)} images voted on are gone or changed since; their votes are left out", stacklevel=3)
    compared = sorted(
        (vote.prompt, row[one], row[other], share)
        for vote in votes
        for i, j in ((i, j) for i in range(len(vote.images)) for j in range(i + 1, len(vote.images)))
        if (share := better(vote, i, j)) is not None
        and (one := (vote.prompt, vote.images[i].content)) in row
        and (other := (vote.prompt, vote.images[j].content)) in row
    )
    if not compared:
        raise ValueError(f"no vote is left that compares two images in {folder}; keep the images where they were voted on")
    first, second = [c[1] for c in compared], [c[2] for c in compared]
    table, cosine = np.stack([f for f, _ in seen]), np.array([c for _, c in seen])
    share = np.array([c[3] for c in compared])
    return head.Pairs(table[first] - table[second], share, [c[0] for c in compared], cosine[first] - cosine[second])


def _features(encoder: Agreement, images: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    picture, text = (part.double().numpy() for part in encoder.features(images, prompts))
    return head.features(picture, text), (picture * text).sum(1)
