"""Rewards that wait are asked while the rest is drawn, and nothing else changes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyrun
import torch
import toy

from flowrl import rewards
from flowrl.collect import Collected, collect
from flowrl.overlap import Early, waiting
from flowrl.rewards import Detailed, RewardError, Samples, groupwise
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes, cut


@dataclass
class Slow:
    """A function that waits, and says when it was asked."""

    function: Any
    waits: bool = True
    calls: list[list[str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        self.calls.append(list(prompts))
        self.begun.set()
        assert self.go.wait(60)
        return self.function(images, prompts, metadata)


def level(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Detailed:
    values = images.mean((1, 2, 3))
    return Detailed([None if p == "p1" else v for v, p in zip(values, prompts, strict=True)], {"red": images[..., 0].mean((1, 2))})


def samples(count: int = 5) -> Samples:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4, 3), dtype=np.uint8))
    scored = torch.ones(count, 3, dtype=torch.bool)
    scored[0, 1] = False
    return Samples(pixels, [f"p{i}" for i in range(count)], [{} for _ in range(count)], scored, torch.tensor([0, 0, 1]))


def some(whole: Samples, rows: list[int]) -> tuple[torch.Tensor, Samples]:
    at = torch.tensor(rows)
    prompts, metadata = [whole.prompts[i] for i in rows], [whole.metadata[i] for i in rows]
    return at, replace(whole, pixels=whole.pixels[at], prompts=prompts, metadata=metadata, scored=whole.scored[at])


def ready(function: Any) -> Slow:
    made = Slow(function)
    made.go.set()
    return made


@pytest.mark.filterwarnings("ignore:reward 'x' could not score")
@pytest.mark.parametrize("cuts", [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[3, 4], [0, 2], [1]]])
def test_chunks_come_to_what_one_call_comes_to(cuts: list[list[int]]) -> None:
    whole, reward = samples(), rewards.make(ready(level), "x")
    expected, after = reward(whole, reward.init())
    with Early({"x": reward}, {"x": reward.init()}) as early:
        for cut in cuts:
            early.put(*some(whole, cut))
        got, state = early.take("x")
    assert state == after and "x" in early and "y" not in early
    assert torch.equal(got.valid, expected.valid) and got.valid.sum() == 11
    assert torch.equal(got.values.nan_to_num(-1), expected.values.nan_to_num(-1))
    assert torch.equal(got.parts["red"].nan_to_num(-1), expected.parts["red"].nan_to_num(-1))


def test_only_rewards_that_say_so_are_asked_early() -> None:
    made = {name: rewards.make(f, name) for name, f in {
        "slow": Slow(level), "now": Slow(level, waits=False), "plain": level, "group": groupwise(lambda i, p, m: [0.0] * len(i)),
    }.items()}  # fmt: skip
    made["remote"] = rewards.make("remote:http://127.0.0.1:1/x")
    assert list(waiting(made)) == ["slow", "remote"]


def test_putting_does_not_wait_and_chunks_are_scored_in_the_order_put() -> None:
    whole, slow = samples(), Slow(lambda images, prompts, metadata: [0.0] * len(images))
    reward = rewards.make(slow, "x")
    with Early({"x": reward}, {"x": reward.init()}) as early:
        early.put(*some(whole, [0, 1]))
        assert slow.begun.wait(60)  # asked before the rest is there
        early.put(*some(whole, [2]))
        early.put(*some(whole, [3, 4]))
        slow.go.set()
        early.take("x")
    assert [list(dict.fromkeys(prompts)) for prompts in slow.calls] == [["p0", "p1"], ["p2"], ["p3", "p4"]]


def test_what_a_reward_raises_is_raised_where_its_scores_are_taken() -> None:
    def broken(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        raise KeyError("on purpose")

    whole = samples()
    made = {"bad": rewards.make(ready(broken), "bad"), "good": rewards.make(ready(lambda i, p, m: [1.0] * len(i)), "good")}
    with Early(made, {name: reward.init() for name, reward in made.items()}) as early:
        early.put(*some(whole, [0, 1, 2]))
        early.put(*some(whole, [3, 4]))
        with pytest.raises(RewardError, match="'bad' failed on 8 images: KeyError: 'on purpose'"):
            early.take("bad")
        assert early.take("good")[0].valid.sum() == 14


def test_chunks_that_do_not_make_a_whole_are_an_error() -> None:
    reward = rewards.make(ready(lambda i, p, m: [1.0] * len(i)), "x")
    for cuts in ([], [[1]], [[0], [0]]):
        with Early({"x": reward}, {"x": reward.init()}) as early:
            for cut in cuts:
                early.put(*some(samples(), cut))
            with pytest.raises(ValueError, match="must come once"):
                early.take("x")


def test_what_is_left_unfinished_is_given_up() -> None:
    slow = Slow(lambda images, prompts, metadata: [0.0] * len(images))
    reward = rewards.make(slow, "x")
    with Early({"x": reward}, {"x": reward.init()}) as early:
        early.put(*some(samples(), [0, 1]))
        early.put(*some(samples(), [2, 3, 4]))
        assert slow.begun.wait(60)
    slow.go.set()
    for thread in threading.enumerate():
        if thread.name == "flowrl-early":
            thread.join(60)
    assert len(slow.calls) == 1


def collected(policy: toy.Policy, kind: Any, function: Any) -> tuple[Collected, dict[str, Any]]:
    """An iteration of the toy in two blocks; with chains, the first ends within the third of four prompts."""
    plan = toy.plan(kind)
    sizes = toy.SIZES if kind == "chains" else Sizes(slice=5, batch=3)
    blocks = cut(plan, len(toy.PROMPTS), sizes, 1, 1)
    made, states = (
        {"x": rewards.make(function, "x"), "toy": toy.REWARD},
        {"x": {"scored": 0, "failed": 0}, "toy": toy.REWARD.init()},
    )
    slots, factors = torch.arange(len(toy.PROMPTS)), {"x": 1.0, "toy": 0.0}
    source = Source(3, 5)
    return collect(policy, plan, toy.TEXTS, slots, made, factors, states, blocks, sizes, source, toy.WORLD), states


@pytest.mark.parametrize("kind", ["chains", "tree", "comb"])
def test_an_iteration_with_a_reward_that_waits_is_the_same_to_the_bit(kind: Any) -> None:
    waiting_ = ready(toy.direction)
    (plain, before), (early, after) = (collected(toy.Policy(excited=True), kind, f) for f in (toy.direction, waiting_))
    assert len(waiting_.calls) > 1 and before == after and list(plain.outcome.scores) == list(early.outcome.scores)
    assert plain.rollout is not None and early.rollout is not None
    for name in ("x", "u", "log_prob", "owned", "slots"):
        assert torch.equal(getattr(plain.rollout, name), getattr(early.rollout, name))
    for a, b in zip(plain.rollout.slices, early.rollout.slices, strict=True):
        assert torch.equal(a.prompt, b.prompt) and torch.equal(a.row, b.row) and (a.block, a.sigma) == (b.block, b.sigma)
    for name, scores in plain.outcome.scores.items():
        assert torch.equal(scores.values, early.outcome.scores[name].values) and scores.valid.all()
        assert torch.equal(scores.valid, early.outcome.scores[name].valid)


def test_the_first_prompts_are_scored_while_the_last_are_still_walked() -> None:
    policy = toy.Policy()
    collected(policy, "chains", toy.direction)
    calls, policy.calls = policy.calls, 0
    slow, predict = Slow(toy.direction), policy.predict

    def held(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> Any:
        if policy.calls == calls - 1:  # the last of all
            assert slow.begun.wait(60), "nobody was asked before the walk's end"
            slow.go.set()
        return predict(x, sigma, cond)

    policy.predict = held  # pyright: ignore[reportAttributeAccessIssue]
    collected(policy, "chains", slow)
    assert [list(dict.fromkeys(prompts)) for prompts in slow.calls] == [["east", "north"], ["west", "south"]]


def test_an_iteration_that_fails_leaves_the_states_as_they_were() -> None:
    policy, predict = toy.Policy(), toy.Policy.predict
    policy.predict = lambda x, sigma, cond: (  # pyright: ignore[reportAttributeAccessIssue]
        predict(policy, x, sigma, cond) if policy.calls < 8 else (_ for _ in ()).throw(torch.OutOfMemoryError("injected"))
    )
    reward = rewards.make(ready(toy.direction), "x")
    state = {"x": reward.init()}
    plan = toy.plan("chains")
    blocks = cut(plan, len(toy.PROMPTS), toy.SIZES, 1, 1)
    with pytest.raises(torch.OutOfMemoryError):
        collect(
            policy, plan, toy.TEXTS, torch.arange(4), {"x": reward}, {"x": 1.0}, state, blocks, toy.SIZES, Source(0, 0), toy.WORLD
        )
    assert state == {"x": reward.init()}


bright = ready(tinyrun.bright)


@pytest.mark.ci
def test_runs_with_a_reward_that_waits_are_the_same_on_one_process_and_two(tmp_path: Path) -> None:
    odd = {"sizes.prompts": 3, "sizes.group": 3, "sizes.slice": 2, "sizes.batch": 2, "optim.eps": 1e-2, "run.iterations": 2}
    found: list[list[dict[str, Any]]] = []
    for name, spec, count in (("plain", tinyrun.BRIGHT, 1), ("one", f"{__file__}:bright", 1), ("two", f"{__file__}:bright", 2)):
        folder = tmp_path / name
        made = tinyrun.recipe(folder, {**odd, "rewards": [{"name": spec}], "optim.lr": 1e-3})
        processes = tinyrun.together(count, folder, made)
        assert [tinyrun.ended(p) for p in processes] == [0] * count
        assert [tinyrun.told(folder, rank)["error"] for rank in range(count)] == [None] * count
        found.append([{k.replace(spec, "r"): v for k, v in row.items()} for row in tinyrun.rows(folder)])
    assert found[0] == found[1]
    for key in ("reward/mean", "reward/std", "reward/best", "ratio/first_max_abs", "reward/r"):
        assert found[0][0][key] == found[2][0][key]
