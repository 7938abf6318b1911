"""Forms of reward functions: what they see, what they say, and that answers are kept by content."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowrl import rewards
from flowrl.rewards import Detailed, Place, RewardError, Samples, cached, groupwise, referenced
from flowrl.rewards.place import batched


def samples(
    prompts: int = 2, leaves: int = 4, rival: list[int] | None = None, scored: Any = None, references: Any = None
) -> Samples:
    """Every image is filled with its own number, prompt-major."""
    number = torch.arange(prompts * leaves, dtype=torch.uint8).view(prompts, leaves, 1, 1, 1)
    return Samples(
        number.expand(prompts, leaves, 2, 3, 3).clone(), [f"p{i}" for i in range(prompts)], [{"at": i} for i in range(prompts)],
        torch.ones(prompts, leaves, dtype=torch.bool) if scored is None else scored,
        torch.tensor(rival or [0] * leaves), references,
    )  # fmt: skip


def level(images: np.ndarray) -> list[float]:
    return [float(image.mean()) for image in images]


def test_a_groupwise_function_meets_one_prompt_and_one_rival_class_at_a_time() -> None:
    seen: list[tuple[str, list[float], int]] = []

    def compare(images: np.ndarray, prompt: str, metadata: dict[str, Any]) -> list[float]:
        seen.append((prompt, level(images), metadata["at"]))
        return [float(np.sum(images[i].mean() > images.mean((1, 2, 3)))) for i in range(len(images))]

    made = rewards.make(groupwise(compare))
    scores, _ = made(samples(rival=[0, 1, 1, 0]), made.init())
    assert seen == [("p0", [0, 3], 0), ("p0", [1, 2], 0), ("p1", [4, 7], 1), ("p1", [5, 6], 1)]
    assert scores.values.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]] and made.name == "compare"


def test_a_groupwise_function_sees_no_leaf_of_another_process() -> None:
    scored = torch.tensor([[True, False, True, True], [False] * 4])
    made = rewards.make(groupwise(lambda images, prompt, metadata: level(images)))
    scores, state = made(samples(scored=scored), made.init())
    assert scores.valid.equal(scored) and scores.values[scored].tolist() == [0, 2, 3] and state == {"scored": 3, "failed": 0}


def test_a_groupwise_function_that_returns_too_few_numbers_is_named() -> None:
    made = rewards.make(groupwise(lambda images, prompt, metadata: [1.0]), "few")
    with pytest.raises(RewardError, match=r"'few' failed on 8 images.*\[1\] numbers for a group of 4"):
        made(samples(), made.init())


def test_a_referenced_function_is_told_each_images_references() -> None:
    one, two = np.full((4, 5, 3), 9, np.uint8), np.zeros((2, 2, 3), np.uint8)

    def nearest(images: Any, prompts: Any, metadata: Any, references: list[list[np.ndarray]]) -> list[float]:
        return [
            math.nan if not given else min(abs(image.mean() - r.mean()) for r in given)
            for image, given in zip(images, references, strict=True)
        ]

    made = rewards.make(referenced(nearest))
    with pytest.warns(UserWarning, match="could not score 4 of 8"):
        scores, _ = made(samples(references=[[one, two], []]), made.init())
    assert scores.values[0].tolist() == [0, 1, 2, 3] and not scores.valid[1].any()
    with pytest.raises(ValueError, match="references for 1 of 2 prompts"):
        samples(references=[[one]])


def test_parts_are_named_and_lie_where_the_scores_do() -> None:
    scored = torch.tensor([[True, False], [True, True]])

    def told(images: np.ndarray, prompts: Any, metadata: Any) -> Detailed:
        return Detailed(level(images), {"half": [value / 2 for value in level(images)], "none": [None] * len(images)})

    made = rewards.make(told)
    scores, _ = made(samples(leaves=2, scored=scored), made.init())
    assert scores.parts["half"][scored].tolist() == [0, 1, 1.5] and scores.parts["none"].isnan().all()
    whole = rewards.total({"told": scores}, {"told": 2.0})
    assert set(whole.parts) == {"told", "told/half", "told/none"}


class Counter:
    """Level of an image; counts the images it was asked for. 255 it cannot score."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
        self.asked += len(images)
        values = [
            math.nan if image.max() == 255 else float(image.mean()) + len(p) for image, p in zip(images, prompts, strict=True)
        ]
        return Detailed(values, {"prompt": [len(p) for p in prompts]})


@given(st.lists(st.tuples(st.integers(0, 254), st.sampled_from(["a", "bb"])), min_size=1, max_size=12))
def test_a_cache_changes_no_score_and_asks_once_for_each_image_and_prompt(rows: list[tuple[int, str]]) -> None:
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value, _ in rows])
    prompts, metadata = [text for _, text in rows], [{} for _ in rows]
    plain, counted = Counter()(images, prompts, metadata), Counter()
    kept = cached(counted)
    for _ in range(2):
        told = kept(images, prompts, metadata)
        assert told.values == plain.values and list(told.parts["prompt"]) == list(plain.parts["prompt"])
    assert counted.asked == len(set(rows))


def test_a_cache_asks_again_for_what_could_not_be_scored_and_forgets_the_oldest() -> None:
    def ask(value: int, **metadata: int) -> float:
        return kept(np.full((1, 2, 2, 3), value, np.uint8), [""], [dict(metadata)]).values[0]

    counted = Counter()
    kept = cached(counted, 2)
    assert math.isnan(ask(255)) and math.isnan(ask(255)) and counted.asked == 2
    assert [ask(1), ask(2), ask(1, seen=1), ask(2), ask(1)] == [1, 2, 1, 2, 1] and counted.asked == 6
    assert len(kept.held) == 2
    with pytest.raises(ValueError, match="size is 0"):
        cached(counted, 0)


def test_images_of_other_shapes_with_the_same_bytes_are_not_the_same() -> None:
    counted = Counter()
    kept = cached(counted)
    kept(np.zeros((1, 2, 3, 3), np.uint8), [""], [{}])
    kept(np.zeros((1, 3, 2, 3), np.uint8), [""], [{}])
    assert counted.asked == 2


def test_a_place_freezes_the_network_and_keeps_it_out_of_autocast() -> None:
    housed = Place(batch=3).house(nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(), batch=64)
    assert housed.batch == 3 and not housed.model.training and not any(p.requires_grad for p in housed.model.parameters())
    with torch.autocast("cpu", torch.bfloat16), housed.ready() as model:
        assert model(torch.ones(2, 4)).dtype == torch.float32
    assert next(Place(dtype="bfloat16").house(nn.Linear(2, 2)).model.parameters()).dtype == torch.bfloat16
    assert next(Place(offload=True, device="meta").house(nn.Linear(2, 2)).model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("keyword", "words"), [({"batch": 0}, "batch is 0"), ({"dtype": "int8"}, "dtype is 'int8'; give one of")])
def test_a_place_that_cannot_be_is_refused(keyword: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Place(**keyword)


@given(st.integers(1, 40), st.integers(1, 50))
def test_batches_cover_all_rows_in_order(count: int, size: int) -> None:
    cuts: list[slice] = []

    def call(cut: slice) -> torch.Tensor:
        cuts.append(cut)
        return torch.arange(cut.start, cut.stop)

    assert batched(call, count, size).tolist() == list(range(count)) and max(c.stop - c.start for c in cuts) <= size
    with pytest.raises(ValueError, match="nothing to score"):
        batched(call, 0, size)


def test_what_waits_is_known_through_every_form() -> None:
    class Far:
        waits = True

        def __call__(self, *told: Any) -> list[float]:
            return []

    for made in (Far(), cached(Far()), groupwise(Far()), referenced(Far())):
        assert rewards.make(made, "far").waits  # pyright: ignore[reportAttributeAccessIssue]
    assert not rewards.make(cached(Counter()), "near").waits  # pyright: ignore[reportAttributeAccessIssue]
