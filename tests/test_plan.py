"""Plans: what cannot work cannot be built, and what is built costs what the papers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.methods import VISUAL
from flowrl.samplers import Plan, chains, comb, join, laws, merged, own_share, paths, schedules, solvers, tree, units

quick = settings(deadline=None, max_examples=50)  # a shared machine may stall at any moment
LAW = laws.flow_sde(0.7)
GRID = schedules.linear_shift(4)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any chain, tree or comb of up to 8 steps."""
    steps = draw(st.integers(2, 8))
    grid = schedules.linear_shift(steps, draw(st.sampled_from([1.0, 3.0])))
    law = draw(st.sampled_from([LAW, laws.dance_sde(0.3), laws.cps(0.5), laws.precise(1.0)]))
    noisy = draw(st.lists(st.integers(0, steps - 2), unique=True, max_size=steps))
    kind = draw(st.sampled_from(["chains", "tree", "comb", "merged"]))
    mix = draw(st.sampled_from([1.0, 0.6]))
    if kind == "chains":
        return chains(grid, law, noisy, draw(st.integers(1, 4)), mix)
    if kind == "tree":
        return tree(grid, law, noisy, {i: draw(st.integers(1, 3)) for i in noisy[:3]}, mix)
    if kind == "merged":
        at = draw(st.integers(0, steps - 2))
        return join([merged(grid, law, at, k, draw(st.integers(1, 2))) for k in range(1, min(3, steps - at))])
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
    marks = all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in ((one.label, other.label), (one.mix, other.mix))
    )
    assert (one.key == other.key) == (same and marks and one.guard == other.guard)


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
    "fan of none": (lambda: tree(GRID, LAW, [0], {0: 0}), "a fan at step 0 of 0"),
    "no teeth": (lambda: comb(GRID, LAW, [0], 0), "a tooth of 0"),
    "no strides": (lambda: comb(GRID, LAW, [0], 2, ()), "a number of strides of 0"),
    "a stride twice": (lambda: comb(GRID, LAW, [0], 2, (1, 1)), "hold one twice"),
    "half a step": (lambda: chains(GRID, LAW, [0.5]), "step 0.5 does not exist"),  # pyright: ignore[reportArgumentType]
    "stride 0": (lambda: comb(GRID, LAW, [0], 2, (1, 0)), "a stride of 0"),
    "one level": (lambda: chains([1.0], LAW), "1 level.s. has no step"),
    "twins by mix": (
        lambda: chains(GRID, LAW, [0], 2, mix=0.0),
        "must lie in .0, 1., got 0 to 1: at 0 siblings would be identical",
    ),
    "mix above 1": (lambda: tree(GRID, LAW, [0], {0: 2}, mix=1.5), "must lie in .0, 1."),
    "labels": (lambda: arrays([1, 0.5], [-1, 0], [False, False], label=torch.tensor([1])), "label has 1 entries for a plan of 2"),
    "merged beyond": (lambda: merged(GRID, LAW, 2, 3), "3 steps from step 2 on do not fit into a schedule of 4"),
    "merged by none": (lambda: merged(GRID, LAW, 2, 0), "0 steps from step 2"),
    "join nothing": (lambda: join([]), "no plan to join"),
    "join strangers": (lambda: join([chains(GRID, LAW, [0]), chains(GRID, laws.cps(0.5), [0])]), "differ in their law or guard"),
    "join granularities": (lambda: join([comb(GRID, LAW, [0], 2, (1, 2))] * 2), "has labels of its own"),
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


def test_a_comb_may_end_with_a_noisy_last_step() -> None:
    """G2RPO and TempFlow may branch at the last step: its teeth are images."""
    plan = comb(GRID, LAW, [3], 3)
    assert len(plan.leaves) == 4 and (plan.sigma[plan.edges] == 0).all() and set(plan.edges.tolist()) <= set(plan.leaves.tolist())
    assert plan.nfe() == 4


def test_ways_of_unlike_strides_share_nodes_and_keep_their_bits() -> None:
    plan = comb(schedules.linear_shift(6), LAW, [1, 4], 1, strides=(1, 2, 3))
    assert plan.label is not None
    early, late = plan.edges.tolist()
    assert plan.label[[early, late]].tolist() == [7, 7]
    leaves = [n for n in plan.leaves.tolist() if plan.label[n]]
    for start in (early, late):
        below = [n for n in leaves if start in ancestors(plan, n)]
        assert sum(int(plan.label[n]).bit_count() for n in below) == 3  # each stride ends once
    assert [int(plan.label[n]) for n in leaves if late in ancestors(plan, n)] == [7]  # near the end all ways are one


def ancestors(plan: Plan, node: int) -> list[int]:
    out = []
    while node >= 0:
        out.append(node)
        node = int(plan.parent[node])
    return out


@pytest.mark.evidence("derived", "e_grpo")
def test_a_merged_step_jumps_and_keeps_the_guard() -> None:
    plan = merged(GRID, LAW, 0, 2, 3)
    assert len(plan.edges) == 3 and (plan.sigma[plan.edges] == 0.5).all() and plan.guard == 0.75
    wide, one = plan.coefficients(plan.edges)[2][0], chains(GRID, LAW, [0]).coefficients(torch.tensor([1]))[2][0]
    assert float(wide / one) == pytest.approx(math.sqrt(2))  # the level is the same, the step twice as long
    assert plan.nfe() == 3 * 3


@pytest.mark.evidence("derived", "e_grpo")
def test_joined_plans_keep_their_shapes_and_compete_apart() -> None:
    one, two = merged(GRID, LAW, 1, 1, 2), merged(GRID, LAW, 1, 2, 2)
    both = join([one, two])
    assert both.nfe() == one.nfe() + two.nfe() and len(both.leaves) == 4 and len(both.roots) == 4
    assert both.label is not None and both.label[both.leaves].tolist() == [0, 0, 1, 1]
    assert torch.equal(both.sigma[both.edges], torch.cat([one.sigma[one.edges], two.sigma[two.edges]]))
    mixed = join([chains(GRID, LAW, [0], 2, mix=0.5), chains(GRID, LAW, [1], 1)])
    assert mixed.mix is not None and mixed.mix[mixed.roots].tolist() == [0.5, 0.5, 1.0]


def test_the_own_share_of_branchgrpos_noise() -> None:
    assert own_share(4.0) == pytest.approx(4 / math.sqrt(17)) and own_share(0.0) == 0


def test_further_calls_are_made_at_quiet_steps_that_do_not_end_at_0() -> None:
    plan = comb(GRID, LAW, [1], 2)
    quiet = [n for n, p in enumerate(plan.parent.tolist()) if p >= 0 and not plan.noisy[n]]
    states = len({int(plan.parent[n]) for n in range(len(plan.parent)) if plan.parent[n] >= 0})
    assert plan.nfe(solvers.heun) == states + sum(1 for n in quiet if plan.sigma[n] > 0)
    assert plan.nfe(solvers.dpm(3)) == plan.nfe() == states


def test_height_counts_steps_to_the_furthest_leaf() -> None:
    plan = comb(GRID, LAW, [1], 1, strides=(1, 3))
    assert int(plan.height[0]) == 4 and (plan.height[plan.leaves] == 0).all()
    assert int(plan.height[plan.edges[0]]) == 2


FLASH = [11, 12, 13, 13, 14, 14, 15, 16, 16, 17, 17, 18, 19]


@pytest.mark.parametrize("start", range(len(FLASH)))
def test_flash_makes_as_many_calls_as_published(start: int) -> None:
    """MixGRPO-Flash, 25 steps, window 4, ratio 0.4: calls an image by the window's start; its solver asks once a step."""
    window = range(start, start + 4)
    plan = chains(schedules.flash_tail(schedules.linear_shift(25, 3.0), window[-1], 0.4), LAW, window, 12)
    assert plan.nfe(solvers.tail(solvers.dpm(2))) == 12 * FLASH[start] and len(plan.rows) == 12 * 4


def test_the_frozen_flash_makes_7_calls() -> None:
    plan = chains(schedules.flash_tail(schedules.linear_shift(25, 3.0), 3, 0.2), LAW, range(4))
    assert plan.nfe() == 7


def test_a_law_of_flows_leaves_too_much_noise_on_the_path_of_stable_diffusion() -> None:
    """The exact laws leave c^2 + s^2 = sigma'^2 on any path; an Euler-Maruyama step of a flow does nearly so on its own."""
    table = paths.alphas_cumprod()
    path, levels = paths.vp("epsilon", table), schedules.vp(10, table)
    flow = torch.cat([torch.linspace(1, 0.1, 10, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    made = {name: VISUAL[name]() for name in ("flow_grpo", "ddpo", "flow_cps")}
    assert made["flow_grpo"].plan_at(0, levels, 0).excess(path) > 5
    assert 1 < made["flow_grpo"].plan_at(0, flow, 0).excess() < 1.5
    for name in ("ddpo", "flow_cps"):
        assert made[name].plan_at(0, levels, 0).excess(path) == pytest.approx(1, abs=1e-9)
