"""Compositions of advantages on plans: what they weigh, drop, gate and remember."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_advantage import outcome
from test_plan import plans
from torch import Tensor

from flowrl import advantage as adv
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, chains, comb, laws, schedules, tree
from flowrl.types import Advantage, Credit, Outcome

quick = settings(deadline=None, max_examples=25)
GRID, LAW = schedules.linear_shift(4), laws.flow_sde(0.7)
CHAINS = chains(GRID, LAW, [0, 1], 4)
BINARY = tree(GRID, LAW, [0, 1, 2], {0: 2, 1: 2})
R = torch.tensor([[0.0, 1.0, 0.5, 0.25], [1.0, 0.75, 0.125, 0.0], [0.5, 0.25, 1.0, 0.0]], dtype=torch.float64)


def scores(r: Tensor) -> Scores:
    return Scores(r.float(), torch.isfinite(r))


def of(r: Tensor = R, plan: Plan = CHAINS, **more: Tensor) -> Outcome:
    """Rewards r with factor 1, others with factor 0."""
    names = {"main": scores(r), **{k: scores(v) for k, v in more.items()}}
    return replace(outcome(plan, names, dict.fromkeys(names, 0.0) | {"main": 1.0}), prompts=["a", "b", "c"][: len(r)])


def full(r: Tensor = R, plan: Plan = CHAINS) -> Outcome:
    """Everything that some composition asks for."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(*r.shape, 5, generator=draw)
    log_prob = torch.randn(len(r), len(plan.edges), generator=draw)
    return replace(of(r, plan, other=r.flip(1)), features=features, log_prob=log_prob, metrics={"kl/mean": 0.2})


ALL: dict[str, Advantage] = {
    "group": adv.Group(),
    "center": adv.Composed(adv.center),
    "gdpo": adv.Group(ddof=1, combine=adv.gdpo),
    "treegrpo": adv.Composed(adv.zscore, fusion="softmax", first="estimate", zero_sum=False),
    "path": adv.Group(fusion="path"),
    "mc": adv.Composed(partial(adv.mc, drop=True), least=3, zero_sum=False),
    "win rate": adv.WinRate(),
    "granular": adv.Granular(),
    "best of": adv.Best(2),
    "strata": adv.San(lambda outcome: torch.tensor([0, 1, 0, 1]).expand(len(outcome.prompts), -1)),
    "tracked": adv.Tracked(least=8),
    "dcpo": adv.Dcpo(),
    "spo": adv.Spo(),
    "bundled": adv.Bundled(2),
    "lifted": adv.lift(lambda outcome: adv.Group().apply(outcome, {})[0]),
    "pruned": adv.Pruned(adv.Group(), lambda iteration: [1]),
    "narrowed": adv.Narrowed(adv.Group()),
    "extremes": adv.Extremes(adv.Group(), 2),
    "extremes of all": adv.Extremes(adv.Group(), 4, "batch"),
    "downsampled": adv.Downsampled(adv.Group()),
    "pareto": adv.Pareto(adv.Composed(adv.raw, zero_sum=False)),
    "gated": adv.Gated(adv.Group(), "other", 0.5),
    "unlikely": adv.Unlikely(adv.Group()),
    "gardo": adv.Gardo(adv.Composed(adv.center)),
    "adaptive": adv.Adaptive(adv.Group(), 0.1),
    "nested": adv.Adaptive(adv.Extremes(adv.Gardo(adv.Tracked()), 2), 0.1),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("plan", [CHAINS, BINARY], ids=["chains", "tree"])
def test_every_composition_gives_finite_credit_and_a_state_of_its_own(name: str, plan: Plan) -> None:
    method = ALL[name]
    start = method.init()
    kept = repr(start)
    credit, state = method.apply(full(plan=plan), start)
    again, after = method.apply(full(plan=plan), state)
    assert repr(start) == kept == repr(method.init())
    for c in (credit, again):
        for values in (c.advantage, c.weight, c.kl_weight):
            assert values.shape == (3, len(plan.parent)) and values.dtype == torch.float32 and torch.isfinite(values).all()
        assert set(c.weight.unique().tolist()) <= {0.0, 1.0} and c.kl_scale > 0
    assert (credit.weight > 0).any() and type(after) is dict


@pytest.mark.parametrize("name", [n for n, a in ALL.items() if getattr(a, "zero_sum", False) and n != "pruned"])
@pytest.mark.parametrize("plan", [CHAINS, BINARY], ids=["chains", "tree"])
def test_credit_said_to_sum_to_0_does(name: str, plan: Plan) -> None:
    credit, _ = ALL[name].apply(full(plan=plan), ALL[name].init())
    ids = adv.peers(plan)
    for which in ids[plan.edges].unique():
        total = credit.advantage[:, ids == which].double().sum(1)
        assert total.abs().max() < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_an_image_without_a_score_has_no_weight_and_no_influence(name: str) -> None:
    hole = torch.zeros_like(R, dtype=torch.bool)
    hole[0, 1] = True
    base, _ = ALL[name].apply(full(torch.where(hole, math.nan, R)), ALL[name].init())
    missing = (CHAINS.root == CHAINS.roots[1]) & (CHAINS.parent >= 0)
    assert (base.weight[0, missing] == 0).all() and (base.advantage[0, missing] == 0).all()
    junk = full(torch.where(hole, 7.0, R))
    masked = {
        k: Scores(s.values, torch.isfinite(full(torch.where(hole, math.nan, R)).scores[k].values)) for k, s in junk.scores.items()
    }
    other, _ = ALL[name].apply(replace(junk, scores=masked), ALL[name].init())
    assert torch.equal(base.advantage, other.advantage) and torch.equal(base.weight, other.weight)


@pytest.mark.parametrize("name", ["group", "center", "win rate", "gdpo", "mc"])
def test_a_plan_where_too_few_compete_is_a_sentence(name: str) -> None:
    alone = chains(GRID, LAW, [0], 1)
    with pytest.raises(ValueError, match=r"needs at least \d that compete, and there are 1; make the group larger"):
        ALL[name].apply(of(R[:, :1], alone), ALL[name].init())


def test_a_reward_of_factor_0_plays_no_part() -> None:
    other = torch.full_like(R, math.nan)
    assert torch.equal(adv.weighed(of(other=other))[0], R) and adv.weighed(of(other=other))[1].all()
    for name in ("group", "gdpo", "pareto"):
        ours, _ = ALL[name].apply(of(other=other), {})
        assert (
            torch.equal(ours.advantage, ALL[name].apply(of(), {})[0].advantage)
            and (ours.weight == ALL[name].apply(of(), {})[0].weight).all()
        )
    with pytest.raises(ValueError, match="every reward of main, other has the factor 0"):
        adv.weighed(replace(of(other=other), weights={"main": 0.0, "other": 0.0}))


# ------------------------------------------------------------------ trees
def by_paths(plan: Plan, r: Tensor, logp: dict[int, float], node: int) -> float:
    """Softmax over the leaves below of the densities summed on the way."""
    found: list[tuple[float, float]] = []

    def walk(n: int, total: float) -> None:
        below = [c for c, p in enumerate(plan.parent.tolist()) if p == n]
        for c in below:
            walk(c, total + logp.get(c, 0.0))
        if not below and not math.isnan(value := float(r[plan.leaves.tolist().index(n)])):
            found.append((total, value))

    walk(node, 0.0)
    mass = sum(math.exp(t) for t, _ in found)
    return sum(math.exp(t) * v for t, v in found) / mass if found else math.nan


@quick
@given(plans(), st.data())
def test_path_fusion_is_a_softmax_over_leaves(plan: Plan, data: st.DataObject) -> None:
    r = torch.tensor([[data.draw(st.sampled_from([0.0, 1.0, -2.0, math.nan])) for _ in plan.leaves]], dtype=torch.float64)
    logp = torch.tensor([[data.draw(st.floats(-3, 3)) for _ in plan.edges]], dtype=torch.float64)
    got = adv.node_rewards(plan, r, None, "path", logp)[0]
    named = dict(zip(plan.edges.tolist(), logp[0].tolist(), strict=True))
    truth = torch.tensor([by_paths(plan, r[0], named, n) for n in range(len(plan.parent))], dtype=torch.float64)
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_paths_far_apart_in_density_do_not_overflow() -> None:
    logp = torch.full((1, len(BINARY.edges)), 900.0)
    logp[0, 0] = -900.0
    nodes = adv.node_rewards(BINARY, torch.arange(4.0)[None], None, "path", logp)
    assert torch.isfinite(nodes).all() and float(nodes[0, 0]) == 2.5


def probed() -> Plan:
    """A chain of three noisy steps, each of whose states (and the first) also has a quiet way to the end: leaves R_0 ... R_3."""
    sigma, parent, noisy = [1.0], [-1], [False]
    spine = 0
    for k in range(4):
        sigma.append(0.0)
        parent.append(spine)
        noisy.append(False)
        if k < 3:
            sigma.append(0.8 - 0.2 * k)
            parent.append(spine)
            noisy.append(True)
            spine = len(parent) - 1
    return Plan(torch.tensor(sigma, dtype=torch.float64), torch.tensor(parent), torch.tensor(noisy), laws.dance_sde(0.3), 0.8)


def along(r: list[float]) -> Tensor:
    """Rewards R_0 ... R_3 of `probed` in the order of its leaves."""
    return torch.tensor([r], dtype=torch.float64)


def test_gains_are_what_each_noisy_step_adds() -> None:
    plan = probed()
    assert adv.completions(plan, along([1, 3, 2, 6]))[0, plan.edges].tolist() == [3, 2, 6]
    assert adv.gains(plan, along([1, 3, 2, 6]))[0, plan.edges].tolist() == [2, -1, 4]
    assert adv.gains(plan, along([1, 3, 2, 6]))[0, ~plan.noisy].isnan().all()
    missing = adv.gains(plan, along([1, math.nan, 2, 6]))[0, plan.edges]
    assert missing.isnan().tolist() == [True, True, False] and missing[2] == 4


def test_gains_on_a_comb_are_teeth_less_the_spine() -> None:
    plan = comb(GRID, LAW, [0, 1], 2)
    r = torch.arange(len(plan.leaves), dtype=torch.float64)[None] ** 2
    done = adv.completions(plan, r)
    spine = float(done[0, 0])
    assert (adv.gains(plan, r)[0, plan.edges] == adv.node_rewards(plan, r)[0, plan.edges] - spine).all()
    credit, _ = adv.Group(fusion=adv.gains).apply(of(r, plan), {})
    usual, _ = adv.Group().apply(of(r, plan), {})
    assert torch.equal(credit.weight[0] > 0, plan.noisy)  # what is quiet earns nothing
    # teeth of one step share their spine, so that what they start from does not tell them apart
    torch.testing.assert_close(credit.advantage[0, plan.edges], usual.advantage[0, plan.edges], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("r", "how", "expected"),
    [
        ([1, 3, 2, 6], {}, [5, -1, 4]),  # up, down, up: the first and the last turn towards the end, which is 5 above the start
        ([1, 3, 2, 6], {"main": "total", "bonus": "gain", "replace": False}, [5 + 2, 5, 5 + 4]),
        ([1, 0, 2, 6], {}, [-1, 6, 4]),  # only the second: the first step goes the other way, the third goes on
        ([1, 2, 2, 0], {"scale": 2.0}, [1, 0, -2]),  # nothing turned: the gain before the last step is 0
        ([1, 3, 2, 6], {"bonus": "total", "scale": 0.5}, [2.5, -1, 2.5]),
    ],
)
def test_turning_points_count_more(r: list[float], how: dict[str, object], expected: list[float]) -> None:
    plan = probed()
    got = adv.turning(plan, along(r), **how)[0]  # pyright: ignore[reportArgumentType]
    assert got[plan.edges].tolist() == expected and got[~plan.noisy].isnan().all()


def test_value_differences_of_a_tree() -> None:
    r = torch.tensor([[0.0, 2.0, 4.0, 10.0]], dtype=torch.float64)  # values 1, 7 at the first branching, 4 at the root
    parents, leaves = BINARY.waves[0], BINARY.waves[1]
    a = adv.treepo(BINARY, r, decay=0.5)
    assert a[0, parents].tolist() == [-3, 3] and a[0, leaves].tolist() == [-0.5, 0.5, -1.5, 1.5]
    assert torch.equal(a[0, BINARY.waves[3]], a[0, leaves]) and a[0, 0].isnan()  # a way without branching shares its credit
    b = adv.tempo(BINARY, r, norm=False)
    assert b[0, parents].tolist() == [-6, 6] and b[0, leaves].tolist() == [-5, -1, -3, 9]
    assert b[0, BINARY.waves[3]].tolist() == [-4, -2, 0, 6]


def test_leaves_can_compete_before_their_credit_is_carried_up() -> None:
    credit, _ = adv.Composed(adv.zscore, first="estimate").apply(of(R, BINARY), {})
    z = adv.zscore(R)
    torch.testing.assert_close(credit.advantage[:, BINARY.waves[0]], torch.stack([z[:, :2].mean(1), z[:, 2:].mean(1)], 1))


def test_width_pruning_keeps_the_better_child_of_the_last_branching() -> None:
    value = adv.node_rewards(BINARY, R)
    late = BINARY.depth > 2
    keep = adv.narrowed(BINARY, value)
    assert keep[:, ~late].all()
    assert keep[:, BINARY.leaves].tolist() == [[False, True, True, False], [True, False, True, False], [True, False, True, False]]
    extreme = adv.narrowed(BINARY, value, 0.5, "extremes")
    assert extreme[:, BINARY.leaves].tolist() == [
        [True, True, False, False],
        [True, False, False, True],
        [False, False, True, True],
    ]
    assert adv.narrowed(CHAINS, adv.node_rewards(CHAINS, R)).all()  # nothing branches
    wrapped = adv.Narrowed(adv.Group(), until=3)
    assert torch.equal(wrapped.apply(of(R, BINARY), {})[0].weight > 0, keep)
    assert (wrapped.apply(replace(of(R, BINARY), iteration=4), {})[0].weight == 1).all()
    with pytest.raises(ValueError, match="not 2 by 'best'"):
        adv.narrowed(BINARY, value, 2.0)


# ------------------------------------------------------------------ wrappers
def leaves(credit: Credit, plan: Plan = CHAINS) -> list[list[float]]:
    return credit.weight[:, plan.leaves].tolist()


def test_best_of_n_imitates_the_n_best() -> None:
    credit, _ = adv.Best(1).apply(of(), {})
    assert leaves(credit) == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    assert torch.equal(credit.advantage, credit.weight) and torch.equal(credit.weight, credit.kl_weight)


def test_extremes_are_of_a_group_or_of_the_batch() -> None:
    r = R + torch.tensor([[0.0], [10.0], [20.0]])
    credit, _ = adv.Extremes(adv.Group(), 2).apply(of(r), {})
    assert leaves(credit) == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]]
    credit, _ = adv.Extremes(adv.Group(), 4, "batch").apply(of(r), {})
    assert leaves(credit) == [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert torch.equal(credit.advantage, adv.Group().apply(of(r), {})[0].advantage)  # what is left is not normalised again


def test_downsampling_keeps_its_share_of_what_could_be_scored() -> None:
    r = torch.where(R == 0.75, math.nan, R)
    credit, _ = adv.Downsampled(adv.Group(), 0.5).apply(of(r), {})
    assert sum(map(sum, leaves(credit))) == round(0.5 * 11)


def test_the_front_knows_which_way_a_reward_points() -> None:
    cost = torch.tensor([[0.0, 0.0, 5.0, 5.0]] * 3, dtype=torch.float64)
    whole = of(other=cost)
    credit, _ = adv.Pareto(adv.Composed(adv.raw)).apply(replace(whole, weights={"main": 1.0, "other": -1.0}), {})
    assert leaves(credit) == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_gate_that_is_unknown_or_unscored() -> None:
    with pytest.raises(ValueError, match="the gate 'aesthetic' is no reward of this run; use one of main, other"):
        adv.Gated(adv.Group(), "aesthetic", 0.5).apply(full(), {})
    gate = torch.tensor([[1.0, 0.0, 0.0, math.nan]], dtype=torch.float64)
    r = torch.tensor([[3.0, 5.0, math.nan, 7.0]], dtype=torch.float64)
    credit, _ = adv.Gated(adv.Composed(adv.raw), "other", 0.5).apply(of(r, other=gate), {})
    # below the threshold the other reward is 0, whether it could be scored or not; without the gate's score nothing is known
    assert credit.advantage[0, CHAINS.leaves].tolist() == [3, 0, 0, 0] and leaves(credit) == [[1, 1, 1, 0]]


@pytest.mark.evidence("derived", "gardo")
def test_gardo_holds_what_is_hacked_and_favours_what_is_different() -> None:
    r = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    whole = replace(of(r, other=-r), features=features)
    method = adv.Gardo(adv.Composed(adv.center), share=0.25, high=0.5)
    credit, state = method.apply(whole, method.init())
    assert credit.advantage[0, CHAINS.leaves].tolist() == pytest.approx([1.5, 0.0, -0.5, -1.5])
    assert credit.kl_weight[0, CHAINS.leaves].tolist() == [1, 0, 0, 0] and (credit.weight[:, CHAINS.parent >= 0] == 1).all()
    assert state["share"] == 0.25 and state["recent"] == [pytest.approx(0)]
    with pytest.raises(ValueError, match=r"needs features \[P, L, D\]"):
        method.apply(of(r, other=-r), method.init())
    with pytest.raises(ValueError, match="add one of weight 0"):
        method.apply(replace(of(r), features=features), method.init())


def test_the_kl_is_pushed_towards_its_target() -> None:
    method = adv.Adaptive(adv.Group(), target=0.1, horizon=120.0, low=0.5, high=2.0)
    state = method.init()
    credit, state = method.apply(of(), state)  # the first iteration has no KL yet
    assert credit.kl_scale == 1 and credit.take(torch.tensor([0])).kl_scale == 1
    credit, state = method.apply(replace(of(), metrics={"kl/mean": 0.2}), state)
    assert credit.kl_scale == pytest.approx(math.exp(12 / 120)) and credit.take(torch.tensor([0])).kl_scale == credit.kl_scale
    credit, state = method.apply(replace(of(), metrics={"kl/mean": 0.1}), state)
    assert state["kl"] == pytest.approx(0.18) and credit.kl_scale == pytest.approx(math.exp(0.1 + 0.08))
    for kl, bound in ((1e9, 2.0), (0.0, 2.0)):
        credit, state = method.apply(replace(of(), metrics={"kl/mean": kl}), state)
        assert credit.kl_scale == bound
    credit, _ = method.apply(replace(of(), metrics={"kl/mean": 0.0}), {**method.init(), "kl": 0.0, "scale": 0.51})
    assert credit.kl_scale == 0.5
    with pytest.raises(ValueError, match="give positive numbers"):
        adv.Adaptive(adv.Group(), 0.0)


def test_unlikely_samples_need_densities() -> None:
    with pytest.raises(ValueError, match="told by their densities"):
        ALL["unlikely"].apply(of(), {})
    whole = replace(of(torch.ones(1, 4, dtype=torch.float64)), log_prob=torch.arange(8.0)[None])
    credit, _ = ALL["unlikely"].apply(whole, {})
    a = credit.advantage[0, CHAINS.leaves]
    assert (a.diff() < 0).all()  # equal rewards: the likeliest chain, the last, counts least


def test_memories_reach_the_next_iteration() -> None:
    r = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 3, dtype=torch.float64)
    for name in ("dcpo", "spo", "bundled", "tracked"):
        method: Advantage = ALL[name]
        _, state = method.apply(of(), method.init())
        second, _ = method.apply(of(r), state)
        assert state and not torch.equal(second.advantage, method.apply(of(r), method.init())[0].advantage), name


def test_a_composition_reads_as_its_function() -> None:
    """The same numbers by the pure functions alone."""
    pairs: dict[str, Callable[[Tensor], Tensor]] = {
        "group": lambda r: adv.zscore(r),
        "center": adv.center,
        "win rate": lambda r: adv.zscore(adv.win_rate(adv.wins(r)), ddof=1, eps=1e-8),
        "dcpo": lambda r: adv.dcpo(r, ["a", "b", "c"], {})[0],
        "spo": lambda r: adv.spo(r, ["a", "b", "c"], {})[0],
        "bundled": lambda r: adv.riskpo(r, torch.tensor([0, 0, 1])),
        "lifted": lambda r: adv.zscore(r),
    }
    for name, f in pairs.items():
        credit, _ = ALL[name].apply(of(), ALL[name].init())
        torch.testing.assert_close(credit.advantage[:, CHAINS.leaves], f(R).clamp(-5, 5), rtol=1e-6, atol=1e-7)
