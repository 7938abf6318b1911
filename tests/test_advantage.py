"""From rewards to credit: statistics against numpy, masks, and the means of a tree against an explicit recursion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import plans
from torch import Tensor

from flowrl.advantage import Granular, Group, Pruned, center, granular, node_rewards, peers, tracked, zscore
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, chains, comb, laws, schedules, tree
from flowrl.types import Credit, Outcome

quick = settings(deadline=None, max_examples=50)  # a shared machine may stall at any moment
GRID = schedules.linear_shift(4)
LAW = laws.flow_sde(0.7)


@st.composite
def rewards(draw: st.DrawFn, prompts: int = 3, group: int | None = None, holes: bool = True) -> tuple[Tensor, Tensor]:
    """(values [P, L] with anything where invalid, valid)."""
    group = draw(st.integers(1, 6)) if group is None else group
    numbers = st.floats(-100, 100).map(lambda v: round(v, 3))
    values = torch.tensor([[draw(numbers) for _ in range(group)] for _ in range(prompts)], dtype=torch.float64)
    valid = torch.tensor([[draw(st.booleans()) if holes else True for _ in range(group)] for _ in range(prompts)])
    junk = draw(st.sampled_from([math.nan, math.inf, 1e9]))
    return torch.where(valid, values, junk), valid


def expected(r: np.ndarray, valid: np.ndarray, ddof: int, eps: float, std: str) -> np.ndarray:
    out = np.zeros_like(r)
    everything = r[valid]
    # "global": spread of all valid rewards about their own mean
    whole = everything.std(ddof=ddof) if len(everything) > ddof else 0.0
    for row, mine, mask in zip(out, r, valid, strict=True):
        v = mine[mask]
        if len(v):
            own = v.std(ddof=ddof) if len(v) > ddof else 0.0
            row[mask] = (v - v.mean()) / ((own if std == "group" else whole) + eps)
    return out


@quick
@given(rewards(), st.sampled_from([0, 1]), st.sampled_from([1e-4, 1e-2]), st.sampled_from(["group", "global"]))
def test_zscore_is_numpys(table: tuple[Tensor, Tensor], ddof: int, eps: float, std: str) -> None:
    r, valid = table
    got = zscore(r, valid, ddof, eps, std)  # pyright: ignore[reportArgumentType]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected(r.numpy(), valid.numpy(), ddof, eps, std), rtol=1e-5, atol=1e-6)


@quick
@given(rewards())
def test_what_is_invalid_gets_nothing_and_changes_nothing(table: tuple[Tensor, Tensor]) -> None:
    r, valid = table
    for f in (zscore, center):
        got = f(r, valid)
        assert torch.isfinite(got).all() and (got[~valid] == 0).all()
        other = f(torch.where(valid, r, -7.0), valid)
        assert torch.equal(got, other)
        assert torch.equal(f(torch.where(valid, r, math.nan)), got)  # without a mask, what is not finite is invalid


@quick
@given(rewards(), st.sampled_from(["group", "global"]))
def test_advantages_sum_to_0_in_a_group(table: tuple[Tensor, Tensor], std: str) -> None:
    for a in (zscore(*table, std=std), center(*table)):  # pyright: ignore[reportArgumentType]
        assert (a.double().sum(1).abs() <= 1e-5 * (1 + a.abs().double().sum(1))).all()


@quick
@given(rewards(group=1, holes=False), st.sampled_from([0, 1]), st.sampled_from(["group", "global"]))
def test_a_group_of_one_learns_nothing(table: tuple[Tensor, Tensor], ddof: int, std: str) -> None:
    assert (zscore(*table, ddof=ddof, std=std) == 0).all() and (center(*table) == 0).all()  # pyright: ignore[reportArgumentType]


def test_equal_rewards_learn_nothing() -> None:
    assert zscore(torch.full((2, 5), 0.1)).abs().max() < 1e-8


def test_statistics_are_taken_in_float64() -> None:
    """Large offsets: float32 statistics of 1e6 + small would be noise."""
    small = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(zscore(small + 2.0**32), zscore(small), rtol=1e-6, atol=0)


def test_a_clamp_bounds_both_sides() -> None:
    r = torch.tensor([[0.0] * 99 + [1.0], [0.0] * 99 + [-1.0]])
    assert zscore(r)[0, -1] > 5 and zscore(r)[1, -1] < -5
    clamped = zscore(r, clamp=5.0)
    assert clamped[0, -1] == 5 and clamped[1, -1] == -5


def mean_of_leaves(plan: Plan, r: Tensor, valid: Tensor, node: int) -> float:
    leaves = plan.leaves.tolist()

    def under(n: int) -> list[int]:
        below = [c for c, p in enumerate(plan.parent.tolist()) if p == n]
        return [leaf for c in below for leaf in under(c)] if below else [leaves.index(n)]

    own = [float(r[i]) for i in under(node) if valid[i]]
    return sum(own) / len(own) if own else math.nan


@quick
@given(plans(), st.data())
def test_a_nodes_reward_is_the_mean_of_the_valid_leaves_below(plan: Plan, data: st.DataObject) -> None:
    r, valid = data.draw(rewards(prompts=1, group=len(plan.leaves)))
    got = node_rewards(plan, r, valid)[0]
    truth = torch.tensor([mean_of_leaves(plan, r[0], valid[0], n) for n in range(len(plan.parent))], dtype=torch.float64)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-9, equal_nan=True)


@quick
@given(plans())
def test_peers_take_the_same_step_in_the_same_way(plan: Plan) -> None:
    ids = peers(plan).tolist()
    for n, p in enumerate(plan.parent.tolist()):
        assert (ids[n] == -1) == (p < 0)
        for m, q in enumerate(plan.parent.tolist()):
            if p >= 0 and q >= 0:
                alike = plan.sigma[p] == plan.sigma[q] and plan.sigma[n] == plan.sigma[m] and plan.noisy[n] == plan.noisy[m]
                alike = alike and (plan.label is None or plan.label[n] == plan.label[m])
                assert (ids[n] == ids[m]) == bool(alike)


def test_labels_keep_rivals_apart() -> None:
    plan = chains(GRID, LAW, [0], 4)
    root = plan.root
    split = Plan(plan.sigma, plan.parent, plan.noisy, plan.law, plan.guard, label=(root >= plan.roots[2]).long())
    ids = peers(split)[plan.edges]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_the_children_of_a_comb_compete_with_each_other_only() -> None:
    """The spine and earlier teeth take the same step quietly; what they earn is no news about the children."""
    plan = comb(GRID, LAW, [0, 1, 2], 3)
    r = torch.arange(len(plan.leaves), dtype=torch.float64)[None] ** 2
    credit = applied(plan, r)
    for row in plan.rows.tolist():
        mine = plan.edges[plan.parent[plan.edges] == row]
        torch.testing.assert_close(credit.advantage[:, mine], zscore(node_rewards(plan, r)[:, mine], clamp=5.0))


def outcome(plan: Plan, scores: dict[str, Scores], weights: dict[str, float]) -> Outcome:
    count = len(next(iter(scores.values())).values)
    return Outcome(plan, scores, weights, ["p"] * count, [{}] * count, torch.arange(count), 0)


def applied(plan: Plan, r: Tensor, valid: Tensor | None = None, **how: object) -> Credit:
    valid = torch.isfinite(r) if valid is None else valid
    group = Group(**how)  # pyright: ignore[reportArgumentType]
    credit, state = group.apply(
        outcome(plan, {"a": Scores(torch.where(valid, r, math.nan).float(), valid)}, {"a": 1.0}), group.init()
    )
    assert state == group.init()
    return credit


@quick
@given(rewards(group=4), st.sampled_from(["group", "global"]), st.sampled_from([0, 1]))
def test_on_chains_credit_is_the_zscore_over_leaves(table: tuple[Tensor, Tensor], std: str, ddof: int) -> None:
    r, valid = table
    plan = chains(GRID, LAW, [0, 1], 4)
    credit = applied(plan, r, valid, std=std, ddof=ddof)
    leaf = zscore(torch.where(valid, r, math.nan).float(), valid, ddof, std=std, clamp=5.0)  # pyright: ignore[reportArgumentType]
    for n, p in enumerate(plan.parent.tolist()):
        if p >= 0:
            chain = plan.roots.tolist().index(int(plan.root[n]))
            assert torch.equal(credit.advantage[:, n], leaf[:, chain])
            assert torch.equal(credit.weight[:, n], valid[:, chain].float())


def test_an_edge_without_a_scored_leaf_weighs_nothing() -> None:
    plan = tree(GRID, laws.dance_sde(0.3), range(4), {0: 2, 1: 2})
    valid = torch.tensor([[True, True, False, False]])
    credit = applied(plan, torch.arange(4.0)[None], valid)
    dead = torch.tensor([math.isnan(mean_of_leaves(plan, torch.zeros(4), valid[0], n)) for n in range(len(plan.parent))])
    assert dead.any() and (credit.weight[0, dead] == 0).all() and (credit.weight[0, ~dead] == 1).all()
    assert (credit.advantage[0, dead] == 0).all() and torch.equal(credit.weight, credit.kl_weight)


@pytest.mark.parametrize("junk", [math.nan, 99.0])
def test_rewards_are_weighted_and_one_that_failed_drops_the_image(junk: float) -> None:
    plan = chains(GRID, LAW, [0], 3)
    a, b = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[5.0, junk, 1.0]])
    scores = {"a": Scores(a, torch.isfinite(a)), "b": Scores(b, torch.tensor([[True, False, True]]))}
    credit, _ = Group().apply(outcome(plan, scores, {"a": 2.0, "b": -1.0}), {})
    leaf = zscore(torch.tensor([[-3.0, math.nan, 7.0]]))
    assert torch.equal(credit.advantage[:, plan.leaves], leaf)
    assert credit.weight[0, plan.leaves].tolist() == [1.0, 0.0, 1.0]


def test_credit_of_some_prompts_is_those_rows() -> None:
    plan = chains(GRID, LAW, [0], 3)
    credit = applied(plan, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    some = credit.take(torch.tensor([2, 0]))
    assert torch.equal(some.advantage, credit.advantage[[2, 0]]) and torch.equal(some.weight, credit.weight[[2, 0]])


def test_a_tree_is_normalised_depth_by_depth() -> None:
    plan = tree(GRID, laws.dance_sde(0.3), range(4), {0: 2, 1: 2})
    r = torch.tensor([[1.0, 3.0, 4.0, 10.0]])
    credit = applied(plan, r)
    first = plan.waves[0]
    torch.testing.assert_close(credit.advantage[0, first], zscore(torch.tensor([[2.0, 7.0]]))[0])
    for wave in plan.waves[1:]:
        torch.testing.assert_close(credit.advantage[0, wave], zscore(r)[0])
    assert credit.advantage[0, 0] == 0


@pytest.mark.parametrize("ddof", [0, 1])
def test_ddof_is_what_it_says(ddof: int) -> None:
    r = torch.tensor([[0.0, 2.0]])
    assert float(zscore(r, ddof=ddof, eps=0.0)[0, 1]) == pytest.approx(1 / math.sqrt(2 / (2 - ddof)))


def softmax_of_children(plan: Plan, r: Tensor, valid: Tensor, logp: dict[int, float], node: int) -> float:
    """The published recursion, level by level, over children that could be scored."""
    below = [c for c, p in enumerate(plan.parent.tolist()) if p == node]
    if not below:
        i = plan.leaves.tolist().index(node)
        return float(r[i]) if valid[i] else math.nan
    values = [(softmax_of_children(plan, r, valid, logp, c), logp.get(c, 0.0)) for c in below]
    known = [(v, w) for v, w in values if not math.isnan(v)]
    total = sum(math.exp(w) for _, w in known)
    return sum(v * math.exp(w) for v, w in known) / total if known else math.nan


@quick
@given(plans(), st.data())
def test_softmax_fusion_is_its_recursion(plan: Plan, data: st.DataObject) -> None:
    r, valid = data.draw(rewards(prompts=1, group=len(plan.leaves)))
    logp = torch.tensor([[data.draw(st.floats(-3, 3)) for _ in plan.edges]], dtype=torch.float64)
    got = node_rewards(plan, r, valid, "softmax", logp)[0]
    table = dict(zip(plan.edges.tolist(), logp[0].tolist(), strict=True))
    truth = torch.tensor(
        [softmax_of_children(plan, r[0], valid[0], table, n) for n in range(len(plan.parent))], dtype=torch.float64
    )
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-7, equal_nan=True)


def test_fusions_that_cannot_be_are_sentences() -> None:
    plan = tree(GRID, LAW, [0], {0: 2})
    with pytest.raises(ValueError, match="give log_prob"):
        node_rewards(plan, torch.zeros(1, 2), fusion="softmax")
    with pytest.raises(ValueError, match="'max' of node rewards is unknown"):
        node_rewards(plan, torch.zeros(1, 2), fusion="max")  # pyright: ignore[reportArgumentType]


def test_a_group_can_fuse_by_density() -> None:
    plan = tree(GRID, LAW, [0, 1], {0: 2, 1: 2})
    r, logp = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0, 5.0]])
    scores = {"a": Scores(r, torch.ones_like(r, dtype=torch.bool))}
    whole = Outcome(plan, scores, {"a": 1.0}, ["p"], [{}], torch.arange(1), 0, logp)
    first = plan.edges[:2]
    assert Group().apply(whole, {})[0].advantage[0, first].tolist() == [0.0, 0.0]
    fused = Group(fusion="softmax").apply(whole, {})[0].advantage[0, first]
    assert fused[0] < 0 < fused[1]  # the second child's better leaf is its likelier one, the first one's is not


def test_granular_credit_is_dropped_where_a_tooth_was_not_scored() -> None:
    plan = comb(schedules.linear_shift(6), LAW, [0, 1], 3, strides=(1, 2))
    r = torch.arange(len(plan.leaves), dtype=torch.float64)[None]
    whole, _ = Granular().apply(outcome(plan, {"a": Scores(r, torch.ones_like(r, dtype=torch.bool))}, {"a": 1.0}), {})
    assert whole.weight[0, plan.edges].tolist() == [1.0] * 6 and float(whole.advantage[0, plan.edges].abs().max()) > 1
    below = [i for i, leaf in enumerate(plan.leaves.tolist()) if int(plan.edges[0]) in way(plan, leaf)]
    r[0, below[0]] = math.nan
    part, _ = Granular().apply(outcome(plan, {"a": Scores(r, torch.isfinite(r))}, {"a": 1.0}), {})
    assert part.weight[0, plan.edges].tolist() == [0.0] + [1.0] * 5 and (part.advantage[0, plan.edges[:1]] == 0).all()
    with pytest.raises(ValueError, match="comb with several strides"):
        granular(chains(GRID, LAW, [0], 2), torch.zeros(1, 2))


def way(plan: Plan, node: int) -> list[int]:
    return [node, *way(plan, int(plan.parent[node]))] if node >= 0 else []


def test_granular_credit_of_one_stride_is_the_groups() -> None:
    plan = comb(GRID, LAW, [0, 1], 3)
    r = torch.arange(len(plan.leaves), dtype=torch.float64)[None] ** 2
    scores = {"a": Scores(r, torch.ones_like(r, dtype=torch.bool))}
    one, other = (a.apply(outcome(plan, scores, {"a": 1.0}), {})[0] for a in (Granular(), Group(ddof=1, eps=1e-8)))
    assert torch.equal(one.advantage, other.advantage)


def test_pruned_depths_weigh_nothing() -> None:
    plan = tree(GRID, LAW, [0, 1, 2], {0: 2})
    r = torch.tensor([[0.0, 1.0]])
    of = outcome(plan, {"a": Scores(r, torch.ones_like(r, dtype=torch.bool))}, {"a": 1.0})
    credit, _ = Pruned(Group(), lambda iteration: [2, 3]).apply(of, {})
    assert torch.equal(credit.weight[0] == 0, (plan.depth == 2) | (plan.depth == 3)) and torch.equal(
        credit.kl_weight, credit.weight
    )
    assert torch.equal(credit.advantage, Group().apply(of, {})[0].advantage)


def test_a_tracker_forgets_and_leaves_out_what_was_not_scored() -> None:
    a, state = tracked(torch.tensor([[1.0, 2.0, math.nan]]), ["p"], {}, buffer=2, least=2)
    assert state == {"p": [1.0, 2.0]} and a[0].tolist() == pytest.approx([-1, 1, 0], abs=1e-5)
    _, after = tracked(torch.tensor([[5.0]]), ["p"], state, buffer=2, least=2)
    assert after == {"p": [2.0, 5.0]} and state == {"p": [1.0, 2.0]}  # the state that was passed in is left alone
