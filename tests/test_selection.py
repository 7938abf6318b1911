"""Which prompts an iteration trains on, and how many images each gets."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import golden_reader
import numpy as np
import pytest
import tinyrun
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl import checkpoint, data, methods, selection
from flowrl.data import Prompts
from flowrl.loop import Parts, Session, begin, choose, iterate
from flowrl.recipe import DataSpec, MethodSpec, OptimSpec, PolicySpec, Recipe, SelectionSpec, SizesSpec
from flowrl.recipes import build
from flowrl.recipes.run import train
from flowrl.rewards import make
from flowrl.rewards.base import State
from flowrl.samplers import schedules
from flowrl.samplers.noise import Source
from flowrl.selection import Chosen, Earned, Selection, bandits, budgets, draws, history, weighted
from flowrl.settings import resolve
from flowrl.sizes import Sizes

TAGGED = Prompts(toy.PROMPTS, tuple({**m, "tag": t} for m, t in zip(toy.METADATA, "aabb", strict=True)), (None,) * 4)
MANY = Prompts(tuple(f"p{i}" for i in range(30)), tuple({"tag": f"t{i % 3}"} for i in range(30)), (None,) * 30)

ARGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "variance_aware": {"worst": -2.0, "best": 2.0, "refresh": 2},
    "knapsack": {"threshold": 0.5, "high": 12, "warmup": 1},
    "xrpo": {"high": 12},
    "bandit": {"temperature": 0.1},
    "prioritised": {"worst": -2.0, "best": 2.0},
}
"""Arguments under which a selection does something on the toy; every row of the table has them."""


def parts(name: str, method: str = "flow_grpo", prompts: int = 4, args: dict[str, Any] | None = None) -> Parts:
    spec, own = MethodSpec(method, {"clip": 1e-2} if method == "flow_grpo" else {}), ARGS[name] if args is None else args
    recipe = Recipe(
        method=spec,
        policy=PolicySpec(steps=toy.STEPS),
        data=DataSpec(selection=SelectionSpec(name, own)),
        sizes=SizesSpec(prompts=prompts, group=6),
        optim=OptimSpec(lr=1e-2),
    )
    return Parts(
        recipe,
        toy.Policy(),
        build.method(spec, 6),
        {"toy": (toy.REWARD, 1.0)},
        TAGGED,
        toy.WORLD,
        build.fitting(recipe),
        build.resized(spec),
    )


def session(of: Parts) -> Session:
    return begin(of, Sizes(slice=8, batch=12))


def got(rewards: Sequence[float], advantage: float = 0.0) -> Earned:
    values = torch.tensor(rewards, dtype=torch.float64)
    return Earned(values, torch.isfinite(values), advantage)


def at(*index: int) -> Chosen:
    return Chosen(torch.tensor(index))


# golden


def test_knapsack_reaches_the_published_optimum() -> None:
    case = golden_reader.load("sel_knapsack").cases[0]
    low, high = case["bounds"].tolist()
    size = torch.arange(1, case["value"].shape[1])
    # their value of no image at all is negative; no prompt gets none
    torch.testing.assert_close(budgets.mixed_value(case["p"][:, None], size), case["value"][:, 1:], rtol=1e-9, atol=1e-15)
    groups = budgets.knapsack_groups(case["p"], int(case["budget"]), range(low, high + 1))
    assert int(groups.sum()) == int(case["budget"]) and groups.min() >= low and groups.max() <= high
    total = case["value"][torch.arange(len(groups)), groups].sum()
    torch.testing.assert_close(total, case["total_value"], rtol=1e-9, atol=0)


def test_the_bandit_has_the_published_values_and_chances() -> None:
    case = golden_reader.load("sel_sec_bandit").cases[0]
    value = torch.zeros(case["Q"].shape[1], dtype=torch.float64)
    for gain, after, chance in zip(case["mean_abs_adv"], case["Q"], case["prob"], strict=True):
        torch.testing.assert_close(bandits.boltzmann(value, case.args["tau"]), chance, rtol=1e-9, atol=0)
        value = bandits.towards(value, gain, case.args["alpha"])
        torch.testing.assert_close(value, after, rtol=1e-9, atol=0)


def test_variance_aware_weights_are_the_published_ones() -> None:
    case = golden_reader.load("sel_mmr1_vas").cases[0]
    p = case["accuracy"].mean(1)
    torch.testing.assert_close(weighted.variance_weight(p, torch.zeros(5), 1.0), case["learnability"], rtol=1e-9, atol=0)
    score = weighted.variance_weight(p, case["distinct3"])
    torch.testing.assert_close(score, case["score"], rtol=1e-9, atol=0)
    torch.testing.assert_close(score / score.sum(), case["prob"], rtol=1e-9, atol=0)


# draws


@pytest.mark.parametrize("iteration", [0, 1, 7])
def test_uniform_is_the_batch_of_data(iteration: int) -> None:
    drawn = selection.uniform().choose(MANY, 8, 12, Source(3, iteration), {})
    assert drawn.index.tolist() == data.batch(30, 8, 3, iteration) and drawn.group is None
    assert Parts.__dataclass_fields__["selection"].default_factory() == selection.uniform()  # pyright: ignore


@pytest.mark.parametrize("replace_", [False, True])
def test_draws_follow_the_weights(replace_: bool) -> None:
    weight = torch.tensor([1.0, 2.0, 0.0, 5.0])
    first = torch.cat([draws.draw(weight, 1, Source(0, i), replace_) for i in range(4000)])
    share = torch.bincount(first, minlength=4) / 4000
    # four standard deviations of a share
    assert ((share - weight / 8).abs() <= 4 * (weight / 8 * (1 - weight / 8) / 4000).sqrt()).all(), share


@given(n=st.integers(1, 12), count=st.integers(0, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_without_replacement_nobody_comes_twice_before_all_came_once(n: int, count: int, seed: int) -> None:
    index = draws.draw(torch.arange(1.0, n + 1), count, Source(seed, 0))
    times = torch.bincount(index, minlength=n)
    assert len(index) == count and int(times.max() - times.min()) <= 1
    assert torch.equal(index, draws.draw(torch.arange(1.0, n + 1), count, Source(seed, 0)))


@pytest.mark.parametrize("weight", [[0.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_weights_that_are_none_are_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weights of prompts must be finite, >= 0 and not all 0"):
        draws.draw(torch.tensor(weight), 1, Source(0, 0))


def test_entropy_is_1_for_equal_weights_and_0_for_one_choice() -> None:
    assert draws.entropy(torch.ones(7)) == pytest.approx(1) and draws.entropy(torch.tensor([0.0, 3.0])) == 0
    assert draws.entropy(torch.ones(1)) == 1


# history


def test_invalid_rewards_do_not_count() -> None:
    rates = history.Rates(keep=0.5)
    whole = rates.update({}, ["a"], [got([1, 0, 1])])
    assert whole == rates.update({}, ["a"], [got([1, math.nan, 0, 1, math.nan])]) == {"a": [2.0, 1.0]}
    assert rates.update(whole, ["a"], [got([math.nan, math.nan])]) == whole
    row = history.moments({}, ["a"], [got([1, 0, 1])], 0.5)
    assert row == history.moments({}, ["a"], [got([1, math.nan, 0, 1])], 0.5)
    assert row == history.moments(row, ["a"], [got([math.nan])], 0.5)


def test_a_rate_forgets_and_is_shrunk_by_one_image_towards_the_rate_of_all() -> None:
    rates = history.Rates(keep=0.5)
    tally = rates.update(rates.update({}, ["a"], [got([1, 1, 1, 0])]), ["a", "b"], [got([0, 0]), got([0])])
    assert tally == {"a": [1.5, 2.5], "b": [0.0, 1.0]}
    middle = 2 / 6
    torch.testing.assert_close(
        rates.of(tally, ["a", "b", "new"]), torch.tensor([(1.5 + middle) / 5, middle / 2, middle], dtype=torch.float64)
    )
    assert rates.of({}, ["new"]).tolist() == [0.5]


def test_success_is_a_range_or_a_threshold() -> None:
    r = torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])
    assert history.Rates(worst=-1, best=1).success(r).tolist() == [0, 0, 0.5, 1, 1]
    assert history.Rates(threshold=0.0).success(r).tolist() == [0, 0, 1, 1, 1]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_moments_of_all_visits_are_those_of_all_images(visits: list[list[float]]) -> None:
    row: dict[str, list[float]] = {}
    for rewards in visits:
        row = history.moments(row, ["a"], [got(rewards)], 1.0)
    every = np.concatenate(visits)
    assert row["a"] == pytest.approx([len(every), every.mean(), ((every - every.mean()) ** 2).sum()], abs=1e-9)


def test_texts_twice_in_an_iteration_count_twice() -> None:
    assert history.Rates(keep=1).update({}, ["a", "a"], [got([1]), got([0])]) == {"a": [1.0, 1.0]}


# budgets


@given(
    value=st.integers(1, 4).flatmap(
        lambda k: st.lists(st.lists(st.integers(-4, 4), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_the_dynamic_programme_finds_what_trying_everything_finds(value: list[list[int]], share: float) -> None:
    prompts, kinds = len(value), len(value[0])
    total = round(share * prompts * (kinds - 1))
    ways = [w for w in itertools.product(range(kinds), repeat=prompts) if sum(w) == total]
    best = max(sum(value[i][k] for i, k in enumerate(w)) for w in ways)
    found = budgets.allocate(torch.tensor(value, dtype=torch.float64), total).tolist()
    assert sum(found) == total and sum(value[i][k] for i, k in enumerate(found)) == best


@pytest.mark.parametrize("total", [-1, 7])
def test_units_that_cannot_be_dealt_are_refused(total: int) -> None:
    with pytest.raises(ValueError, match=f"{total} units cannot be dealt to 3 prompts with 0 to 2 each"):
        budgets.allocate(torch.zeros(3, 3), total)


@given(
    p=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    low=st.integers(1, 3),
    more=st.integers(0, 4),
    extra=st.integers(0, 6),
    step=st.integers(1, 3),
)
@settings(deadline=None, max_examples=80)
def test_budgets_sum_exactly_and_stay_inside(p: list[float], low: int, more: int, extra: int, step: int) -> None:
    group, bottom, top = (low + 1 + more) * step, (low + 1) * step, (low + 1 + more + extra) * step
    ladder = budgets.Range(bottom, top, step).ladder(group)
    rate = torch.tensor(p, dtype=torch.float64)
    for groups in (
        budgets.knapsack_groups(rate, len(p) * group, ladder),
        budgets.xrpo_groups(rate, torch.arange(len(p)).double(), 40, len(p) * group, ladder, 0.1, 0.05),
    ):
        assert int(groups.sum()) == len(p) * group
        assert groups.min() >= bottom and groups.max() <= top and not (groups % step).any()


def test_knapsack_gives_more_to_hard_prompts_than_to_solved_ones() -> None:
    hard, middle, solved = budgets.knapsack_groups(torch.tensor([0.1, 0.5, 0.98]), 36, range(2, 25)).tolist()
    assert hard > middle > solved == 2
    assert budgets.knapsack_groups(torch.tensor([0.3, 0.3, 0.3]), 36, range(2, 25)).tolist() == [12, 12, 12]


def test_xrpo_gives_more_to_spread_and_to_the_unseen() -> None:
    n = torch.tensor([12.0, 12.0, 12.0])
    spread = budgets.xrpo_groups(torch.tensor([0.1, 0.5, 0.1], dtype=torch.float64), n, 100, 36, range(2, 25), 0.0, 0.05)
    assert spread[1] > spread[0] == spread[2]
    seen = torch.tensor([60.0, 0.0, 60.0])
    unseen = budgets.xrpo_groups(torch.zeros(3, dtype=torch.float64), seen, 100, 36, range(2, 25), 1.0, 0.05)
    assert unseen[1] > unseen[0]


def test_half_width_is_students() -> None:
    """t_{.975, 9} = 2.262157: of tables."""
    found = budgets.half_width(torch.tensor([2.0], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64))
    assert float(found) == pytest.approx(2.262157163 * 2 / math.sqrt(10), rel=1e-8)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"low": 8}, "low is 8 and high 24, but sizes.group, the mean of the groups, is 6"),
        ({"low": 1}, "2 <= low <= group <= high"),
        ({"high": 5}, "2 <= low <= group <= high"),
        ({"step": 4, "low": 4, "high": 12}, "must all be multiples of step 4"),
        ({"step": 0}, "at least 1"),
        ({"best": 0.0}, "best must be larger"),
        ({"keep": 1.5}, r"keep, .* is 1.5; it must lie in \[0, 1\]"),
        ({"loww": 2}, "did you mean data.selection.args.low"),
    ],
)
def test_budgets_that_cannot_be_are_a_sentence(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parts("knapsack", args=args)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("prioritised", {"floor": 0.0}, "floor is 0; it must be above 0"),
        ("bandit", {"temperature": 0.0}, "temperature is 0"),
        ("bandit", {"rate": 0.0}, "rate is 0"),
        ("variance_aware", {"share": 1.5}, "share is 1.5"),
        ("variance_aware", {"share": 0.1}, "share 0.1 of 4 prompts an iteration is less than one prompt"),
        ("variance_aware", {"refresh": 0}, "refresh is 0"),
        ("xrpo", {"alpha": 1.0}, "alpha is 1"),
        ("bandid", {}, "data.selection.name 'bandid' is unknown .did you mean 'bandit'"),
        ("no.module:made", {}, "selection 'no.module:made': there is no module 'no'"),
    ],
)
def test_arguments_that_cannot_be_are_a_sentence(name: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parts(name, args=args)


def test_a_group_the_method_refuses_is_refused_at_the_start_and_step_is_the_way_out() -> None:
    with pytest.raises(
        ValueError, match="may give a prompt a group of 3, which e_grpo cannot have .* set data.selection.args.step"
    ):
        parts("knapsack", "e_grpo", args={"high": 12})
    of = parts("knapsack", "e_grpo", args={"high": 12, "step": 2})
    assert of.selection.sizes(4, 6) == range(2, 13, 2)


@pytest.mark.parametrize("name", methods.TABLE)
def test_every_group_a_method_accepts_has_a_plan(name: str) -> None:
    made = 0
    for group in range(2, 13):
        try:
            method = build.resized(MethodSpec(name))(group)
        except ValueError as error:
            assert "group a multiple" in str(error)
            continue
        plan = method.plan_at(0, schedules.sd3(10), 0)
        assert len(plan.leaves) >= group
        made += 1
    assert made >= 2


# what a selection prefers


def test_a_bandit_prefers_the_category_with_the_larger_advantages() -> None:
    chooser, state = selection.bandit(temperature=0.25), selection.bandit().init()
    gains = {"t0": 0.1, "t1": 0.9, "t2": 0.1}
    for iteration in range(30):
        drawn = chooser.choose(MANY, 6, 4, Source(0, iteration), state)
        tags = [MANY.metadata[i]["tag"] for i in drawn.index.tolist()]
        state = chooser.learn(MANY, drawn, [got([0.0], gains[t]) for t in tags], state)
    assert state["value"]["t1"] == pytest.approx(0.9, abs=1e-3)
    late = [
        MANY.metadata[i]["tag"] for it in range(30, 60) for i in chooser.choose(MANY, 6, 4, Source(0, it), state).index.tolist()
    ]
    assert late.count("t1") > 0.8 * len(late) and drawn.metrics["entropy"] < 0.5


def test_a_category_gives_every_prompt_once_a_pass() -> None:
    chooser, state, seen = selection.bandit(), selection.bandit().init(), list[int]()
    for iteration in range(12):
        drawn = chooser.choose(MANY, 5, 4, Source(0, iteration), state)
        seen += drawn.index.tolist()
        state = chooser.learn(MANY, drawn, [got([0.0], 1.0)] * 5, state)
    for tag in range(3):
        mine = [i for i in seen if i % 3 == tag]
        assert state["cursor"][f"t{tag}"] == len(mine) and len(mine) >= 10
        assert sorted(mine[:10]) == list(range(tag, 30, 3))


def test_a_prompt_without_credit_moves_no_category() -> None:
    chooser = selection.bandit()
    state = chooser.learn(MANY, at(0, 1, 3), [got([1.0], 0.8), got([math.nan], math.nan), got([1.0], 0.4)], chooser.init())
    assert state["value"] == pytest.approx({"t0": 0.3}) and state["cursor"] == {"t0": 2, "t1": 1}


@pytest.mark.parametrize("by", ["color", "angle"])
def test_a_bandit_with_one_category_is_a_sentence(by: str) -> None:
    same = Prompts(("a", "b"), ({"angle": 1, "tag": "x"}, {"angle": 1, "tag": "y"}), (None, None))
    with pytest.raises(ValueError, match=rf"by metadata '{by}' there is one; name another .*there are: angle, tag"):
        selection.bandit(by=by).choose(same, 1, 4, Source(0, 0), {"value": {}, "cursor": {}})


@pytest.mark.parametrize("chooser", [selection.prioritised(), selection.variance_aware(share=1.0)])
def test_prompts_that_may_go_either_way_come_more_often(chooser: Selection) -> None:
    state, times = chooser.init(), torch.zeros(30)
    for _ in range(5):  # the first ten never succeed, the next sometimes, the last always
        rewards = [[0.0] * 8] * 10 + [[0.0, 1.0] * 4] * 10 + [[1.0] * 8] * 10
        state = chooser.learn(MANY, at(*range(30)), [got(r) for r in rewards], state)
    for iteration in range(200):
        times += torch.bincount(chooser.choose(MANY, 4, 8, Source(0, iteration), state).index, minlength=30)
    never, sometimes, always = times.view(3, 10).sum(1)
    assert sometimes > 1.5 * never and sometimes > 1.5 * always and never > 0 and always > 0


def test_variance_aware_leaves_the_rest_uniform_and_weights_wait_for_a_refresh() -> None:
    chooser = selection.variance_aware(share=0.5, refresh=3)
    drawn = chooser.choose(MANY, 8, 4, Source(0, 5), chooser.init())
    assert drawn.index[4:].tolist() == data.batch(30, 4, 0, 5) and len(drawn.index) == 8
    state, entropies = chooser.init(), []
    for iteration in range(4):
        drawn = chooser.choose(MANY, 8, 4, Source(0, iteration), state)
        entropies.append(drawn.metrics["entropy"])
        state = chooser.learn(MANY, drawn, [got([0.0, 0.0, 0.0, float(i < 8)]) for i in drawn.index.tolist()], state)
    assert entropies[:3] == [pytest.approx(1.0)] * 3 and entropies[3] < 0.99


# in the loop


def test_every_selection_has_a_row() -> None:
    assert set(ARGS) == set(selection.TABLE)


@pytest.mark.parametrize("name", selection.TABLE)
def test_interrupted_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    of = parts(name)
    straight, rows = session(of), list[dict[str, float]]()
    for _ in range(4):
        rows.append(iterate(of, straight))
    first = parts(name)
    before = session(first)
    for _ in range(2):
        iterate(first, before)
    checkpoint.save(tmp_path, 2, before.state(), None, 1)
    iteration, saved, _ = checkpoint.load_latest(tmp_path)
    second = parts(name)
    after = session(second)
    after.load(iteration, saved)
    again = [iterate(second, after) for _ in range(2)]
    one, other = straight.weights.state(), after.weights.state()
    assert all(torch.equal(a, b) for k in one for a, b in zip(one[k], other[k], strict=True))
    assert straight.states["selection"] == after.states["selection"]
    for new, old in zip(again, rows[2:], strict=True):
        assert {k: v for k, v in new.items() if "seconds" not in k} == {k: v for k, v in old.items() if "seconds" not in k}


@pytest.mark.parametrize("name", ["knapsack", "xrpo"])
@pytest.mark.parametrize("method", ["flow_grpo", "diffusion_nft"])
def test_unlike_groups_train_and_the_images_are_as_many_as_ever(name: str, method: str) -> None:
    of = parts(name, method)
    state, images, unlike = session(of), list[int](), False
    seen = make(
        lambda pictures, prompts, metadata: images.append(len(pictures)) or toy.direction(pictures, prompts, metadata), "toy"
    )
    of = replace(of, rewards={"toy": (seen, 1.0)})
    rewards = []
    for _ in range(16):
        images.clear()
        row = iterate(of, state)
        rewards.append(row["reward/mean"])
        assert sum(images) == 24 and row["grad/norm"] > 0
        assert row.get("ratio/first_max_abs", 0.0) == 0
        unlike |= row["selection/group_min"] < row["selection/group_max"]
    assert unlike and sum(rewards[-3:]) > sum(rewards[:3]) + 0.3, rewards


@dataclass(frozen=True)
class Given:
    """Groups as they are told."""

    groups: tuple[int, ...]

    def init(self) -> State:
        return {"told": []}

    def sizes(self, count: int, group: int) -> Sequence[int]:
        return sorted(set(self.groups))

    def choose(self, prompts: Prompts, count: int, group: int, noise: Source, state: State) -> Chosen:
        return Chosen(torch.arange(count), torch.tensor(self.groups))

    def learn(self, prompts: Prompts, chosen: Chosen, earned: Sequence[Earned], state: State) -> State:
        return {"told": [[len(e.rewards), int(e.valid.sum()), e.advantage, float(e.rewards.nanmean())] for e in earned]}


def test_every_slot_is_told_what_its_own_images_earned() -> None:
    def half(pictures: Any, prompts: list[str], metadata: list[dict[str, float]]) -> list[float]:
        return [math.nan if p == "west" else PLACES[p] + 0.1 * i for i, p in enumerate(prompts)]

    PLACES = {"east": 100.0, "north": 200.0, "west": 300.0, "south": 400.0}
    of = replace(parts("uniform"), selection=Given((4, 8, 4, 2)), rewards={"toy": (make(half, "toy"), 1.0)})
    state = session(of)
    with pytest.warns(UserWarning, match="could not score"):
        iterate(of, state)
    told: list[list[float]] = state.states["selection"]["told"]
    assert [t[:2] for t in told] == [[4, 4], [8, 8], [4, 0], [2, 2]]
    assert [t[3] // 100 for t in told if t[1]] == [1, 2, 4] and math.isnan(told[2][2])
    # two images: z-scores of +-1, but for the eps beside a spread of 0.1
    assert told[3][2] == pytest.approx(0.05 / (0.05 + 1e-4), rel=1e-3)


def test_a_group_of_its_own_needs_the_method_at_that_size() -> None:
    of = replace(parts("uniform"), selection=Given((4, 8, 6, 6)), resized=None)
    with pytest.raises(ValueError, match="a group of 4, but no method of that group was given"):
        iterate(of, session(of))


def test_a_run_without_a_selection_goes_on_with_one() -> None:
    of = parts("bandit")
    old, new = session(replace(of, selection=selection.uniform())), session(of)
    saved = copy.deepcopy(old.state())
    for states in (saved["states"], {k: v for k, v in saved["states"].items() if k != "selection"}):
        new.load(0, {**saved, "states": states})
        assert new.states["selection"] == {"value": {}, "cursor": {}} and new.states["rewards"] == old.states["rewards"]
    assert choose(of, 0, new.states["selection"]).metrics["entropy"] == pytest.approx(1)


# from the recipe


def test_another_selection_drops_the_arguments_of_the_old_one() -> None:
    of = resolve(Recipe(), ["data.selection.name=bandit", "data.selection.args.temperature=0.5"])
    assert of.data.selection == SelectionSpec("bandit", {"temperature": 0.5})
    assert resolve(of, ["optim.lr=1e-4"]).data.selection == of.data.selection
    assert resolve(of, ["data.selection.name=xrpo"]).data.selection == SelectionSpec("xrpo", {})
    assert resolve(of, {"data": {"selection": {"name": "xrpo"}}}).data.selection == SelectionSpec("xrpo", {})
    kept = resolve(of, ["method.name=flow_grpo", "data.selection.args.rate=0.1"])
    assert kept.data.selection == SelectionSpec("bandit", {"temperature": 0.5, "rate": 0.1})


@pytest.mark.parametrize("name", ["bandit", "knapsack"])
def test_a_run_in_two_pieces_is_the_whole_run(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"data.selection.name": name, "run.iterations": 3, "evaluate.every": 0}
    if name == "knapsack":
        changes |= {"data.selection.args": {"warmup": 1, "high": 6, "threshold": 0.2}}
    tagged = [{"prompt": text, "tag": text.split()[0]} for text in tinyrun.PROMPTS]
    with tinyrun.one_thread():
        train(tinyrun.recipe(tmp_path / "whole", changes, tinyrun.NFT), prompts=tagged)
        train(tinyrun.recipe(tmp_path / "run", {**changes, "run.iterations": 1}, tinyrun.NFT), prompts=tagged)
        train(resume=tmp_path / "run", overrides={"run.iterations": 3})
    tinyrun.same_run(tmp_path / "whole", tmp_path / "run")
    assert f"name: {name}" in (tmp_path / "run" / "run.yaml").read_text()


def test_a_bandit_without_categories_fails_before_the_run_has_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a bandit needs prompts of two categories .*there are: none"):
        train(tinyrun.recipe(tmp_path / "run", {"data.selection.name": "bandit"}, tinyrun.NFT))
    assert not (tmp_path / "run" / "run.yaml").exists()
