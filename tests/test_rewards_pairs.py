"""Win rates: what comparisons are made, what becomes of those that fail, and that they train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyrun
import torch
from golden_reader import Case, load
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl import rewards
from flowrl.recipe import RewardSpec
from flowrl.recipes.run import train
from flowrl.rewards import Detailed, Samples
from flowrl.rewards.pairs.judge import scored
from flowrl.rewards.pairs.rates import blended, hardened, verdicts_of, win_rate
from flowrl.rewards.pairs.seats import schedule
from flowrl.rewards.pairs.winrate import champion, winrate

CODE = "Pref-GRPO@3e787f6"
quick = settings(deadline=None, max_examples=40)  # a shared machine may stall at any moment
LEVELS = st.lists(st.integers(0, 255), min_size=2, max_size=7, unique=True)


def filled(levels: list[int]) -> np.ndarray:
    """Images that are their own number."""
    return np.stack([np.full((2, 3, 3), level, np.uint8) for level in levels])


def level(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0, 0].astype(float)


def brighter(a: np.ndarray, b: np.ndarray, prompt: str) -> np.ndarray:
    """P(A is better) in [0.3, 0.7]."""
    return 0.5 + 0.2 * np.tanh((level(a) - level(b)) / 50)


def rates(made: Any, images: np.ndarray, prompt: str = "p") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Through the lifted reward, one prompt."""
    n = len(images)
    reward = rewards.make(made, "w")
    samples = Samples(torch.from_numpy(images)[None], [prompt], [{}], torch.ones(1, n).bool(), torch.zeros(n).long())
    scores, _ = reward(samples, reward.init())
    return scores.values[0].double().numpy(), {name: some[0].numpy() for name, some in scores.parts.items()}


@quick
@given(LEVELS, st.integers(1, 8) | st.none(), st.booleans(), st.randoms())
def test_win_rates_move_with_their_images(levels: list[int], opponents: int | None, both: bool, random: Any) -> None:
    order = list(range(len(levels)))
    random.shuffle(order)
    made = winrate(brighter, opponents, both)
    here, there = rates(made, filled(levels))[0], rates(made, filled([levels[i] for i in order]))[0]
    np.testing.assert_array_equal(here[order], there)


@quick
@given(LEVELS, st.integers(1, 8) | st.none(), st.booleans(), st.sampled_from([None, 0.0, 0.1]))
def test_win_rates_have_mean_one_half(levels: list[int], opponents: int | None, both: bool, margin: float | None) -> None:
    values, _ = rates(winrate(brighter, opponents, both, margin), filled(levels))
    assert values.mean() == pytest.approx(0.5, abs=1e-6) and values.min() >= 0 and values.max() <= 1


@quick
@given(LEVELS, st.sampled_from([None, 2, 4]))
def test_a_constant_liking_for_the_first_image_cancels_where_both_orders_are_asked(
    levels: list[int], opponents: int | None
) -> None:
    for liking in (0.3, -0.3):
        biased = rates(winrate(lambda a, b, p, x=liking: brighter(a, b, p) + x, opponents), filled(levels))[0]
        np.testing.assert_allclose(biased, rates(winrate(brighter, opponents), filled(levels))[0], atol=1e-6)


def test_asked_once_each_image_is_shown_first_as_often_as_second() -> None:
    images = filled([10, 90, 30, 200, 70])
    fair, biased = (winrate(lambda a, b, p, x=x: brighter(a, b, p) + x, both_orders=False) for x in (0.0, 0.3))
    np.testing.assert_allclose(rates(biased, images)[0], rates(fair, images)[0], atol=1e-6)
    # the published order does not have that: the first image of five is always shown first
    first = [rates(winrate(lambda a, b, p, x=x: brighter(a, b, p) + x, compat=CODE), images)[0][0] for x in (0.0, 0.3)]
    assert first[1] - first[0] == pytest.approx(0.3, abs=2e-3)


@quick
@given(LEVELS, st.floats(0.1, 5), st.floats(-3, 3))
def test_win_rates_by_score_do_not_see_its_scale(levels: list[int], slope: float, start: float) -> None:
    plain = scored(lambda images, prompts, metadata: level(images))
    bent = scored(lambda images, prompts, metadata: np.exp(slope * level(images) / 255) + start)
    values = rates(winrate(plain), filled(levels))[0]
    np.testing.assert_array_equal(values, rates(winrate(bent), filled(levels))[0])
    np.testing.assert_allclose(values, np.argsort(np.argsort(levels)) / (len(levels) - 1), atol=1e-6)


@pytest.mark.parametrize("opponents", [None, 1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("count", range(2, 10))
def test_every_image_meets_equally_many_others_and_is_first_as_often_as_second(count: int, opponents: int | None) -> None:
    pairs = schedule(count, opponents)
    met, first = np.bincount(pairs.ravel(), minlength=count), np.bincount(pairs[:, 0], minlength=count)
    wanted = min(opponents or count, count - 1)
    assert set(met) == {wanted + (wanted % 2 and count % 2)}
    assert np.abs(2 * first - met).max() <= 1
    assert (pairs[:, 0] != pairs[:, 1]).all() and len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)


@pytest.mark.parametrize(("opponents", "both", "asked"), [(None, True, 56), (None, False, 28), (2, True, 16), (3, False, 12)])
def test_a_judge_is_asked_so_often_and_no_more(opponents: int | None, both: bool, asked: int) -> None:
    seen: list[tuple[float, float]] = []

    def watch(a: np.ndarray, b: np.ndarray, prompt: str) -> np.ndarray:
        assert prompt == "p"
        seen.extend(zip(level(a), level(b), strict=True))
        return brighter(a, b, prompt)

    _, parts = rates(winrate(watch, opponents, both), filled(list(range(8))))
    assert len(seen) == len(set(seen)) == asked
    assert set(parts["comparisons"]) == {opponents or 7} and set(parts["unreadable"]) == {0}


def test_a_scored_judge_scores_each_image_once() -> None:
    seen: list[int] = []

    def score(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
        seen.append(len(images))
        return level(images)

    rates(winrate(scored(score)), filled([5, 1, 7, 3]))
    assert seen == [4]


def test_who_meets_whom_depends_on_contents_and_prompt_and_not_on_chance() -> None:
    images = filled(list(range(9)))
    made = winrate(brighter, 2).function
    seats = {prompt: {frozenset(pair) for pair in made.pairs(images, prompt, {}).tolist()} for prompt in ("a", "b")}  # pyright: ignore
    assert seats["a"] != seats["b"]
    assert seats["a"] == {frozenset(pair) for pair in made.pairs(images, "a", {}).tolist()}  # pyright: ignore


def test_a_comparison_that_was_not_read_in_both_orders_is_left_out() -> None:
    images = filled([10, 20, 30])

    def odd(a: np.ndarray, b: np.ndarray, prompt: str) -> list[float]:
        one_way = {(10, 20), (20, 30), (30, 20)}  # 10 against 20 in one order, 20 against 30 in both
        return [math.nan if pair in one_way else float(pair[0] > pair[1]) for pair in zip(level(a), level(b), strict=True)]

    with pytest.warns(UserWarning, match="could not score 1 of 3"):
        values, parts = rates(winrate(odd), images)
    np.testing.assert_array_equal(values, [0, math.nan, 1])
    assert parts["comparisons"].tolist() == [1, 0, 1] and parts["unreadable"].tolist() == [1, 2, 1]
    # the published rule: half a win for each
    values, _ = rates(winrate(lambda a, b, p: [math.nan] * len(a), compat=CODE), images)
    assert values.tolist() == [0.5] * 3


def test_an_image_without_rivals_has_no_score() -> None:
    with pytest.warns(UserWarning, match="could not score 1 of 1"):
        assert math.isnan(rates(winrate(brighter), filled([3]))[0][0])


def test_rivals_of_another_class_are_not_compared() -> None:
    reward = rewards.make(winrate(scored(lambda images, prompts, metadata: level(images))))
    pixels = torch.from_numpy(filled([10, 20, 30, 40]))[None]
    samples = Samples(pixels, ["p"], [{}], torch.ones(1, 4).bool(), torch.tensor([0, 1, 1, 0]))
    assert reward(samples, reward.init())[0].values.tolist() == [[0, 0, 1, 1]]


def test_ties_are_half_a_win() -> None:
    images = filled([10, 12, 30])
    score = lambda images, prompts, metadata: level(images)  # noqa: E731
    assert rates(winrate(scored(score, margin=2)), images)[0].tolist() == [0.25, 0.25, 1]
    # orders that contradict each other are a tie
    assert rates(winrate(lambda a, b, p: [1.0] * len(a)), images)[0].tolist() == [0.5] * 3
    half = [0.5, 0.5001, 0.6, 0.4, math.nan]
    np.testing.assert_array_equal(hardened(torch.tensor(half), 0.05), [0.5, 0.5, 1, 0, math.nan])
    np.testing.assert_array_equal(hardened(torch.tensor(half), 0.0), [0.5, 1, 1, 0, math.nan])


@quick
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_verdicts_of_both_orders_are_opposite(n: int, seed: int) -> None:
    asked = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    asked[0, 1] = torch.nan
    verdicts = verdicts_of(asked.fill_diagonal_(torch.nan))
    torch.testing.assert_close(verdicts + verdicts.T, torch.where(verdicts.isnan(), torch.nan, 1.0).double(), equal_nan=True)
    assert verdicts[0, 1].isnan() and verdicts[1, 0].isnan()
    with pytest.raises(ValueError, match="asked in both orders"):
        verdicts_of(torch.full((2, 2), 0.5), both_orders=False)


def test_aspects_are_blended_into_the_rate() -> None:
    def flex(a: np.ndarray, b: np.ndarray, prompt: str) -> Detailed:
        up, unread = (level(a) > level(b)).astype(float), np.full(len(a), math.nan)
        return Detailed(up, {"alignment": 1 - up, "quality": up, "aesthetics": unread})

    images = filled([10, 20, 30])
    values, parts = rates(winrate(flex, aspects=1.0), images)
    np.testing.assert_allclose(values, 0.5 * np.array([0, 0.5, 1]) + 0.5 * 0.5)
    assert parts["overall"].tolist() == [0, 0.5, 1] and parts["alignment"].tolist() == [1, 0.5, 0]
    assert np.isnan(parts["aesthetics"]).all()
    assert rates(winrate(flex), images)[0].tolist() == [0, 0.5, 1]


def looked_up(table: Tensor, parts: Tensor | None = None) -> Any:
    """A judge that knows the verdicts of images that are their own number."""

    def judge(a: np.ndarray, b: np.ndarray, prompt: str) -> Detailed:
        at = level(a).astype(int), level(b).astype(int)
        return Detailed(table.numpy()[at], {} if parts is None else {str(k): p.numpy()[at] for k, p in enumerate(parts.unbind(-1))})

    return judge


# @pytest.mark.evidence("arithmetic", "winrate")
@pytest.mark.parametrize("case", load("adv_pref_grpo_winrate").cases, ids=lambda case: case.id)
def test_win_rates_are_pref_grpos(case: Case) -> None:
    images = filled(list(range(len(case["pref"]))))
    np.testing.assert_array_equal(
        rates(winrate(looked_up(case["pref"]), compat=CODE), images)[0].astype(np.float32), case["win_rate"]
    )
    images = images[: len(case["flex_pref_overall"])]
    judge = looked_up(case["flex_pref_overall"], case["flex_pref_category"])
    np.testing.assert_allclose(rates(winrate(judge, aspects=1.0, compat=CODE), images)[0], case["flex_reward"], rtol=0, atol=1e-7)
    # their weight of the aspects is silently that of the last one, whatever was asked for
    np.testing.assert_allclose(
        rates(winrate(judge, aspects=0.5, compat=CODE), images)[0], case["flex_reward_dim0.5"], rtol=0, atol=1e-7
    )
    overall = win_rate(case["flex_pref_overall"], 3)
    parts = torch.stack([win_rate(p) for p in case["flex_pref_category"].unbind(-1)], -1)
    uneven = torch.tensor([1.0, 1.0, 3.0])
    theirs = blended(overall, parts, uneven, decimals=3, compat=CODE)
    np.testing.assert_allclose(theirs, case["flex_reward_cat_1_1_3"], rtol=0, atol=1e-7)
    assert not np.allclose(blended(overall, parts, uneven), case["flex_reward_cat_1_1_3"], atol=1e-2)


def test_the_best_of_several_is_the_one_with_the_most_wins() -> None:
    images = filled([50, 200, 10, 120])
    best, wins = champion(brighter, images, "p")
    assert best == 1 and wins.tolist() == [1, 3, 0, 2]
    # hard wins: narrow ones count as much
    assert champion(lambda a, b, p: 0.5 + 0.001 * np.sign(level(a) - level(b)), images, "p")[1].tolist() == [1, 3, 0, 2]
    assert champion(lambda a, b, p: [0.5] * len(a), images, "p")[0] == 0
    with pytest.raises(ValueError, match="no comparison of 4 images could be read"):
        champion(lambda a, b, p: [math.nan] * len(a), images, "p")
    with pytest.raises(ValueError, match="at least 2"):
        champion(brighter, images[:1], "p")


def test_what_cannot_be_a_win_rate_is_refused() -> None:
    images = filled([1, 2])
    with pytest.raises(rewards.RewardError, match=r"a judge answered -1; give P\(A is better\) in \[0, 1\]"):
        rates(winrate(lambda a, b, p: [-1.0] * len(a)), images)
    with pytest.raises(rewards.RewardError, match=r"\[1\] numbers for a group of 2"):
        rates(winrate(lambda a, b, p: [1.0]), images)
    for bad, message in (
        ({"opponents": 0}, "0 opponents"),
        ({"margin": 0.5}, "margin of 0.5"),
        ({"aspects": -1.0}, "weight of aspects is -1"),
        ({"compat": "pref"}, f"knows compat \"{CODE}\", not 'pref'"),
        ({"compat": CODE, "opponents": 2}, "compares all, but opponents is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            winrate(brighter, **bad)
    with pytest.raises(TypeError, match="a judge is a function .* not int"):
        winrate(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="margin of -1"):
        scored(lambda i, p, m: [], margin=-1)
    with pytest.raises(ValueError, match="a win rate of what"):
        rewards.make("winrate")
    with pytest.raises(ValueError, match="there is no reward 'clipp'"):
        rewards.make("winrate:clipp")


# @pytest.mark.evidence("real", "winrate")
def test_a_win_rate_by_name_orders_by_the_other_rewards_score() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3), dtype=np.uint8)
    smooth = (noise * np.linspace(1, 0, 5)[None, :, None, None, None]).astype(np.uint8)
    samples = Samples(torch.from_numpy(smooth), ["p"], [{}], torch.ones(1, 5).bool(), torch.zeros(5).long())
    for name, values in (("winrate:jpeg_compressibility", [0, 0.25, 0.5, 0.75, 1]), ("winrate:2:jpeg_compressibility", None)):
        reward = rewards.make(name)
        scores, _ = reward(samples, reward.init())
        assert reward.name == name and scores.values.mean() == pytest.approx(0.5)
        assert set(scores.parts["comparisons"].flatten().tolist()) == {2.0 if values is None else 4.0}
        if values:
            np.testing.assert_allclose(scores.values[0], values, atol=1e-6)


def test_a_reward_that_learns_is_no_judge() -> None:
    class Learner:
        name = "learner"

        def init(self) -> dict[str, Any]:
            return {}

        def __call__(self, samples: Samples, state: Any) -> Any: ...

        def update(self, samples: Samples, state: Any) -> Any: ...

    with pytest.raises(TypeError, match="'learner' learns while it scores"):
        scored(Learner())


@pytest.mark.ci
def test_a_win_rate_trains(tmp_path: Path) -> None:
    name = f"winrate:{tinyrun.BRIGHT}"
    # looks on the way draw one image a prompt, which has no rival: another judge is held out
    changes = {"run.iterations": 2, "evaluate.rewards": (tinyrun.BRIGHT,)}
    train(tinyrun.settings.resolve(tinyrun.recipe(tmp_path / "run", changes), {"rewards": (RewardSpec(name),)}))
    rows = tinyrun.rows(tmp_path / "run")
    assert [row[f"reward/{name}"] for row in rows] == pytest.approx([0.5, 0.5]) and all(row["grad/norm"] > 0 for row in rows)
    assert all(row["reward/std"] > 0 and row["reward/invalid"] == 0 for row in rows)
