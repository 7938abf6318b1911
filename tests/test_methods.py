"""One table over all methods: each is built, starts at ratio 1, improves the toy reward in the real loop, resumes exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from method_table import TABLE, parts, session

from flowrl import methods
from flowrl.data import Prompts
from flowrl.loop import begin, iterate
from flowrl.methods import VISUAL
from flowrl.recipe import MethodSpec, OptimSpec, PolicySpec, Recipe, SizesSpec
from flowrl.recipes.engine import notes
from flowrl.replay import RatioError
from flowrl.samplers import paths, schedules
from flowrl.sizes import Sizes
from flowrl.types import Method


def plans_differ(method: Method) -> bool:
    sigmas = schedules.sd3(10)
    return len({method.plan_at(i, sigmas, 0).key for i in range(60)}) > 1


def test_every_method_has_a_row() -> None:
    assert set(TABLE) == set(methods.TABLE)


@pytest.mark.parametrize("name", methods.TABLE)
def test_a_published_default_is_a_whole_method(name: str) -> None:
    method = methods.TABLE[name]()
    assert isinstance(method, Method)
    assert set(method.objective.needs) <= set(method.weights)
    assert {method.sample_from, method.export} <= {"current", *method.weights}
    sigmas = schedules.sd3(25, 3.0)
    for iteration in (0, 1, 24, 25, 26, 100, 499, 1000):
        plan = method.plan_at(iteration, sigmas, 0)
        assert plan.key == method.plan_at(iteration, sigmas, 0).key
        assert plan.leaves.numel() > 1
        assert torch.equal(plan.sigma[plan.leaves], torch.zeros(len(plan.leaves), dtype=torch.float64))
    assert plans_differ(method) == TABLE[name].moving


@pytest.mark.evidence("learns")
@pytest.mark.parametrize("name", methods.TABLE)
def test_a_method_starts_at_ratio_1_and_improves_the_toy_reward(name: str) -> None:
    of = parts(name)
    state, rows = session(of), []
    for _ in range(TABLE[name].iterations):
        rows.append(iterate(of, state))
        if "ratio/first_max_abs" in rows[-1]:
            assert rows[-1]["ratio/first_max_abs"] == 0 and rows[-1]["clip/pre_update_fraction"] == 0
    rewards = [r["reward/toy"] for r in rows]
    gain = 0.3 * (toy.SHRINK if TABLE[name].unit else 1)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + gain, rewards
    assert ("ratio/first_max_abs" in rows[0]) == TABLE[name].ratio
    assert all(r["grad/norm"] > 0 for r in rows)


@pytest.mark.parametrize("name", methods.TABLE)
def test_interrupted_and_resumed_is_uninterrupted(name: str) -> None:
    whole = parts(name)
    straight = session(whole)
    for _ in range(4):
        iterate(whole, straight)
    first = parts(name)
    before = session(first)
    for _ in range(2):
        iterate(first, before)
    saved = copy.deepcopy(before.state())
    second = parts(name)
    after = session(second)
    after.load(2, saved)
    for _ in range(2):
        iterate(second, after)
    one, other = straight.weights.state(), after.weights.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(a, b) for k in one for a, b in zip(one[k], other[k], strict=True))


@pytest.mark.parametrize("name", methods.TABLE)
def test_a_clip_is_idle_where_its_only_step_starts_at_ratio_1(name: str) -> None:
    """A second step a rollout has something to cut; that the first has not is asserted above."""
    make = methods.TABLE[name]
    assert make(updates=1).idle_clip == make().objective.clips and not make(updates=2).idle_clip


def test_a_clip_to_other_weights_than_sampled_is_not_idle() -> None:
    one = methods.flow_grpo(updates=1)
    assert one.idle_clip and not replace(one, epochs=2).idle_clip
    assert not replace(one, sample_from="reference").idle_clip


def test_nft_saves_an_average_that_lags_behind_the_weights_it_trains() -> None:
    of = parts("diffusion_nft")
    state = session(of)
    start = [p.detach().clone() for p in state.weights.parameters]
    for _ in range(3):
        iterate(of, state)
    assert of.method.export == "average" and methods.diffusion_nft(average=0.0).export == "current"
    moved = [(p.detach() - s).norm() for p, s in zip(state.weights.parameters, start, strict=True)]
    with state.weights.using("average"):
        lagging = [(p.detach() - s).norm() for p, s in zip(state.weights.parameters, start, strict=True)]
    # decays 1/10, 2/11, 3/12: after three steps of AdamW the average is behind, but not at the start.
    assert 0.3 * sum(moved) < sum(lagging) < 0.95 * sum(moved)


@pytest.mark.parametrize("name", ["flow_grpo", "diffusion_nft"])
def test_a_seed_decides_a_run_and_another_gives_another(name: str) -> None:
    found = []
    for seed in (0, 0, 1):
        of = parts(name, seed)
        state = session(of)
        found.append([iterate(of, state)["reward/mean"] for _ in range(2)])
    assert found[0] == found[1] != found[2]


def test_seeds_and_iterations_have_noise_of_their_own() -> None:
    """One prompt and a rate of 0: nothing but the noise can make a difference."""
    rewards = []
    for seed in (0, 1):
        of = parts("flow_grpo", seed)
        recipe = replace(of.recipe, sizes=SizesSpec(prompts=1, group=6), optim=OptimSpec(lr=0.0))
        of = replace(of, recipe=recipe, prompts=toy.TEXTS.take([0]))
        state = session(of)
        rewards += [iterate(of, state)["reward/mean"] for _ in range(2)]
    assert len(set(rewards)) == 4, rewards


def test_nft_samples_from_its_old_policy() -> None:
    of = parts("diffusion_nft")
    state = session(of)
    iterate(of, state)
    with torch.no_grad():
        for p in state.weights.parameters:
            p.fill_(torch.nan)
    with toy.seen(of.policy) as calls, pytest.raises(FloatingPointError, match="the gradient is nan"):  # pyright: ignore
        iterate(of, state)
    assert all(torch.isfinite(x).all() for x, _, _ in calls)


def test_states_do_not_depend_on_sizes() -> None:
    rows = []
    for sizes in (Sizes(4, 6), Sizes(8, 12)):
        of = parts("flow_grpo")
        of = replace(of, recipe=replace(of.recipe, optim=OptimSpec(lr=1e-2)))
        rows.append(iterate(of, begin(of, sizes)))
    assert rows[0]["reward/mean"] == pytest.approx(rows[1]["reward/mean"], abs=1e-6)
    assert rows[0]["grad/norm"] == pytest.approx(rows[1]["grad/norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("module", "named"), [(2, "module 2 is the first that differs"), (4, "module 4 is the first that differs")]
)
def test_a_replay_that_differs_stops_the_run_and_names_the_module(module: int, named: str) -> None:
    of = replace(parts("flow_grpo"), policy=toy.Policy(excited=True))
    layer = of.policy.network.get_submodule(str(module))
    layer.register_forward_hook(lambda m, args, output: output + 1e-3 if torch.is_grad_enabled() else None)
    state = session(of)
    before = [p.detach().clone() for p in state.weights.parameters]
    with pytest.raises(RatioError, match=named):
        iterate(of, state)
    assert all(torch.equal(p, b) for p, b in zip(state.weights.parameters, before, strict=True))


def test_an_unknown_law_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="law 'sde' is unknown; use one of flow_sde, cps, dance_sde"):
        methods.mix_grpo(law="sde").plan_at(0, schedules.sd3(10), 0)  # pyright: ignore[reportArgumentType]


def test_the_old_form_of_flow_grpo_fast_branches_where_its_window_starts() -> None:
    """One quiet path up to the window, nine images from there; the branching state is asked once."""
    sigmas, method = schedules.sd3(10), methods.flow_grpo_fast(group=9, window=2, high=6, branching=True, law="flow_sde", noise=0.7)
    for iteration in range(8):
        plan = method.plan_at(iteration, sigmas, 0)
        start = int(plan.depth[plan.rows[0]])
        assert len(plan.roots) == 1 and len(plan.leaves) == 9 and len(plan.edges) == 18 and len(plan.rows) == 1 + 9
        assert plan.nfe() == start + 1 + 9 * (10 - start - 1)


def test_a_run_that_goes_on_with_another_method_begins_its_memory_anew() -> None:
    """Flow-GRPO remembers nothing, GARDO does; what they share goes on."""
    first = parts("flow_grpo")
    before = session(first)
    iterate(first, before)
    saved = copy.deepcopy(before.state())
    saved["weights"] = dict.fromkeys(("current", "reference"), saved["weights"]["current"])
    second = parts("gardo")
    after = session(second)
    fresh = copy.deepcopy(after.states["advantage"])
    after.load(1, saved)
    assert after.states["advantage"] == fresh and after.iteration == 1
    iterate(second, after)
    assert after.states["advantage"] != fresh


def told(name: str, path: paths.Path, sigmas: torch.Tensor, **policy: Any) -> str:
    """What the log says of a method on such a path, over prompts with images."""
    recipe = Recipe(method=MethodSpec(name), policy=PolicySpec(steps=10))
    parts: Any = SimpleNamespace(
        method=VISUAL[name](),
        recipe=recipe,
        policy=SimpleNamespace(path=path, sigmas=lambda steps: sigmas, **policy),
        prompts=Prompts(("a",), ({},), (Path("a.png"),)),
    )
    return " ".join(notes(parts))


def test_a_run_says_what_its_method_and_its_model_leave_away() -> None:
    table = paths.alphas_cumprod()
    vp, levels = paths.vp("epsilon", table), schedules.vp(10, table)
    assert "flow_grpo leaves up to 6.5 times the noise that the model expects" in told("flow_grpo", vp, levels)
    assert "times the noise" not in told("ddpo", vp, levels)
    assert "times the noise" not in told("flow_grpo", paths.flow, schedules.linear_shift(10, 3.0))
    assert "rewards see them alone" in told("ddpo", vp, levels, pictured=False)
    assert "rewards see them alone" not in told("ddpo", vp, levels, pictured=True)
