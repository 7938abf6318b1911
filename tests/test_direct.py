"""Direct reward gradients: what of the sampler is differentiated, the second loop on the toy, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl import direct
from flowrl.direct import Direct, Known, Loss, Route, Truncated, route, travel
from flowrl.loop import Parts, Session, begin, choose
from flowrl.recipe import MethodSpec, OptimSpec, PolicySpec, Recipe, RunSpec, SizesSpec
from flowrl.recipes import build
from flowrl.recipes.engine import engine
from flowrl.rewards import DifferentiableReward, RewardError, differentiable, make
from flowrl.samplers import schedules
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes

SMALL: dict[str, dict[str, Any]] = {
    "refl": {"late": 0.5, "scale": 1.0, "target": 9.0},
    "draft": {"k": 2},
    "alignprop": {"scale": 1.0},
    "drtune": {"trained": 2, "early": 0.3},
    "srpo": {"wanted": "to the ", "unwanted": "away from ", "target": 9.0},
}
"""Arguments under which the toy, whose rewards reach 4, is never done; every row of the table of methods has one."""
GRID = schedules.linear_shift(toy.STEPS)


def towards(images: Tensor, prompts: list[str], metadata: list[dict[str, float]]) -> Tensor:
    """`toy.slope`, which the words "away from" turn round."""
    sign = torch.tensor([-1.0 if p.startswith("away from ") else 1.0 for p in prompts])
    return sign * toy.slope(images, prompts, metadata)


def parts(name: str, reward: Any = None, group: int = 4, **more: Any) -> Parts[Any]:
    recipe = Recipe(
        method=MethodSpec(name),
        policy=PolicySpec(steps=toy.STEPS),
        sizes=SizesSpec(prompts=4, group=group),
        optim=OptimSpec(lr=1e-2, max_norm=1e9),  # gradients as they are
        run=RunSpec(seed=0),
    )
    made = direct.TABLE[name](group=group, **{**SMALL[name], **more})
    reward = make(differentiable(towards), "toy") if reward is None else reward
    return Parts(recipe, toy.Policy(), made, {"toy": (reward, 1.0)}, toy.TEXTS, toy.WORLD)


def session(of: Parts[Any], sizes: Sizes = Sizes(5, 8)) -> Session:  # noqa: B008
    return begin(of, sizes)


# what is differentiated


@pytest.mark.parametrize("attached", [True, False])
@given(levels=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6, unique=True), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_gradient_of_a_linear_velocity_is_the_closed_form(attached: bool, levels: list[float], data: st.DataObject) -> None:
    """u = w x: x' = (1 - h w) x, and a trained step adds -h x with its own input as a number where that is cut off."""
    grid = [1.0, *sorted(levels, reverse=True), 0.0]
    steps = len(grid) - 1
    chosen = data.draw(st.sets(st.integers(0, steps - 1), min_size=1))
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x0, _ = travel(lambda x, sigma: w * x, torch.ones(1, 1, dtype=torch.float64), route(grid, chosen, attached=attached))
    (found,) = torch.autograd.grad(x0.sum(), w)
    x, slope = 1.0, 0.0
    for i in range(steps):
        h = grid[i] - grid[i + 1]
        through = 1 - h * 0.7 * (i in chosen and attached)
        slope = through * slope - h * x * (i in chosen)
        x *= 1 - h * 0.7
    assert float(x0) == pytest.approx(x, rel=1e-12)
    assert float(found) == pytest.approx(slope, rel=1e-10, abs=1e-14)


def test_drtune_misses_exactly_the_path_through_the_networks_input() -> None:
    """Two steps of u = w x: d x0 / d w is -h1 x0 - h2 x1 without it, and the missing term is +h2 w h1 x0."""
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = []
    for attached in (True, False):
        x0, _ = travel(
            lambda x, sigma: w * x, torch.ones(1, 1, dtype=torch.float64), Route((1.0, 0.4, 0.0), (True, True), attached)
        )
        found.append(float(torch.autograd.grad(x0.sum(), w)[0]))
    assert found[0] - found[1] == pytest.approx(0.4 * 0.5 * 0.6, rel=1e-12)


def test_all_steps_of_draft_are_the_whole_sampler() -> None:
    policy = toy.Policy(excited=True)
    cond = policy.encode(["east"] * 3)
    scheme = direct.draft(k=toy.STEPS).scheme
    assert isinstance(scheme, Truncated)
    x1 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    x0, _ = travel(lambda x, s: policy.predict(x, s, cond), x1, scheme.route_at(Source(0, 0), GRID))  # pyright: ignore
    weights = list(policy.network.parameters())
    found = torch.autograd.grad(x0.square().sum(), weights)
    x = x1
    for here, there in pairwise(GRID):
        u = policy.predict(x, here.float().expand(3), cond)
        assert isinstance(u, Tensor)
        x = x + (there - here).float() * u
    expected = torch.autograd.grad(x.square().sum(), weights)
    torch.testing.assert_close(x0, x, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradcheck_of_a_whole_way_and_of_the_drift_of_one_step() -> None:
    weight, frozen = (torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    x1 = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def network(w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, sigma: torch.tanh(x @ w + sigma[:, None])

    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: travel(network(w), x1, route(GRID, range(toy.STEPS)))[0], (weight,))
    one = Route((0.5, 0.0), (True,))
    assert torch.autograd.gradcheck(lambda w: travel(network(w), x1, one, reference=network(frozen)), (weight,))


def test_gradcheck_of_a_known_step() -> None:
    scheme = direct.srpo(levels=20, reach=0.2).scheme
    assert isinstance(scheme, Known)
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x0, x1 = (torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    for of in scheme.branches(torch.tensor([1, 12])):
        assert torch.autograd.gradcheck(lambda w, of=of: scheme.recovered(lambda x, s: x @ w, x0, x1, of), (weight,))


def test_a_perfect_network_recovers_the_image_whatever_the_step() -> None:
    """u = x1 - x0 exactly: both branches give back x0."""
    scheme = direct.srpo().scheme
    assert isinstance(scheme, Known)
    x0, x1 = torch.randn(3, 4), torch.randn(3, 4)
    for of in scheme.branches(torch.tensor([1, 500, 998])):
        torch.testing.assert_close(scheme.recovered(lambda x, s: x1 - x0, x0, x1, of), x0, rtol=0, atol=2e-5)
        assert (of.start != of.end).all()


def test_nothing_keeps_a_graph_under_no_grad() -> None:
    w = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        x0, _ = travel(lambda x, s: w * x, torch.ones(2, 1), route(GRID, range(toy.STEPS)))
    assert not x0.requires_grad


@given(count=st.integers(1, 60), iteration=st.integers(0, 500), name=st.sampled_from(["refl", "draft", "alignprop", "drtune"]))
@settings(max_examples=80, deadline=None)
def test_every_drawn_route_is_one_and_a_pure_function_of_seed_and_iteration(count: int, iteration: int, name: str) -> None:
    scheme = direct.TABLE[name](**({"trained": 1} if name == "drtune" else {})).scheme
    assert isinstance(scheme, Truncated)
    grid, noise = schedules.sd3(count), Source(3, iteration)
    way = scheme.route_at(noise, grid)
    assert way == scheme.route_at(noise, grid)
    assert any(way.trained) and way.sigmas[0] == 1 and way.sigmas[-1] == 0
    assert way.attached == (name != "drtune")


def test_published_draws_fall_where_they_are_published() -> None:
    grid = schedules.sd3(40)
    late = {_route("refl", i, grid).trained.index(True) for i in range(300)}
    assert late == set(range(30, 40))
    assert all(len(way.trained) == way.trained.index(True) + 1 for way in (_route("refl", i, grid) for i in range(20)))
    tuned = [_route("drtune", i, grid) for i in range(300)]
    assert {sum(way.trained) for way in tuned} == {5} and {len(way.trained) for way in tuned} == set(range(25, 41))
    starts = {_route("alignprop", i, grid).trained.index(True) for i in range(600)}
    assert starts == set(range(40))


def _route(name: str, iteration: int, grid: Tensor) -> Route:
    scheme = direct.TABLE[name]().scheme
    assert isinstance(scheme, Truncated)
    return scheme.route_at(Source(0, iteration), grid)


# losses


def test_losses_are_what_their_names_say() -> None:
    r = torch.tensor([-1.0, 2.0, 12.0])
    assert Loss()(r).tolist() == [1, -2, -12]
    assert Loss("rest", 1.0, 0.5)(r).tolist() == [1, -0.5, -5.5]
    assert Loss("hinge", 2.0)(r).tolist() == [3, 0, 0]
    assert Loss("distance", 10.0)(r).tolist() == [11, 8, 2]


# the loop


def test_every_method_has_a_row() -> None:
    assert set(SMALL) == set(direct.TABLE)
    assert not set(direct.TABLE) & set(build.methods.TABLE)


@pytest.mark.evidence("learns")
@pytest.mark.parametrize("name", direct.TABLE)
def test_a_method_improves_the_toy_reward(name: str) -> None:
    of = parts(name)
    assert engine(of.method).rehearse(of, of.method.plan_at(0, GRID, 0)) >= 1
    state = session(of)
    rows = [engine(of.method).iterate(of, state) for _ in range(20)]
    assert all(r["grad/norm"] > 0 and math.isfinite(r["loss/policy"]) for r in rows)
    start, end = (sum(r["reward/mean"] for r in some) / 3 for some in (rows[:3], rows[-3:]))
    assert end > start + 0.3, [r["reward/mean"] for r in rows]


@pytest.mark.parametrize("name", direct.TABLE)
def test_interrupted_and_resumed_is_uninterrupted(name: str) -> None:
    beta = {} if name == "srpo" else {"beta": 0.1}
    whole = parts(name, **beta, updates=2)
    straight = session(whole)
    for _ in range(4):
        direct.iterate(whole, straight)
    first = parts(name, **beta, updates=2)
    before = session(first)
    for _ in range(2):
        direct.iterate(first, before)
    saved = copy.deepcopy(before.state())
    second = parts(name, **beta, updates=2)
    after = session(second)
    after.load(2, saved)
    for _ in range(2):
        direct.iterate(second, after)
    one, other = straight.weights.state(), after.weights.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(a, b) for k in one for a, b in zip(one[k], other[k], strict=True))


def gradients(of: Parts[Any], sizes: Sizes) -> tuple[list[Tensor], dict[str, float]]:
    """The gradients of the first optimizer step, and its row."""
    state, kept = session(of, sizes), list[Tensor]()
    state.optimizer.register_step_pre_hook(lambda opt, args, kwargs: kept.extend(p.grad.clone() for p in state.weights.parameters))
    return kept, direct.iterate(of, state)


@pytest.mark.parametrize("name", direct.TABLE)
def test_gradients_do_not_depend_on_sizes(name: str) -> None:
    (some, one), (others, other) = (gradients(parts(name, target=3.0), sizes) for sizes in (Sizes(16, 16), Sizes(3, 4)))
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert one["reward/mean"] == pytest.approx(other["reward/mean"], abs=1e-6)
    assert one["loss/policy"] == pytest.approx(other["loss/policy"], abs=1e-6)


@pytest.mark.parametrize("name", direct.TABLE)
def test_an_image_without_a_score_leaves_the_mean(name: str) -> None:
    """One prompt of four scored NaN: the gradient is 4 / 3 of a run's in which it is scored without any slope."""

    def odd(lost: float) -> DifferentiableReward:
        def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, float]]) -> Tensor:
            south = torch.tensor([p.endswith("south") for p in prompts])
            # at -1 the value is NaN, and so is its slope
            flat = (images.sum((1, 2, 3)) * 0 + torch.where(south, lost, 1.0)).sqrt()
            return torch.where(south, flat, towards(images, prompts, metadata))

        made = make(differentiable(reward), "toy")
        assert isinstance(made, DifferentiableReward)
        return made

    (some, row), (others, flat) = (gradients(parts(name, odd(lost)), Sizes(3, 4)) for lost in (-1.0, 1.0))
    assert (row["reward/invalid"], flat["reward/invalid"]) == (0.25, 0)
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b * 4 / 3, rtol=1e-4, atol=1e-6)


def test_a_run_whose_images_cannot_be_scored_stops() -> None:
    lost = make(differentiable(lambda images, prompts, metadata: images.sum((1, 2, 3)) * math.nan), "lost")
    of = parts("draft", lost)
    with pytest.raises(ValueError, match="no image of this iteration could be scored by all of toy"):
        direct.iterate(of, session(of))


def test_drift_pulls_towards_the_reference() -> None:
    """After training with a large beta the trained network is nearer to where it began, and its drift is what the row says."""
    drifts = []
    for beta in (1e-6, 30.0):
        of = parts("draft", beta=beta)
        state = session(of)
        drifts.append([direct.iterate(of, state)["kl/mean"] for _ in range(12)])
    assert drifts[0][0] == drifts[1][0] == 0
    assert 0 < drifts[1][-1] < 0.2 * drifts[0][-1]


def test_the_gradient_of_the_drift_is_the_closed_form() -> None:
    """A stored reference is swapped in while the trained weights' graph is open: their gradient must not notice."""
    of = parts("draft", make(differentiable(lambda images, p, m: images.sum((1, 2, 3)) * 0), "flat"), k=1, beta=2.0)
    state = session(of)
    with torch.no_grad():
        for p in state.weights.parameters:
            p.add_(0.1)
    kept: list[Tensor] = []
    state.optimizer.register_step_pre_hook(lambda opt, args, kwargs: kept.extend(p.grad.clone() for p in state.weights.parameters))
    before = copy.deepcopy(of.policy.network)
    direct.iterate(of, state)
    mine, base = toy.Policy(), toy.Policy()
    mine.network.load_state_dict(before.state_dict())
    texts = of.prompts.take(choose(of, 0, of.selection.init()).index).text
    cond = mine.encode([text for text in texts for _ in range(4)])
    x = torch.stack([Source(0, 0).normal((2,), p, g) for p in range(4) for g in range(4)])
    with torch.no_grad():
        for here, there in pairwise(GRID[:-1]):
            x = x + (there - here).float() * mine.predict(x, here.float().expand(16), cond)  # pyright: ignore
    level = GRID[-2].float().expand(16)
    loss = 2.0 * (mine.predict(x, level, cond) - base.predict(x, level, cond).detach()).square().mean()  # pyright: ignore
    for a, b in zip(kept, torch.autograd.grad(loss, list(mine.network.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_redraws_average_views_of_the_same_image() -> None:
    of = parts("draft", k=1, lv=2)
    noise = Source(0, 0)
    policy = toy.Policy(excited=True)
    cond = policy.encode(["east", "north"])
    rows = direct.Rows([0, 1], [0, 0], lambda x, s: policy.predict(x, s, cond), None, GRID, (2,), noise)  # pyright: ignore
    views = list(of.method.scheme.views(rows))
    assert [v.share for v in views] == [1 / 3] * 3
    assert len({tuple(v.x0.flatten().tolist()) for v in views}) == 3
    kept, _ = gradients(of, Sizes(16, 16))
    assert all(torch.isfinite(g).all() for g in kept)


def test_out_of_memory_halves_the_rows_and_changes_nothing_else() -> None:
    of, tight = parts("draft"), parts("draft")
    images = tight.policy.images

    def small(x0: Tensor, cond: object = None) -> Tensor:
        if len(x0) > 2:
            raise torch.OutOfMemoryError("injected")
        return images(x0)

    tight.policy.images = small  # pyright: ignore
    one, other = session(of, Sizes(8, 8)), session(tight, Sizes(8, 8))
    rows = direct.iterate(of, one), direct.iterate(tight, other)
    assert other.sizes.slice == 2 and one.sizes.slice == 8
    assert rows[0]["grad/norm"] == pytest.approx(rows[1]["grad/norm"], rel=1e-4)


# refusals


def test_a_reward_without_gradient_is_refused_and_told_what_to_do() -> None:
    of = parts("draft", toy.REWARD)
    with pytest.raises(ValueError, match=r"'draft' differentiates its reward, and 'toy' only scores; use clip, or mark a function"):
        engine(of.method).rehearse(of, of.method.plan_at(0, GRID, 0))


def test_a_reward_that_drops_its_graph_is_refused() -> None:
    of = parts("draft", make(differentiable(lambda images, p, m: images.detach().sum((1, 2, 3))), "cut"))
    with pytest.raises(ValueError, match="returned scores without a graph"):
        direct.iterate(of, session(of))


def test_a_reward_that_breaks_says_which() -> None:
    of = parts("draft", make(differentiable(lambda images, p, m: images.nonsense), "broken"))
    with pytest.raises(RewardError, match="reward 'broken' failed on"):
        direct.iterate(of, session(of))


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("draft", {"k": 7}, "trains the last 7 steps of a schedule of 6; use method.args.k=6"),
        ("drtune", {"trained": 6, "early": 0.5}, "trains 6 steps, but a schedule of 6 may stop after"),
    ],
)
def test_more_trained_steps_than_the_schedule_has_are_refused_before_the_run(name: str, args: dict[str, Any], said: str) -> None:
    of = parts(name, **args)
    with pytest.raises(ValueError, match=said):
        engine(of.method).rehearse(of, of.method.plan_at(0, GRID, 0))


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("draft", {"k": 0}, "k is at least 1"),
        ("draft", {"k": 2, "lv": 1}, "redraws .* are of the last step"),
        ("draft", {"loss": "mse"}, "loss 'mse' is unknown; use one of minus, rest, hinge, distance"),
        ("draft", {"beta": -1.0}, "a beta of 0 or more"),
        ("refl", {"late": 1.5}, "late is a share of the schedule and is 1.5"),
        ("refl", {"scale": 0.0}, "scale is 0, so nothing would be minimised"),
        ("alignprop", {"start": "middle"}, "start 'middle' is unknown"),
        ("drtune", {"trained": 0}, "0 trained steps"),
        ("srpo", {"unwanted": "Realistic photo. "}, "give two different ones"),
        ("srpo", {"first": 1.0}, "fall inside"),
    ],
)
def test_arguments_that_could_not_work_are_sentences(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        direct.TABLE[name](**args)


def test_routes_that_could_not_work_are_sentences() -> None:
    with pytest.raises(ValueError, match="must fall to 0"):
        Route((1.0, 0.5), (True,))
    with pytest.raises(ValueError, match="has 2 flags; give one a step"):
        Route((1.0, 0.0), (True, False))
    with pytest.raises(ValueError, match="nothing would be trained"):
        route(GRID, [5], 3)
    with pytest.raises(ValueError, match="cannot stop at step 6"):
        route(GRID, [5], 6)


def test_the_recipes_find_direct_methods_by_name_and_allow_groups_of_one() -> None:
    made = build.method(MethodSpec("draft", {"k": 3}), 1)
    assert isinstance(made, Direct) and made.group == 1
    assert isinstance(build.method(MethodSpec("flowrl.direct:srpo"), 2), Direct)
    with pytest.raises(ValueError, match="did you mean 'draft'"):
        build.method(MethodSpec("drat"), 4)
    with pytest.raises(ValueError, match="has nothing to compare with"):
        build.method(MethodSpec("flow_grpo"), 1)


def test_marked_functions_are_rewards_of_both_kinds() -> None:
    smooth = make(differentiable(toy.slope), "smooth")
    assert isinstance(smooth, DifferentiableReward) and not isinstance(toy.REWARD, DifferentiableReward)
    assert make(differentiable(toy.slope)).name == "slope"
    of = replace(parts("draft"), rewards={"toy": (smooth, 1.0)})
    assert direct.smooth(of)["toy"][0] is smooth
