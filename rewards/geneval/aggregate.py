"""GenEval's numbers of many images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .words import TAGS, one_of


@dataclass(frozen=True)
class Overall:
    """tasks: tag -> share of its images that are correct, in GenEval's order, of the tags there are;  overall: their plain mean;
    images, prompts: share of images, and of prompts with at least one correct image;  invalid: images that could not be judged,
    which count nowhere."""

    tasks: dict[str, float]
    overall: float
    images: float
    prompts: float
    invalid: int


def overall(tags: Sequence[str], correct: Sequence[float] | np.ndarray, prompts: Sequence[Hashable]) -> Overall:
    """The benchmark's score: the unweighted mean over tasks of the share of correct images.

    tags, correct, prompts: of each image its task, 1 or 0 (NaN: could not be judged), and what tells its prompt from others (the
    text will do unless a prompt occurs twice). The official number wants all six tasks, four images of each of the 553 prompts.

    Raises: ValueError if lengths differ, for an unknown tag, a value that is neither 0, 1 nor NaN, or nothing that was judged.

    Source: djghosh13/geneval `evaluation/summary_scores.py`, which takes the mean over the tasks present and tells prompts apart by
    their metadata.
    """
    value = np.asarray(correct, dtype=np.float64)
    if not len(tags) == len(value) == len(prompts):
        raise ValueError(f"there are {len(tags)} tags, {len(value)} judgements and {len(prompts)} prompts; give one each an image")
    bad = value[~np.isnan(value) & (value != 0) & (value != 1)]
    if len(bad):
        raise ValueError(f"a judgement is {bad[0]:g}, neither 0 nor 1; give the part 'correct', not a soft score")
    judged = np.flatnonzero(~np.isnan(value)).tolist()
    if not judged:
        raise ValueError(f"none of {len(value)} images could be judged; see the reward's warning")
    by_tag: dict[str, list[float]] = {}
    by_prompt: dict[Hashable, list[float]] = {}
    for i in judged:
        by_tag.setdefault(one_of(tags[i], TAGS, "tag"), []).append(value[i])
        by_prompt.setdefault(prompts[i], []).append(value[i])
    tasks = {tag: float(np.mean(by_tag[tag])) for tag in TAGS if tag in by_tag}
    return Overall(
        tasks,
        float(np.mean(list(tasks.values()))),
        float(value[judged].mean()),
        float(np.mean([max(some) for some in by_prompt.values()])),
        len(value) - len(judged),
    )
