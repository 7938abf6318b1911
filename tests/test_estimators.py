"""What every estimator promises, as one table: masks, shifts, scales, sums, order; and the closed forms behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl import advantage as adv

quick = settings(deadline=None, max_examples=10)
PROMPTS, GROUP = 3, 5
F = Callable[[Tensor, Tensor], Tensor]
HALVES = (torch.arange(GROUP) % 2).expand(PROMPTS, -1)
UNIT, ONE_SIDED = "keeps the unit of the reward", "says which are good, not how they differ from the mean"


class Row(NamedTuple):
    """An estimator and the promises it does not make, with the reason."""

    f: F
    but: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default


def several(combine: adv.Combine, **how: float) -> F:
    """Two rewards that every image has: the one given, and the same of the next prompt."""

    def f(r: Tensor, valid: Tensor) -> Tensor:
        both = valid & valid.roll(1, 0)
        rewards = torch.stack([r, r.roll(1, 0)])
        return combine(rewards, both.expand(2, -1, -1), torch.tensor([1.0, 0.5]), partial(adv.zscore, eps=0.0), **how)

    return f


def won(r: Tensor, valid: Tensor) -> Tensor:
    return adv.zscore(adv.win_rate(adv.wins(r, valid)), valid, eps=0.0)


def later(r: Tensor, valid: Tensor) -> Tensor:
    """DCPO's second draw of every prompt."""
    names = [str(i) for i in range(len(r))]
    _, state = adv.dcpo(torch.arange(float(r.numel())).view_as(r) ** 2, names, {})
    return adv.dcpo(r, names, state, valid)[0]


TABLE = {
    "zscore": Row(partial(adv.zscore, eps=0.0)),
    "zscore, unbiased": Row(partial(adv.zscore, ddof=1, eps=0.0)),
    "zscore, global": Row(partial(adv.zscore, eps=0.0, std="global")),
    "zscore, max": Row(partial(adv.zscore, eps=0.0, std="max")),
    "center": Row(adv.center, {"scale": UNIT}),
    "rloo": Row(adv.rloo, {"scale": UNIT}),
    "raw": Row(adv.raw, dict.fromkeys(("shift", "scale", "sum", "equal"), "is the reward")),
    "best": Row(adv.best, {"sum": ONE_SIDED, "equal": "all are the best"}),
    "best_worst": Row(adv.best_worst),
    "win rate": Row(won),
    "summed": Row(several(adv.summed)),
    "weighted": Row(several(adv.weighted)),
    "gdpo": Row(several(adv.gdpo, eps=0.0)),  # pyright: ignore[reportArgumentType]
    "pooled": Row(several(adv.pooled)),
    "mc": Row(partial(adv.mc, eps=0.0), {"sum": "centred on the median"}),
    "ngrpo": Row(
        partial(adv.ngrpo, top=30.0), dict.fromkeys(("shift", "scale", "sum", "equal"), "an imagined sample has a fixed reward")
    ),
    "san": Row(lambda r, valid: adv.san(r, HALVES, valid, eps=0.0), {"order": "strata have places"}),
    "pama": Row(several(adv.pama), {"sum": ONE_SIDED}),
    "pass_at_k": Row(partial(adv.pass_at_k, eps=0.0), {"sum": ONE_SIDED}),
    "gpg": Row(adv.gpg, {"scale": UNIT, "shift": "counts the rewards that are 0"}),
    "tracked": Row(
        lambda r, valid: adv.tracked(torch.where(valid, r, torch.nan), ["a", "b", "c"], {}, eps=1e-300)[0],
        {"sum": "centred on the batch until a prompt is known", "equal": "prompts differ"},
    ),
    "dcpo, later": Row(
        later,
        dict.fromkeys(("shift", "scale", "sum", "equal"), "earlier draws have fixed rewards"),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rewards of which no two are equal, and a mask: equal ones are a case of their own."""
    values = draw(st.lists(st.integers(-200, 200), min_size=PROMPTS * GROUP, max_size=PROMPTS * GROUP, unique=True))
    valid = draw(st.lists(st.booleans(), min_size=PROMPTS * GROUP, max_size=PROMPTS * GROUP))
    return torch.tensor(values, dtype=torch.float64).view(PROMPTS, GROUP) / 8, torch.tensor(valid).view(PROMPTS, GROUP)


def promising(what: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, row in TABLE.items() if what not in row.but])


@pytest.mark.parametrize("name", TABLE)
@quick
@given(tables(), st.sampled_from([math.nan, math.inf, 999.0]))
def test_what_is_invalid_has_no_influence_and_gets_0(name: str, table: tuple[Tensor, Tensor], junk: float) -> None:
    (r, valid), f = table, TABLE[name].f
    a = f(r, valid)
    assert a.dtype == torch.float32 and torch.isfinite(a).all() and (a[~valid] == 0).all()
    assert torch.equal(a, f(torch.where(valid, r, junk), valid))


@promising("shift")
@quick
@given(tables(), st.integers(-50, 50))
def test_a_constant_on_all_rewards_changes_nothing(name: str, table: tuple[Tensor, Tensor], shift: int) -> None:
    r, valid = table
    torch.testing.assert_close(TABLE[name].f(r + shift, valid), TABLE[name].f(r, valid), rtol=1e-5, atol=1e-5)


@promising("shift")
@given(tables())
@quick
def test_statistics_are_taken_in_float64(name: str, table: tuple[Tensor, Tensor]) -> None:
    """Rewards far from 0: float32 statistics would be noise."""
    r, valid = table
    torch.testing.assert_close(TABLE[name].f(r + 2.0**28, valid), TABLE[name].f(r, valid), rtol=1e-4, atol=1e-4)


@promising("scale")
@quick
@given(tables(), st.sampled_from([0.125, 3.0, 40.0]))
def test_the_unit_of_the_reward_changes_nothing(name: str, table: tuple[Tensor, Tensor], scale: float) -> None:
    r, valid = table
    torch.testing.assert_close(TABLE[name].f(scale * r, valid), TABLE[name].f(r, valid), rtol=1e-5, atol=1e-5)


@promising("sum")
@quick
@given(tables())
def test_a_group_sums_to_0(name: str, table: tuple[Tensor, Tensor]) -> None:
    a = TABLE[name].f(*table).double()
    assert (a.sum(1).abs() <= 1e-5 * (1 + a.abs().sum(1))).all()


@promising("equal")
@pytest.mark.parametrize("value", [0.11, 0.7, 0.83])
def test_equal_rewards_give_exactly_0(name: str, value: float) -> None:
    r = torch.full((PROMPTS, GROUP), value, dtype=torch.float64)
    assert (TABLE[name].f(r, torch.ones_like(r, dtype=torch.bool)) == 0).all()


@promising("order")
@quick
@given(tables(), st.permutations(range(GROUP)), st.permutations(range(PROMPTS)))
def test_the_order_of_images_has_no_influence(
    name: str, table: tuple[Tensor, Tensor], images: list[int], prompts: list[int]
) -> None:
    (r, valid), f = table, TABLE[name].f
    torch.testing.assert_close(f(r[:, images], valid[:, images]), f(r, valid)[:, images], rtol=1e-5, atol=1e-5)
    if name not in ("summed", "weighted", "gdpo", "pooled", "pama", "dcpo, later"):  # what stands beside a prompt differs there
        torch.testing.assert_close(f(r[prompts], valid[prompts]), f(r, valid)[prompts], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.but])
def test_a_promise_that_is_not_made_does_not_hold(name: str) -> None:
    """Else the reason is wrong."""
    r = torch.tensor([[0.0, 1.0, 3.0, 8.0, 4.0], [0.0, 2.0, 5.0, 6.0, 9.0], [7.0, 1.5, 0.0, 2.5, 3.5]], dtype=torch.float64)
    valid, f = torch.ones_like(r, dtype=torch.bool), TABLE[name].f
    a = f(r, valid)
    images = [4, 0, 3, 1, 2]
    level = torch.tensor([[0.25], [0.5], [1.0]], dtype=torch.float64).expand_as(r)
    broken = {
        "shift": lambda: not torch.allclose(f(r + 3, valid), a),
        "scale": lambda: not torch.allclose(f(2 * r, valid), a),
        "sum": lambda: bool((a.sum(1).abs() > 1e-3).any()),
        "equal": lambda: bool((f(level, valid) != 0).any()),
        "order": lambda: not torch.allclose(f(r[:, images], valid), a[:, images]),
    }
    assert [what for what in TABLE[name].but if not broken[what]()] == []


# ------------------------------------------------------------------ closed forms
@pytest.mark.evidence("derived", "longcat")
def test_the_largest_std_divides_all_groups() -> None:
    r = torch.tensor([[0.0, 2.0], [0.0, 20.0]])
    torch.testing.assert_close(adv.zscore(r, eps=0.0, std="max"), torch.tensor([[-0.1, 0.1], [-1.0, 1.0]]))


def test_a_std_can_have_a_floor() -> None:
    r = torch.tensor([[0.0, 2.0]])
    assert adv.zscore(r, eps=0.0, floor=4.0).tolist() == [[-0.25, 0.25]] and adv.zscore(r, eps=0.0, floor=0.5).tolist() == [[-1, 1]]


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    r, valid = torch.tensor([[1.0, 2.0, 6.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert adv.rloo(r, valid)[0].tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0]


@pytest.mark.evidence("derived", "gdpo")
def test_gdpo_keeps_apart_what_a_sum_makes_equal() -> None:
    """Rewards (1, 0) and (0, 1), one rare and one common, have one sum; and more rewards make no larger advantages."""
    r = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]], dtype=torch.float64)
    valid = torch.ones_like(r, dtype=torch.bool)
    one = torch.ones(2)
    total = adv.summed(r, valid, one)
    assert total[0, 0] == total[0, 1] and adv.gdpo(r, valid, one)[0, 0] > adv.gdpo(r, valid, one)[0, 1] + 0.25
    for k in (1, 4):
        a = adv.gdpo(r[:1].repeat(k, 1, 1), valid[:1].repeat(k, 1, 1), torch.ones(k))
        assert float(a.std()) == pytest.approx(1, abs=1e-3)


def test_a_reward_is_estimated_over_what_it_could_score() -> None:
    r = torch.tensor([[[0.0, 2.0, 4.0]], [[1.0, math.nan, 3.0]]], dtype=torch.float64)
    valid = torch.isfinite(r)
    a = adv.weighted(r, valid, torch.tensor([1.0, 10.0]), adv.center)
    assert a.tolist() == [[-2 - 10, 0, 2 + 10]]


@pytest.mark.evidence("derived", "pref_grpo")
def test_ties_lie_within_the_margin() -> None:
    verdicts = adv.wins(torch.tensor([[0.0, 0.05, 1.0, math.nan]]), margin=0.1)
    assert adv.win_rate(verdicts)[0, :3].tolist() == [0.25, 0.25, 1.0] and adv.win_rate(verdicts)[0, 3].isnan()
    assert adv.win_rate(adv.wins(torch.tensor([[0.0, 0.05, 1.0]])))[0].tolist() == [0, 0.5, 1]


def test_the_front_is_not_dominated() -> None:
    r = torch.tensor([[[3.0, 1.0], [2.0, 1.0]], [[1.0, 3.0], [1.0, 3.0]]])
    assert adv.front(r).tolist() == [[True, True], [False, True]]  # equal points do not dominate each other
    assert adv.front(r, torch.tensor([[False, True], [True, True]]).expand(2, 2, 2)).tolist() == [[False, True], [True, True]]


def test_mc_never_divides_by_nothing() -> None:
    r = torch.tensor([[1.0] * 7 + [0.0, 0.0]])
    assert adv.mc(r).abs().max() < 3 and adv.mc(r, compat="MC-GRPO@da07745").abs().max() > 900


def test_the_likely_half_of_good_samples_counts_less() -> None:
    r = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    value = adv.unlikely(r, torch.tensor([[5.0, 1.0, 3.0, 2.0]]))
    assert value.tolist() == [[0.75, 0.9375, 0.0, 0.875]]


def test_d3s_is_the_largest_variance_of_all_subsets() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    for keep in range(1, 8):
        subsets = torch.combinations(torch.arange(8), keep)
        most = a.flatten()[subsets].var(1, correction=0).max()
        on = adv.d3s(a, keep)
        assert int(on.sum()) == keep and float(a[on].var(correction=0)) == pytest.approx(float(most))
    assert adv.d3s(a, 9).all() and int(adv.d3s(torch.zeros(2, 4), 3).sum()) == 3


@pytest.mark.evidence("derived", "gardo")
def test_what_resembles_no_other_counts_more() -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    d = adv.nearest(features)
    assert d[0].tolist() == pytest.approx([0, 0, 1])
    a = torch.tensor([[1.0, -1.0, 0.5]])
    assert adv.diverse(a, d).tolist() == [[0.0, -1.0, 0.5]]
    assert adv.diverse(a, d, compat="GARDO@1cc77fb")[0].tolist() == pytest.approx([0.0, -1.0, 1.5])
    assert adv.nearest(features, torch.tensor([[True, False, True]]))[0, 0] == pytest.approx(1)


@pytest.mark.evidence("derived", "gardo")
def test_the_gate_opens_where_the_others_disagree() -> None:
    """The first image has the best trained reward and the worst of the others."""
    r, other = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
    u = adv.uncertainty(r, other)
    assert u[0].tolist() == pytest.approx([1, 1 / 3, -1 / 3, -1])
    assert adv.gate(u, 0.25).tolist() == [[True, False, False, False]] and int(adv.gate(u, 0.5).sum()) == 2
    code = "GARDO@1cc77fb"
    assert adv.gate(adv.uncertainty(r, other, compat=code), 0.25, code).tolist() == [[False, False, False, True]]


def test_the_share_follows_how_unsure_the_batch_is() -> None:
    share, recent = adv.adapted(0.1, 0.5, [])
    assert (share, recent) == (0.1, [0.5])
    assert adv.adapted(0.1, 0.6, recent)[0] == pytest.approx(0.11) and adv.adapted(0.1, 0.4, recent)[0] == pytest.approx(0.09)
    assert adv.adapted(0.2, 0.6, recent)[0] == 0.2 and adv.adapted(0.02, 0.4, recent)[0] == 0.02
    assert len(adv.adapted(0.1, 0.0, [0.1] * 20)[1]) == 20
    assert adv.drifted(4e-4, 0) and adv.drifted(0.0, 15) and not adv.drifted(1e-4, 14)


SMALL = torch.zeros(2, 1)
BAD: dict[str, Callable[[], object]] = {
    "a leave-one-out mean needs at least 2": lambda: adv.rloo(SMALL),
    "median and its deviation needs at least 3": lambda: adv.mc(torch.zeros(2, 2)),
    "a pair of best and worst needs at least 2": lambda: adv.best_worst(SMALL),
    "a best and a second needs at least 2": lambda: adv.pass_at_k(SMALL),
    "an unbiased std needs at least 2": lambda: adv.dcpo(SMALL, ["a", "b"], {}),
    "a win rate needs at least 2": lambda: adv.win_rate(torch.zeros(2, 1, 1)),
    "distance to the nearest needs at least 2": lambda: adv.nearest(torch.zeros(2, 1, 3)),
    "batch needs at least 2": lambda: adv.spo(torch.zeros(1, 1), ["a"], {}),
    "std over 'all' is unknown": lambda: adv.zscore(SMALL, std="all"),  # pyright: ignore[reportArgumentType]
    "a margin of -1": lambda: adv.wins(SMALL, margin=-1),
    "a top no reward exceeds": lambda: adv.ngrpo(torch.ones(1, 2) * 3),
    "rewards must lie in": lambda: adv.spo(torch.ones(1, 2) * 3, ["a"], {}),
    "rewards >= 0": lambda: adv.unlikely(-torch.ones(1, 2), torch.zeros(1, 2)),
    "keeping 0 samples": lambda: adv.d3s(torch.zeros(1, 2), 0),
    "the 3 best in rows of 2": lambda: adv.top(torch.zeros(1, 2), 3),
    "a share of 0 of the batch": lambda: adv.gate(torch.zeros(1, 2), 0.0),
    'compat "GARDO@1cc77fb"': lambda: adv.gate(torch.zeros(1, 2), 0.5, "GARDO"),
    'compat "MC-GRPO@da07745"': lambda: adv.mc(torch.zeros(1, 3), compat="x"),
    'compat "flow_grpo@ac4c86e"': lambda: adv.best_worst(torch.zeros(1, 3), compat="x"),
    "a share 'half' of a bundle": lambda: adv.riskpo(torch.zeros(1, 2), torch.zeros(1), share="half"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_estimated_is_a_sentence(words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        BAD[words]()


def test_memories_are_passed_on_and_left_alone() -> None:
    r = torch.tensor([[1.0, 0.0], [0.0, math.nan]])
    for f in (adv.tracked, adv.dcpo, adv.spo):
        first, state = f(r, ["a", "b"], {})
        before = {k: list(v) for k, v in state.items()}
        second, after = f(r, ["a", "b"], state)
        assert state == before and after != state and first[1, 1] == second[1, 1] == 0
    assert adv.dcpo(r, ["a", "b"], {})[1].keys() == {"a"}  # one reward says nothing about a group's spread


def test_followed_quantiles_reach_those_of_the_scores() -> None:
    x = torch.arange(0.0, 100.0, dtype=torch.float64).view(1, -1)
    state = adv.followed(torch.full((1, 4), 50.0, dtype=torch.float64), {})
    assert state["quantiles"] == [50.0] * 19
    for _ in range(800):
        state = adv.followed(x, state, rate=1.0)
    assert state["quantiles"] == pytest.approx([5 * (k + 1) for k in range(19)], abs=1.5)


@pytest.mark.evidence("derived", "neighbor_grpo")
def test_a_quasi_norm_divides_by_its_power_mean() -> None:
    r = torch.tensor([[1.0, 2.0, 6.0, math.nan], [3.0, 3.0, 3.0, 3.0]])
    by_hand = (2**0.8 + 1 + 3**0.8) / 3
    expected = torch.tensor([-2.0, -1.0, 3.0, 0.0]) / by_hand ** (1 / 0.8)
    torch.testing.assert_close(adv.quasi(r)[0], expected)
    assert (adv.quasi(r)[1] == 0).all()
    torch.testing.assert_close(adv.quasi(r, power=2.0)[0], adv.zscore(r, eps=0.0)[0])
