"""Plans: what cannot work cannot be built, and what is built costs what the papers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.samplers import Plan, chains, comb, laws, schedules, solvers, tree, units

quick = settings(deadline=None, max_examples=50)  # a shared machine may stall at any moment
LAW = laws.flow_sde(0.7)
GRID = schedules.linear_shift(4)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any chain, tree or comb of up to 8 steps."""
    steps = draw(st.integers(2, 8))
    grid = schedules.linear_shift(steps, draw(st.sampled_from([1.0, 3.0])))
    law = draw(st.sampled_from([LAW, laws.dance_sde(0.3), laws.cps(0.5)]))
    noisy = draw(st.lists(st.integers(0, steps - 2), unique=True, max_size=steps))
    kind = draw(st.sampled_from(["chains", "tree", "comb"]))
    if kind == "chains":
        return chains(grid, law, noisy, draw(st.integers(1, 4)))
    if kind == "tree":
        return tree(grid, law, noisy, {i: draw(st.integers(1, 3)) for i in noisy[:3]})
    return comb(grid, law, noisy, draw(st.integers(1, 3)), draw(st.sampled_from([(1,), (1, 2), (2, 3)])))


@quick
@given(plans())
def test_every_built_plan_hangs_together(plan: Plan) -> None:
    has = plan.parent >= 0
    assert (plan.sigma[plan.parent[has]] > plan.sigma[has]).all()
    assert torch.equal(plan.edges, plan.noisy.nonzero().flatten())
    assert set(plan.rows.tolist()) == {int(plan.parent[n]) for n in plan.edges}
    assert set(plan.kept.tolist()) == {*plan.rows.tolist(), *plan.edges.tolist(), *plan.leaves.tolist()}
    assert sorted(torch.cat([*plan.waves, plan.roots]).tolist()) == list(range(len(plan.parent)))
    assert (plan.sigma[plan.leaves] == 0).all()
    for k, wave in enumerate(plan.waves):
        assert (plan.depth[wave] == k + 1).all()
    for n, p in enumerate(plan.parent.tolist()):
        assert int(plan.root[n]) == (n if p < 0 else int(plan.root[p]))
    quiet = [
        (p, s)
        for p, s, loud in zip(plan.parent.tolist(), plan.sigma.tolist(), plan.noisy.tolist(), strict=True)
        if p >= 0 and not loud
    ]
    assert len(set(quiet)) == len(quiet)
    assert plan.nfe() == len({p for p in plan.parent.tolist() if p >= 0})
    assert (plan.coefficients(plan.edges)[2] > 0).all()


@quick
@given(plans(), plans())
def test_plans_have_equal_keys_iff_they_do_the_same(one: Plan, other: Plan) -> None:
    same = all(torch.equal(getattr(one, k), getattr(other, k)) for k in ("sigma", "parent", "noisy")) and all(
        torch.equal(a, b)
        for a, b in zip(one.coefficients(one.edges), other.coefficients(other.edges), strict=True)
        if len(a) == len(b)
    )
    assert (one.key == other.key) == (same and one.guard == other.guard)


def test_a_plan_built_twice_has_one_key() -> None:
    assert chains(GRID, laws.flow_sde(0.7), [0], 2).key == chains(GRID, laws.flow_sde(0.7), [0], 2).key
    for other in (
        chains(GRID, laws.flow_sde(0.6), [0], 2),
        chains(GRID, laws.flow_sde(0.7), [1], 2),
        chains(GRID, laws.flow_sde(0.7), [0], 3),
    ):
        assert other.key != chains(GRID, laws.flow_sde(0.7), [0], 2).key


def arrays(sigma: list[float], parent: list[int], noisy: list[bool], **more: Any) -> Plan:
    return Plan(
        torch.tensor(sigma, dtype=torch.float64), torch.tensor(parent), torch.tensor(noisy), **{"law": LAW, "guard": 0.75, **more}
    )


BAD = {
    "lengths": (lambda: arrays([1, 0.5], [-1], [False]), "they need one entry a node"),
    "above 1": (lambda: arrays([1.1, 0.5], [-1, 0], [False, False]), r"must lie in \[0, 1\], got 0.5 to 1.1"),
    "below 0": (lambda: arrays([1, -0.1], [-1, 0], [False, False]), r"must lie in \[0, 1\]"),
    "order": (lambda: arrays([0.5, 1], [1, -1], [False, False]), "before its parent; list parents first"),
    "own parent": (lambda: arrays([1, 0.5], [-1, 1], [False, False]), "before its parent"),
    "noisy root": (lambda: arrays([1, 0.5], [-1, 0], [True, False]), "a root has no edge"),
    "rises": (lambda: arrays([0.5, 0.7], [-1, 0], [False, False]), "sigma must fall along every edge"),
    "stands": (lambda: arrays([0.5, 0.5], [-1, 0], [False, False]), "sigma must fall along every edge"),
    "not a number": (lambda: arrays([1, math.nan], [-1, 0], [False, False]), "sigma must fall along every edge"),
    "twins": (
        lambda: arrays([1, 0.5, 0.5], [-1, 0, 0], [False, False, False]),
        "branches without noise: its children would be identical",
    ),
    "std 0": (
        lambda: chains(GRID, laws.cps(0.5), range(4)),
        "0.25 -> 0 is marked noisy but its law gives std 0 there; end the stoch",
    ),
    "noisy ode": (lambda: chains(GRID, laws.ode(), [1]), "std 0"),
    "std inf": (lambda: arrays([1, 0.5], [-1, 0], [False, True], guard=1.0), "gives std inf there"),
    "no such step": (lambda: chains(GRID, LAW, [4]), "step 4 does not exist: the schedule has steps 0 to 3"),
    "negative step": (lambda: comb(GRID, LAW, [-1], 2), "step -1 does not exist"),
    "no group": (lambda: chains(GRID, LAW, [0], 0), "a group of 0: give at least 1"),
    "quiet fan": (lambda: tree(GRID, LAW, [0], {1: 2}), "branches at step 1, which is not noisy"),
    "fan beyond": (lambda: tree(GRID, LAW, [0], {7: 2}), "step 7 does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_work_is_refused_in_a_sentence(name: str) -> None:
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_noisy_children_of_one_state_are_no_twins() -> None:
    plan = arrays([1, 0.5, 0.5, 0.5, 0], [-1, 0, 0, 0, 1], [False, True, True, False, False])
    assert plan.rows.tolist() == [0] and plan.nfe() == 2


@pytest.mark.parametrize("steps", [4, 10])
def test_flow_grpo_costs_a_call_a_step(steps: int) -> None:
    plan = chains(schedules.sd3(steps), LAW, range(steps - 1), 24)
    assert plan.nfe() == 24 * steps
    assert len(plan.edges) == len(plan.rows) == 24 * (steps - 1) and len(plan.leaves) == 24


def test_mixgrpo_trains_its_window_only() -> None:
    plan = chains(schedules.linear_shift(25, 3.0), LAW, range(5, 9), 12)
    assert plan.nfe() == 12 * 25 and len(plan.rows) == 12 * 4
    assert plan.coefficients(plan.edges)[2].shape == (48,)


def test_branchgrpo_makes_203_calls_for_16_leaves() -> None:
    plan = tree(schedules.linear_shift(20, 3.0), laws.dance_sde(0.3), range(20), {0: 2, 3: 2, 6: 2, 9: 2})
    assert plan.nfe() == 203 and len(plan.leaves) == 16 and len(plan.roots) == 1
    assert len(plan.rows) == 203


def test_tempflow_makes_280_calls_and_trains_on_9_states() -> None:
    plan = comb(schedules.sd3(10), LAW, range(9), 6)
    assert plan.nfe() == 280
    assert len(plan.edges) == 54 and len(plan.rows) == 9
    assert len(plan.leaves) == 55  # the spine's own end is one


def test_granularities_of_a_comb_share_the_noisy_step() -> None:
    plan = comb(schedules.linear_shift(8), LAW, [1], 3, strides=(1, 2, 3))
    assert len(plan.edges) == 3 and len(plan.rows) == 1 and len(plan.leaves) == 1 + 3 * 3
    ends = sorted({float(s) for s in plan.sigma[plan.parent[plan.leaves]]})
    # from 0.625, the level after the tooth's, in strides of 1, 2 and 3; the last level of each way gives way to the jump to 0
    assert ends == [0.125, 0.375, 0.625]


def test_a_solver_of_two_calls_costs_two_on_quiet_steps_only() -> None:
    assert chains(GRID, LAW, [0, 1], 3).nfe(solvers.heun) == 3 * (2 + 2 + 1)


def test_units_are_roots_of_prompts_in_prompt_order() -> None:
    plan = chains(GRID, LAW, [0], 2)
    assert units(plan, 3).tolist() == [[p, r] for p in range(3) for r in plan.roots.tolist()]
    assert units(tree(GRID, LAW, [0], {0: 4}), 2).tolist() == [[0, 0], [1, 0]]
