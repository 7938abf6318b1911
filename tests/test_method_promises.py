"""What each method of the table promises of its credit, what has no influence on its gradient, and that no two are the same."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import toy
from method_table import TABLE
from test_objectives import moved
from torch import Tensor

from flowrl import methods
from flowrl.collect import Collected, collect
from flowrl.replay import Work
from flowrl.rewards.base import Scores, State
from flowrl.samplers import Plan, Rollout
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes, cut
from flowrl.types import Credit, Method, Outcome
from flowrl.update import update
from flowrl.weights import Weights

GRID = toy.Policy().sigmas(toy.STEPS)
SLOTS = torch.arange(len(toy.PROMPTS))
NOISE = Source(0, 0)


def made(name: str) -> tuple[Method, Plan]:
    method = methods.TABLE[name](**TABLE[name].args)
    return method, method.plan_at(0, GRID, 0)


# ------------------------------------------------------------------ credit
def scored(values: Tensor, valid: Tensor | None = None) -> Scores:
    return Scores(values.float(), torch.ones_like(values, dtype=torch.bool) if valid is None else valid)


def earned(name: str, plan: Plan, seed: int) -> Outcome:
    """Rewards of 4 prompts, no two alike, inside what the method takes."""
    draw, shape = torch.Generator().manual_seed(seed), (len(toy.PROMPTS), len(plan.leaves))
    u, other = torch.rand(2, *shape, generator=draw, dtype=torch.float64)
    return Outcome(
        plan,
        {"toy": scored(0.1 + 0.3 * u if TABLE[name].unit else 3.5 * u - 2), "other": scored(other)},
        {"toy": 1.0, "other": 0.0},
        toy.PROMPTS,
        toy.METADATA,
        SLOTS,
        0,
        torch.randn(shape[0], len(plan.edges), generator=draw),
        torch.rand(*shape, 3, generator=draw),
    )


def altered(outcome: Outcome, factor: float = 1.0, shift: float = 0.0) -> Outcome:
    values = outcome.scores["toy"].values.double() * factor + shift
    return replace(outcome, scores={**outcome.scores, "toy": scored(values)})


def credits(name: str, factor: float = 1.0, shift: float = 0.0) -> tuple[Plan, list[Credit]]:
    """Of two iterations, for methods that remember, by rewards that were all altered."""
    method, plan = made(name)
    state: State = method.advantage.init()
    found = []
    for iteration in range(2):
        credit, state = method.advantage.apply(altered(earned(name, plan, iteration), factor, shift), state)
        found.append(credit)
    return plan, found


def differ(name: str, factor: float, shift: float) -> float:
    """The largest change of an advantage, relative to the largest; infinite where a weight changed."""
    _, plain = credits(name)
    _, other = credits(name, factor, shift)
    change = 0.0
    for a, b in zip(plain, other, strict=True):
        same = torch.equal(a.weight, b.weight) and torch.equal(a.kl_weight, b.kl_weight)
        change = max(change, float((a.advantage - b.advantage).abs().max() / a.advantage.abs().max()) if same else torch.inf)
    return change


@pytest.mark.parametrize("name", TABLE)
def test_a_constant_on_all_rewards_changes_no_credit_where_that_is_promised(name: str) -> None:
    change = differ(name, 1.0, 0.25 if TABLE[name].unit else 3.0)
    assert change < 1e-4 if TABLE[name].shift is True else change > 1e-2


@pytest.mark.parametrize("name", TABLE)
def test_the_unit_of_the_reward_changes_no_credit_where_that_is_promised(name: str) -> None:
    change = differ(name, 2.0, 0.0)
    # epsilons of 1e-4 and 1e-3 stand beside deviations of about 1
    assert change < 2e-3 if TABLE[name].scale is True else change > 2e-2


@pytest.mark.parametrize("name", TABLE)
def test_advantages_sum_to_0_among_peers_where_that_is_promised(name: str) -> None:
    plan, found = credits(name)
    nodes = plan.edges if len(plan.edges) else plan.leaves
    largest = 0.0
    for credit in found:
        weighed = credit.advantage.double() * credit.weight
        assert (credit.weight[:, nodes] > 0).any()
        for which in plan.peers[nodes].unique():
            mine = nodes[plan.peers[nodes] == which]
            largest = max(largest, float(weighed[:, mine].sum(1).abs().max()))
    assert largest < 1e-5 if TABLE[name].zero_sum is True else largest > 1e-2


def test_a_promise_that_is_not_made_has_a_reason() -> None:
    for name, row in TABLE.items():
        for promise in (row.zero_sum, row.shift, row.scale):
            assert promise is True or len(promise.split()) > 3, name
        assert row.alias is None or (row.alias[0] in TABLE and len(row.alias[1].split()) > 3)


def holed(outcome: Outcome, junk: float) -> Outcome:
    """The first image of every prompt, and those of the last recorded step of the first prompt, could not be scored."""
    plan, hole = outcome.plan, torch.zeros(outcome.scores["toy"].values.shape, dtype=torch.bool)
    hole[:, 0] = True
    if len(plan.edges):
        hole[0] |= plan.ends[plan.edges[-1]]
    return replace(
        outcome, scores={name: Scores(torch.where(hole, junk, s.values), s.valid & ~hole) for name, s in outcome.scores.items()}
    )


def unscored(plan: Plan, outcome: Outcome) -> Tensor:
    """Nodes no leaf of which could be scored [P, n]."""
    return ~(plan.ends[None] & outcome.scores["toy"].valid[:, None]).any(2)


@pytest.mark.parametrize("name", TABLE)
def test_what_could_not_be_scored_has_no_weight_and_its_value_no_influence(name: str) -> None:
    method, plan = made(name)
    found = []
    for junk in (torch.nan, 0.3, 0.9):
        state: State = method.advantage.init()
        for iteration in range(2):
            outcome = holed(earned(name, plan, iteration), junk)
            credit, state = method.advantage.apply(outcome, state)
        trained = torch.isin(torch.arange(len(plan.parent)), plan.edges if len(plan.edges) else plan.leaves)
        dead = unscored(plan, outcome) & trained
        assert dead.any() and (credit.weight[dead] == 0).all() and (credit.advantage[dead] == 0).all()
        assert torch.isfinite(credit.advantage).all()
        found.append(credit)
    for other in found[1:]:
        assert torch.equal(other.advantage, found[0].advantage) and torch.equal(other.weight, found[0].weight)


# ------------------------------------------------------------------ gradients
def gathered(name: str, method: Method, policy: toy.Policy) -> Work:
    """The method's own rollout on the toy, scored by two rewards that both count where the method takes them, not yet asked."""
    plan = method.plan_at(0, GRID, 0)
    rewards = {"toy": toy.SUCCESS if TABLE[name].unit else toy.REWARD, "other": toy.OTHER}
    factors = {"toy": 1.0, "other": 0.0 if method.features or TABLE[name].unit else 0.5}
    sizes = Sizes(8, 12)
    blocks = cut(plan, len(SLOTS), sizes, method.updates, 1, not method.objective.separable)
    states = {n: r.init() for n, r in rewards.items()}
    got = collect(
        policy, plan, toy.TEXTS, SLOTS, rewards, factors, states, blocks, sizes, NOISE, toy.WORLD, None, method.solver, toy.features
    )
    return Work(got, None, blocks)


def recorded(got: Collected) -> Rollout:
    assert got.rollout is not None
    return got.rollout


def gradient(method: Method, policy: toy.Policy, work: Work, credit: Credit) -> Tensor:
    """Minus the gradient of one optimizer step, of weights that have moved on from those that sampled."""
    q = method.objective.queries(recorded(work.got), credit, NOISE)
    weights = Weights(policy, method.weights)
    before = [p.detach().clone() for p in weights.parameters]
    moved(policy)
    start = [p.detach().clone() for p in weights.parameters]
    optimizer = torch.optim.SGD(weights.parameters, lr=1.0)
    update(policy, weights, method, [replace(work, queries=q)], optimizer, 1e9, NOISE, toy.WORLD, exact=False)
    change = torch.cat([(p.detach() - s).flatten() for p, s in zip(weights.parameters, start, strict=True)])
    with torch.no_grad():
        for p, b in zip(weights.parameters, before, strict=True):
            p.copy_(b)
    return change


@pytest.mark.parametrize("name", TABLE)
def test_the_record_of_what_could_not_be_scored_has_no_influence_on_the_gradient(name: str) -> None:
    method = replace(made(name)[0], updates=1, epochs=1)
    policy = toy.Policy(excited=True, noisy=TABLE[name].noisy)
    work = gathered(name, method, policy)
    outcome = holed(work.got.outcome, torch.nan)
    credit, _ = method.advantage.apply(outcome, method.advantage.init())
    ro, plan = recorded(work.got), outcome.plan
    dead = unscored(plan, outcome)
    x, u = ro.x.clone(), ro.u.clone()
    x[dead[:, plan.kept]] += 0.5
    u[dead[:, plan.rows]] += 0.5
    assert not torch.equal(x, ro.x)
    spoilt = replace(work, got=replace(work.got, rollout=replace(ro, x=x, u=u)))
    one, other = (gradient(method, policy, w, credit) for w in (work, spoilt))
    assert float(one.abs().max()) > 1e-6
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(one.abs().max()))


# ------------------------------------------------------------------ no two alike
COMMON: dict[str, Any] = {
    "group": 6,
    "noise": 0.7,
    "law": "flow_sde",
    "std": "group",
    "clip": 1e-2,
    "updates": 1,
    "draws": 2,
    "window": 2,
    "pairs": 2,
    "average": 0.0,
}
"""Arguments that are the same for all, so that what differs is the method."""
OWN = {"mc_grpo": {"group": 7}, "tree_rpo": {"group": 4}, "branch_grpo": {"window": None}, "dgpo": {"clip": 0.5}}
RATIO = {"beta": 0.0}


def alike(name: str) -> Method:
    """The method by common arguments, as far as it knows them; KLs off where it is a ratio's."""
    known = inspect.signature(methods.TABLE[name]).parameters
    common = COMMON | (RATIO if TABLE[name].ratio and name != "awm" else {}) | OWN.get(name, {})
    return methods.TABLE[name](**TABLE[name].args | {k: v for k, v in common.items() if k in known})


@cache
def print_of(name: str) -> tuple[object, Tensor]:
    """Plans of four iterations, and the gradient of a step off the policy that sampled, after one batch to remember."""
    method = alike(name)
    keys = tuple(method.plan_at(iteration, GRID, slot).key for iteration in range(4) for slot in range(2))
    policy = toy.Policy(excited=True, noisy=TABLE[name].noisy)
    work = gathered(name, method, policy)
    outcome, state = work.got.outcome, method.advantage.init()
    earlier = {n: Scores(s.values.flip(1).roll(1, 0), s.valid.flip(1).roll(1, 0)) for n, s in outcome.scores.items()}
    _, state = method.advantage.apply(replace(outcome, scores=earlier), state)
    credit, _ = method.advantage.apply(outcome, state)
    return keys, gradient(method, policy, work, credit)


def test_plan_and_gradient_of_any_two_methods_differ_but_for_aliases() -> None:
    same = set()
    for i, one in enumerate(TABLE):
        for other in list(TABLE)[i + 1 :]:
            (plan, change), (plan2, change2) = print_of(one), print_of(other)
            if plan == plan2 and change.shape == change2.shape:
                scale = float(change.abs().max())
                if torch.allclose(change, change2, rtol=0, atol=1e-4 * scale):
                    same.add(frozenset((one, other)))
    assert same == {frozenset((name, row.alias[0])) for name, row in TABLE.items() if row.alias}
