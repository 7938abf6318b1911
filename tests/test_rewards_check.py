"""The check of a reward on drawn pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from flowrl import rewards
from flowrl.rewards import TABLE, specimens
from flowrl.rewards.check import check, kind_of


def knowing(sign: float = 1.0) -> Any:
    """Scores each drawn picture by whether it is the better one of its prompt, or as a reference image is like it."""

    def score(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        better = {(p.prompt, p.better.tobytes()) for draw in specimens.KINDS.values() for p in draw()}
        return [sign * ((prompt, image.tobytes()) in better) for image, prompt in zip(images, prompts, strict=True)]

    return score


@pytest.mark.parametrize("kind", specimens.KINDS)
def test_pairs_are_six_differ_and_are_the_same_each_time(kind: str) -> None:
    drawn, again = specimens.KINDS[kind](), specimens.KINDS[kind]()
    assert len(drawn) == 6 and len({pair.differ for pair in drawn}) == 6
    for one, two in zip(drawn, again, strict=True):
        assert one.better.shape == one.worse.shape == (256, 256, 3) and one.better.dtype == np.uint8
        assert not np.array_equal(one.better, one.worse) and np.array_equal(one.better, two.better)
        assert np.array_equal(one.worse, two.worse) and bool(one.references) == (kind == "reference")


@pytest.mark.parametrize("kind", specimens.KINDS)
def test_a_reward_that_knows_orders_all_and_its_opposite_none(kind: str) -> None:
    best = check(rewards.make(knowing(), "best"), kind=kind)
    worst = check(rewards.make(knowing(-1), "worst"), kind=kind)
    assert best.ordered == 6 and best.passed and worst.ordered == 0 and not worst.passed
    assert best.line.startswith(f"best: 6 of 6 {kind} pairs in order (") and "\n" not in best.line
    assert "NOT >" in worst.line and "torch 2." in best.line and "python 3." in best.line and "cpu, own dtype" in best.line


def test_ties_and_missing_scores_are_not_in_order() -> None:
    assert check(rewards.make(lambda images, prompts, metadata: [1.0] * len(images), "flat")).ordered == 0

    def half(images: np.ndarray, prompts: list[str], metadata: Any) -> list[float]:
        return [math.nan if i % 2 else 1.0 for i in range(len(images))]

    with pytest.warns(UserWarning, match="could not score 6 of 12"):
        assert check(rewards.make(half, "half")).ordered == 0


def test_a_groupwise_and_a_referenced_reward_see_their_pair_and_its_references() -> None:
    def compare(images: np.ndarray, prompt: str, metadata: Any) -> list[float]:
        assert len(images) == 2
        return [float(image.std() - images.std((1, 2, 3)).mean()) for image in images]

    assert len(check(rewards.make(rewards.groupwise(compare)), kind="quality").told) == 6

    def near(images: np.ndarray, prompts: Any, metadata: Any, references: list[list[np.ndarray]]) -> list[float]:
        return [-float(np.abs(i.astype(float) - r[0]).mean()) for i, r in zip(images, references, strict=True)]

    assert check(rewards.make(rewards.referenced(near)), kind="reference").passed


def test_the_kind_follows_the_name() -> None:
    kinds = {"aesthetic:v1": "quality", "pickscore:/26": "agreement", "similarity:clip": "reference", "ocr": "text"}
    assert {name: kind_of(name) for name in kinds} == kinds and kind_of("anything") == "agreement"
    with pytest.raises(ValueError, match="no pairs of kind 'odd'; give one of agreement, quality, reference, text"):
        check("clip", kind="odd")
    with pytest.raises(ValueError, match="there is no reward 'clop'"):
        check("clop")


@pytest.mark.evidence("real", "clip")
def test_the_embedded_clip_model_orders_the_drawn_shapes() -> None:
    found = check("clip")
    assert found.kind == "agreement" and found.ordered == 6, found.line


def test_the_table_tells_of_every_reward_here() -> None:
    for name in ("clipscore", "pickscore", "hpsv2", "hpsv2.1", "mps", "aesthetic", "similarity"):
        row = TABLE[name]
        assert row.licence and row.weights and row.memory and row.range and row.hacks and row.source and row.placed
