"""Held-out numbers: intervals that cover, gains that are paired, and NaN that is never 0."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowrl.evaluate import gain, summarise

NAN = float("nan")


def test_scores_are_means_over_captions() -> None:
    found = summarise([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], ["a", "b", None], seed=0)
    assert (found["score"], found["n"]) == (0.5, 3)
    assert {name: (t["score"], t["n"]) for name, t in found["tasks"].items()} == {"a": (0.5, 1), "b": (1.0, 1)}
    assert 0.0 <= found["low"] <= 0.5 <= found["high"] <= 1.0


def test_nan_is_left_out_and_never_counts_as_zero() -> None:
    found = summarise([[1.0, NAN], [1.0, 1.0], [NAN, NAN]], ["a", "a", "b"], seed=0)
    assert [found[k] for k in ("score", "low", "high", "n")] == [1.0, 1.0, 1.0, 2]
    assert found["tasks"]["b"]["n"] == 0 and math.isnan(found["tasks"]["b"]["score"])


def test_a_caption_weighs_the_same_however_many_of_its_images_are_valid() -> None:
    assert summarise([[1.0, NAN, NAN], [0.0, 0.0, 0.0]], [None, None], seed=0)["score"] == 0.5


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    tasks = ["a", "b"] * 25
    assert summarise(values, tasks, seed=1) == summarise(values, tasks, seed=1)
    assert summarise(values, tasks, seed=1)["low"] != summarise(values, tasks, seed=2)["low"]


def test_a_tasks_interval_depends_on_its_own_captions_only() -> None:
    values = np.random.default_rng(0).normal(size=(60, 2))
    alone = summarise(values[:30], ["a"] * 30, seed=3)["tasks"]["a"]
    assert alone == summarise(values, ["a"] * 30 + ["b"] * 30, seed=3)["tasks"]["a"]


def test_the_interval_is_the_normal_one_where_that_holds() -> None:
    """Many captions: the half width is 1.96 std / sqrt(n); images of one caption do not count as independent."""
    rng = np.random.default_rng(0)
    means = rng.normal(2.0, 1.0, (2000, 1))
    found = summarise(np.repeat(means, 8, axis=1), [None] * 2000, seed=0)
    half = 1.96 * means.std() / math.sqrt(2000)
    # 4000 resamples put a quantile within about 4 % of the half width.
    assert found["low"] == pytest.approx(means.mean() - half, abs=0.08 * half)
    assert found["high"] == pytest.approx(means.mean() + half, abs=0.08 * half)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        ability = rng.beta(2, 2, (80, 1))
        values = (rng.random((80, 4)) < ability).astype(float)
        found = summarise(values, [None] * 80, seed=trial)
        hits += found["low"] <= 0.5 <= found["high"]
    # 95 % of 300 is 285, binomial std 3.8; a percentile bootstrap of 80 captions is a little short of nominal.
    assert 270 <= hits <= 298


def test_many_captions_are_resampled_in_blocks_to_the_same_law() -> None:
    means = np.random.default_rng(0).normal(size=(9000, 1))
    found = summarise(means, [None] * 9000, seed=0)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * means.std() / math.sqrt(9000), rel=0.08)


def test_gain_is_paired_with_the_closed_form_error() -> None:
    before = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    after = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    found = gain(before, after)
    # Differences of the caption means are 1/2, 1/2, 0, 0: mean 1/4, sample variance 1/12.
    assert set(found) == {"score", "standard_error", "low", "high"}
    assert found["score"] == 0.25
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 12 / 4), rel=1e-12)
    assert found["high"] - found["score"] == pytest.approx(1.959964 * found["standard_error"], rel=1e-6)
    assert found["score"] - found["low"] == pytest.approx(1.959964 * found["standard_error"], rel=1e-6)


def test_a_gain_common_to_all_captions_is_certain_however_captions_differ() -> None:
    before = np.arange(10.0)[:, None].repeat(3, axis=1)
    found = gain(before, before + 0.5)
    assert (found["score"], found["standard_error"]) == (0.5, 0.0)


def test_gain_uses_captions_scored_in_both() -> None:
    found = gain([[0.0, NAN], [NAN, NAN], [1.0, 1.0], [0.0, 0.0]], [[1.0], [1.0], [NAN], [0.0]])
    assert found["score"] == 0.5 and found["standard_error"] == pytest.approx(0.5)


def test_gain_by_task() -> None:
    found = gain([[0.0], [0.0], [1.0]], [[1.0], [0.0], [1.0]], ["a", "a", "b"])
    assert found["tasks"]["a"]["score"] == 0.5 and found["tasks"]["b"]["score"] == 0.0
    assert math.isnan(found["tasks"]["b"]["standard_error"])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: summarise([[NAN, NAN]], ["a"], 0), "None of the 2 held-out images could be scored"),
        (lambda: summarise([0.5, 0.5], ["a", "a"], 0), r"shape \(2,\), expected \[captions, images\]"),
        (lambda: summarise(np.zeros((3, 0)), [None] * 3, 0), r"shape \(3, 0\)"),
        (lambda: summarise([[math.inf]], [None], 0), "hold an infinity"),
        (lambda: summarise([[0.5]], ["a", "b"], 0), "got 1 captions but 2 tasks"),
        (lambda: gain([[0.5]], [[0.5], [0.5]]), "1 captions before and 2 after"),
        (lambda: gain([[NAN]], [[0.5]]), "No caption could be scored both before and after"),
        (lambda: gain([[0.5]], [[0.5]], []), "got 1 captions but 0 tasks"),
    ],
)
def test_what_makes_no_number_is_refused_in_a_sentence(act: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        act()  # type: ignore[operator]
