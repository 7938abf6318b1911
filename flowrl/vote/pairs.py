"""What is asked: which images of a prompt are set side by side, and in which order. Pure functions of the images and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path

from flowrl import data
from flowrl.rewards.votes.book import Shown, content, pixels

SIDES = ("before", "after")


@dataclass(frozen=True)
class Picture:
    """An image of a prompt. pair: what an image before and one after have in common, None outside of runs."""

    prompt: str
    shown: Shown
    pair: str | None = None


@dataclass(frozen=True)
class Question:
    """Images of one prompt to be compared."""

    prompt: str
    images: tuple[Shown, ...]

    @property
    def asked(self) -> tuple[str, frozenset[str]]:
        """What is asked, whatever the order: equals `Vote.question`."""
        return self.prompt, frozenset(image.content for image in self.images)

    def turned(self, seed: int, voter: str) -> Question:
        """With its images from left to right as this voter sees them: a keyed hash decides, so no side is favoured."""
        return Question(self.prompt, tuple(sorted(self.images, key=lambda i: _draw(seed, voter, self.prompt, i.content))))

    def key(self, seed: int) -> str:
        """32 hex digits for what is asked under a seed."""
        return _draw(seed, self.prompt, *sorted(image.content for image in self.images))


def pictures(folder: Path, prompt: str | None = None) -> list[Picture]:
    """The images of a run (samples/index.jsonl), or of a folder of images with prompts as `flowrl score` takes it.

    Raises: ValueError, FileNotFoundError where there are none that can be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a run's folder, or one of images with prompts")
    index = folder / "samples" / "index.jsonl"
    if index.is_file():
        return _run(folder, index)
    if (folder / "run.yaml").is_file():
        raise FileNotFoundError(f"{folder} is a run without images to compare: it has no {index.relative_to(folder)}")
    prompts = data.read(folder, prompt)
    if None in prompts.images:
        raise ValueError(f"{folder} holds prompts without images; give images with metadata.jsonl, or with name.txt beside each")
    files = [(text, file, None, None) for text, file in zip(prompts.text, prompts.images, strict=True) if file is not None]
    return _read(folder, files)


def facing(found: Sequence[Picture]) -> tuple[list[list[Question]], int]:
    """(for each prompt its pairs of one image before and the one after of the same noise, how many pairs are the same to the pixel
    and need no vote).

    Raises: ValueError if there is no pair.
    """
    by: dict[tuple[str, str], dict[str | None, Shown]] = {}
    for picture in found:
        if picture.pair is not None:
            by.setdefault((picture.prompt, picture.pair), {})[picture.shown.side] = picture.shown
    whole = [(prompt, both[SIDES[0]], both[SIDES[1]]) for (prompt, _), both in by.items() if set(SIDES) <= both.keys()]
    if not whole:
        raise ValueError("there are no images before and after training of the same prompt; compare images with --among")
    asked: dict[str, list[Question]] = {}
    for prompt, first, last in whole:
        question = Question(prompt, (first, last))
        if first.content != last.content and question.asked not in (q.asked for q in asked.get(prompt, [])):
            asked.setdefault(prompt, []).append(question)
    return list(asked.values()), sum(first.content == last.content for _, first, last in whole)


def among(found: Iterable[Picture], size: int, limit: int | None = None) -> list[list[Question]]:
    """For each prompt questions of `size` of its images, least seen and not yet compared ones first, until every two have met.

    limit: at most so many a prompt; None: two an image, which is all pairs of up to five images.

    Raises: ValueError if no prompt has two different images.
    """
    pools: dict[str, dict[str, Shown]] = {}
    for picture in found:
        pools.setdefault(picture.prompt, {}).setdefault(picture.shown.content, picture.shown)
    asked = [_rounds(prompt, list(pool.values()), size, limit or 2 * len(pool)) for prompt, pool in pools.items() if len(pool) > 1]
    if not asked:
        raise ValueError("no prompt has two different images to compare; give several images a prompt")
    return asked


def dealt(asked: Iterable[Sequence[Question]], seed: int) -> list[Question]:
    """All questions as they are asked: one of every prompt, then a second of every prompt; the seed shuffles the prompts."""
    shuffled = sorted(asked, key=lambda questions: _draw(seed, questions[0].prompt) if questions else "")
    return [question for turn in zip_longest(*shuffled) for question in turn if question is not None]


def _rounds(prompt: str, images: list[Shown], size: int, limit: int) -> list[Question]:
    unmet = {frozenset(two) for two in combinations((i.content for i in images), 2)}
    together = dict.fromkeys(unmet, 0)
    seen = {image.content: 0 for image in images}
    lot = {image.content: _draw(0, prompt, image.content) for image in images}
    found: list[Question] = []
    while unmet and len(found) < limit:
        waiting = {one for two in unmet for one in two}
        group = [min(waiting, key=lambda c: (seen[c], lot[c]))]
        while len(group) < min(size, len(images)):
            rest = [one for one in seen if one not in group]
            met = {c: sum(together[frozenset((c, other))] for other in group) for c in rest}
            group.append(min(rest, key=lambda c: (met[c], seen[c], lot[c])))
        for two in map(frozenset, combinations(group, 2)):
            together[two] += 1
            unmet.discard(two)
        for one in group:
            seen[one] += 1
        found.append(Question(prompt, tuple(image for image in images if image.content in group)))
    return found


def _run(folder: Path, index: Path) -> list[Picture]:
    found: dict[tuple[str, str], tuple[str, Path, str, str]] = {}
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            prompt, named = str(row["prompt"]), [(side, str(row[side]["file"])) for side in SIDES if side in row]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}, line {number}: not a row of a run's images; write it again or remove the line") from error
        for side, name in named:
            first = _inside(folder, name)
            # the index names the first image of a caption; the others lie beside it as CAPTION_1.png, CAPTION_2.png ...
            stem = first.stem.rpartition("_")[0] or first.stem
            for file in sorted({first, *first.parent.glob(f"{stem}_*{first.suffix}")}):
                if file.is_file():
                    found.setdefault((side, file.name), (prompt, file, side, file.name))
    if not found:
        raise FileNotFoundError(f"none of the images named in {index} is there")
    return _read(folder, found.values())


def _inside(folder: Path, name: str) -> Path:
    file = (folder / "samples" / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}/samples/index.jsonl names {name!r}, which is outside of the run's folder")
    return file


def _read(folder: Path, files: Iterable[tuple[str, Path, str | None, str | None]]) -> list[Picture]:
    home = folder.resolve()
    found = []
    for prompt, file, side, pair in files:
        path = file.resolve()
        name = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
        found.append(Picture(prompt, Shown(name, content(pixels(path)), side), pair))
    return found


def _draw(seed: int, *words: str) -> str:
    """A number in [0, 2^128) as 32 hex digits, the same everywhere."""
    text = json.dumps(words, ensure_ascii=True).encode()
    return hashlib.blake2b(text, digest_size=16, key=str(seed).encode()).hexdigest()
