"""Surrogates of the ratio, losses over groups, and estimates of a KL: their values, slopes and what they leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import NOISE, credit_of
from torch import Tensor

from flowrl import methods, objectives
from flowrl.objectives.ratio import edge_ratio
from flowrl.replay import form
from flowrl.samplers import Rollout, chains, laws
from flowrl.types import Batch, Objective
from flowrl.update import normalised

quick = settings(deadline=None, max_examples=50)
D = torch.float64
ADVANTAGE = torch.tensor([1.5, -0.5, 2.0, -3.0, 0.25, -1.0], dtype=D)
PAIRS = torch.tensor([0, 0, 1, 1, 2, 2])
ON = torch.tensor([True, True, True, False, True, True])
Each = Callable[[Tensor, Tensor], Tensor]


def slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(f(at).sum(), at)[0]


# ------------------------------------------------------------------ one edge
AT_ONE: dict[str, tuple[Each, float]] = {
    "clip": (partial(objectives.clipped, low=0.2), -1),
    "dual clip": (partial(objectives.clipped, low=0.2, dual=3.0), -1),
    "cispo": (partial(objectives.truncated, low=10.0, high=0.2), 0),
    "sapo": (partial(objectives.soft, up=50.0, down=50.0), -2 / 50),
    "gspo": (lambda r, a: objectives.clipped(objectives.sequence(r, torch.arange(len(r))), a, 0.2), -1),
    "gmpo": (lambda r, a: objectives.geometric(r, a, torch.arange(len(r)), 0.2), -1),
}
"""Each by itself, and its value at ratio 1 for an advantage of 1: cispo's and sapo's tells nothing."""


@pytest.mark.parametrize("name", AT_ONE)
def test_at_ratio_1_the_gradient_is_minus_the_advantage(name: str) -> None:
    each, value = AT_ONE[name]
    zero = torch.zeros(6, dtype=D)
    torch.testing.assert_close(slope(lambda r: each(r, ADVANTAGE), zero), -ADVANTAGE)
    torch.testing.assert_close(each(zero, ADVANTAGE), value * ADVANTAGE)


KINKED = torch.tensor([0.31, -0.07, 0.11, 0.4, -0.35, 0.05], dtype=D)
"""Log-ratios on both sides of a clip of 0.2, none at it."""
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda r: objectives.clipped(r, ADVANTAGE, 0.2, 0.3, 3.0),
    "sapo": lambda r: objectives.soft(r, ADVANTAGE, 3.0, 5.0),
    "gmpo": lambda r: objectives.geometric(r, ADVANTAGE, PAIRS, 0.2, ON),
    "standardised": lambda r: objectives.standardised(r, PAIRS // 2, ON, 0.1),
    "contrast": lambda r: objectives.contrast(r, ADVANTAGE > 0, PAIRS // 2, ON),
    "contrast, tempered": lambda r: objectives.contrast(r, ADVANTAGE > 0, PAIRS // 2, ON, 0.3),
    "forward KL": objectives.forward_kl,
    **{kind: partial(objectives.estimated_kl, kind=kind) for kind in ("k1", "k2", "k3")},  # pyright: ignore
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(SMOOTH[name], (KINKED.clone().requires_grad_(),))


@quick
@given(st.floats(-3, 3), st.floats(-5, 5).filter(lambda a: abs(a) > 1e-3))
def test_cispo_never_loses_a_gradient(ratio: float, advantage: float) -> None:
    a = torch.tensor([advantage], dtype=D)
    found = slope(lambda r: objectives.truncated(r, a, 0.1, 0.2), torch.tensor([ratio], dtype=D))
    # what is cut is its size
    assert float(found) == pytest.approx(-advantage * min(max(math.exp(ratio), 0.9), 1.2))


@quick
@given(st.floats(-1, 1), st.floats(-5, 5))
def test_sapo_fades_on_both_sides_alike(ratio: float, advantage: float) -> None:
    a = torch.tensor([advantage], dtype=D)
    tau = 7.0 if advantage > 0 else 9.0
    rho = math.exp(ratio)
    found = slope(lambda r: objectives.soft(r, a, 7.0, 9.0), torch.tensor([ratio], dtype=D))
    sigmoid = 1 / (1 + math.exp(-tau * (rho - 1)))
    assert float(found) == pytest.approx(-advantage * 4 * sigmoid * (1 - sigmoid) * rho, rel=1e-9, abs=1e-12)


def test_a_trajectory_has_one_ratio_and_each_step_its_own_gradient() -> None:
    whole = objectives.sequence(KINKED, PAIRS, ON)
    torch.testing.assert_close(whole, torch.tensor([0.12, 0.12, 0.11, 0.11, -0.15, -0.15], dtype=D))
    assert (slope(lambda r: objectives.sequence(r, PAIRS, ON), KINKED) == 1).all()
    assert float(objectives.sequence(torch.tensor([30.0, 10.0]), torch.zeros(2), most=10.0).max()) == 10


def test_a_geometric_mean_stops_only_what_would_go_on() -> None:
    found = slope(lambda r: objectives.geometric(r, ADVANTAGE, torch.arange(6), 0.2), KINKED)
    stopped = (ADVANTAGE.sign() * KINKED) > 0.2
    assert stopped.any() and ((found == 0) == stopped).all()


@quick
@given(st.floats(1e-6, 1.0), st.floats(0.01, 0.3), st.floats(0.01, 0.4))
def test_dcpos_range_keeps_a_probability_one(q: float, low: float, high: float) -> None:
    down, up = (float(t) for t in objectives.dynamic_range(torch.tensor([q], dtype=D), low, high))
    assert 0.5 <= down <= 1 <= up <= 10
    assert up == 10 or up * (up - 1) * q == pytest.approx(high)
    assert down == 0.5 or down * (1 - down) * q == pytest.approx(low)


def test_dcpos_range_refuses_densities() -> None:
    for density in (1.5, -0.1):
        with pytest.raises(ValueError, match="a density, for which its bounds have no meaning; use objectives.clip"):
            objectives.dynamic_range(torch.tensor([0.5, density]))


# ------------------------------------------------------------------ a group
def test_a_prompt_of_one_kind_adds_no_contrast_and_counts() -> None:
    score, group = torch.tensor([3.0, 1.0, 5.0, 2.0], dtype=D), torch.tensor([0, 0, 1, 1])
    good = torch.tensor([True, False, True, True])
    every = torch.ones(4, dtype=torch.bool)
    for temperature in (None, 2.0):
        assert float(objectives.contrast(score, good, group, every, temperature)) == pytest.approx((3 - 1) / 2)
        assert float(objectives.contrast(score, torch.ones_like(good), group, every, temperature)) == 0
        assert (slope(lambda s, t=temperature: objectives.contrast(s, good, group, every, t), score)[2:] == 0).all()
    likely = torch.tensor([0.0, 1.0, 3.0], dtype=D)
    weights = -slope(lambda s: objectives.contrast(s, torch.tensor([1, 0, 0]) > 0, torch.zeros(3), every[:3], 0.5), likely)
    torch.testing.assert_close(weights[1:], (likely[1:] / 0.5).softmax(0))  # the likeliest of the bad weigh most


def test_what_is_standardised_leaves_the_point_where_all_are_equal() -> None:
    weight = torch.randn(6, dtype=D, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 0.3):
        at = torch.full((6,), value, dtype=D)
        assert (objectives.standardised(at, PAIRS, ON) == 0).all()
        found = slope(lambda r: weight * ON * objectives.standardised(r, PAIRS, ON), at)
        assert torch.isfinite(found).all() and found[0] == pytest.approx(float(weight[0] - weight[1]) / 2)
    wide = objectives.standardised(KINKED, torch.arange(6) // 3, torch.ones(6, dtype=torch.bool)).view(2, 3)
    torch.testing.assert_close(wide.mean(1), torch.zeros(2, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(wide.std(1, correction=0), torch.ones(2, dtype=D))


def test_the_hinge_has_no_force_below_its_limit() -> None:
    force = slope(lambda kl: objectives.hinge(kl, 0.1, 20.0), torch.tensor([0.05, 0.1, 0.3], dtype=D))
    assert force.tolist() == pytest.approx([0, 0, 20 * 0.2])


def test_a_neighbour_is_chosen_by_relative_distance() -> None:
    distance = torch.tensor([1.0, 3.0, 2.0, 4.0, 4.0, 4.0], dtype=D)
    pool = torch.tensor([0, 0, 0, 1, 1, 1])
    log_p = objectives.chosen_by_distance(distance, pool)
    torch.testing.assert_close(log_p[:3], (-distance[:3] / 4).log_softmax(0))
    torch.testing.assert_close(log_p[3:].exp(), torch.full((3,), 1 / 3, dtype=D))
    torch.testing.assert_close(objectives.chosen_by_distance(1e6 * distance, pool), log_p)
    # nearer is likelier, and the scale has no gradient: it sums to 0 in a pool
    found = slope(lambda d: objectives.chosen_by_distance(d, pool)[0], distance)
    assert found[0] < 0 < found[1] and float(found.sum()) == pytest.approx(0, abs=1e-12) and (found[3:] == 0).all()


# ------------------------------------------------------------------ KLs
@quick
@given(st.floats(-20, 20))
def test_estimates_of_a_kl_are_never_negative_and_0_where_the_policies_agree(ratio: float) -> None:
    r, zero = torch.tensor([ratio], dtype=D), torch.zeros(1, dtype=D)
    for estimate in (objectives.forward_kl, objectives.estimated_kl, partial(objectives.estimated_kl, kind="k2")):
        assert float(estimate(r)) >= 0 and float(estimate(zero)) == 0 and float(slope(estimate, zero)) == 0
        assert abs(ratio) < 1e-4 or float(estimate(r)) > 0


def test_each_estimate_has_the_mean_or_the_gradient_it_is_known_for() -> None:
    """p = N(m, 1) against q = N(0, 1/4), by quadrature; the slopes of KL(p || q) and KL(q || p) are 4 m and m."""
    nodes, weights = (torch.tensor(t) for t in np.polynomial.hermite_e.hermegauss(60))
    weights, m = weights / weights.sum(), torch.tensor(0.8, dtype=D, requires_grad=True)
    x = m.detach() + nodes
    ratio = 2 * x**2 - (x - m) ** 2 / 2 - math.log(2)
    mean, rise = {}, {}
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "forward": objectives.forward_kl,
        **{k: partial(objectives.estimated_kl, kind=k) for k in ("k1", "k2", "k3")},  # pyright: ignore
    }
    for kind, f in kinds.items():
        value = (weights * f(ratio)).sum()
        mean[kind], rise[kind] = float(value.detach()), float(torch.autograd.grad(value, m, retain_graph=True)[0])
    exact, reverse = 2 * (1 + 0.8**2) - math.log(2) - 0.5, (0.25 + 0.8**2) / 2 + math.log(2) - 0.5
    assert [mean["k1"], mean["k3"], mean["forward"]] == pytest.approx([exact, exact, reverse]) and abs(mean["k2"] - exact) > 0.1
    assert [rise["k2"], rise["k1"], rise["k3"]] == pytest.approx([4 * 0.8, 0, 0.8], abs=1e-9)


def test_a_reference_can_be_raised_to_a_power() -> None:
    log_p, log_ref = torch.tensor([-1.0]), torch.tensor([-2.0])
    assert [float(objectives.tempered(log_p, log_ref, torch.tensor([k]))) for k in (1.0, 0.5)] == [1.0, 0.0]


# ------------------------------------------------------------------ on a record
def record(steps: int | None = None) -> Rollout:
    grid = toy.Policy().sigmas(toy.STEPS)
    plan = toy.plan("chains") if steps is None else chains(grid, laws.flow_sde(0.7), range(1, 1 + steps), 3)
    got, _ = toy.collected(toy.Policy(excited=True), plan)
    assert got.rollout is not None
    return got.rollout


def asked(objective: Objective, ro: Rollout) -> tuple[Batch, dict[str, Tensor]]:
    """All edges as one batch in float64, and predictions beside the recorded ones."""
    q = normalised([objective.queries(ro, credit_of(ro), NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None
    batch = form(q, torch.arange(len(q.row_prompt)), ro, NOISE)
    wide = {f.name: v.double() for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor) and v.is_floating_point()}
    batch, draw = replace(batch, **wide), torch.Generator().manual_seed(3)
    assert batch.u_old is not None
    u = {n: batch.u_old + 0.2 * torch.randn(batch.u_old.shape, dtype=D, generator=draw) for n in ("current", *objective.needs)}
    return batch, u


def valued(objective: Objective, batch: Batch, u: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and its gradient to the predictions."""
    now = u["current"].clone().requires_grad_()
    value = objective.loss(batch, objective.measure(batch, {**u, "current": now})).value
    return value.detach(), torch.autograd.grad(value, now)[0]


def test_for_chains_of_one_step_gspo_is_clip() -> None:
    ro = record(1)
    one, other = objectives.gspo(0.05, 0.1), objectives.clip(0.05, 0.1)
    batch, u = asked(one, ro)
    for a, b in zip(valued(one, batch, u), valued(other, batch, u), strict=True):
        torch.testing.assert_close(a, b)
    more, u = asked(one, record())
    assert not torch.allclose(valued(one, more, u)[1], valued(other, more, u)[1])


@pytest.mark.parametrize("objective", [objectives.clip(0.1, beta=0.3), objectives.guard(0.1, beta=0.3), objectives.cispo(beta=0.3)])
def test_the_scale_of_a_kl_multiplies_it_alone(objective: Objective) -> None:
    batch, u = asked(objective, record())
    free = replace(objective, beta=0.0)  # pyright: ignore[reportArgumentType]
    none, one, three = valued(free, batch, u), valued(objective, batch, u), valued(objective, replace(batch, kl_scale=3.0), u)
    for policy, single, triple in zip(none, one, three, strict=True):
        torch.testing.assert_close(triple - policy, 3 * (single - policy))
        assert float((single - policy).abs().max()) > 0


def test_a_step_can_have_a_share_of_the_kl() -> None:
    """2 times as heavy, of the KL or of the policy, and never in the denominator."""
    ro = record()
    given = {"scale": lambda steps: torch.full_like(steps.s, 2.0), "kl_scale": lambda steps: torch.full_like(steps.s, 3.0)}
    plain, _ = asked(objectives.clip(beta=1.0), ro)
    shared, _ = asked(objectives.clip(beta=1.0, **given), ro)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(shared.weight, 2 * plain.weight)
    torch.testing.assert_close(shared.kl_weight, 3 * plain.kl_weight)


def test_longcat_undoes_the_noise_of_a_step_and_squares_it_for_the_kl() -> None:
    method = methods.longcat(group=3, cap=10.0)
    got, _ = toy.collected(toy.Policy(), method.plan_at(0, toy.Policy().sigmas(toy.STEPS), 0))
    ro = got.rollout
    assert ro is not None
    q = method.objective.queries(ro, credit_of(ro), NOISE)
    assert q.share is not None and q.kl_share is not None
    torch.testing.assert_close(q.kl_share, q.share**2)
    edge = int(ro.plan.edges[0])
    start, end = float(ro.plan.sigma[ro.plan.parent[edge]]), float(ro.plan.sigma[edge])
    level = start if start < 1 else ro.plan.guard
    assert float(q.share[0]) == pytest.approx(math.sqrt(level / (1 - level) / (start - end)), rel=1e-6)


def test_rapos_kl_is_taken_of_the_sampled_step() -> None:
    objective = objectives.clip(0.1, beta=0.5, kl="forward")
    batch, u = asked(objective, record())
    expected = objectives.forward_kl(edge_ratio(batch, u["current"][batch.row], u["reference"][batch.row]))
    torch.testing.assert_close(objective.measure(batch, u)[:, 1], expected)
    assert not torch.allclose(expected, objectives.clip(0.1, beta=0.5).measure(batch, u)[:, 1])


def test_guard_divides_by_the_step_or_by_its_slope() -> None:
    batch, u = asked(objectives.guard(10.0), record())
    u["current"] = batch.u_old + 0.0  # pyright: ignore[reportOptionalOperand]
    for by, share in (("step", batch.delta), ("slope", batch.b.abs())):
        objective = objectives.guard(10.0, by=by)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(valued(objective, batch, u)[0], -(batch.weight * batch.advantage / share).sum())
    with pytest.raises(ValueError, match='divides by "step" or by "slope", not by \'b\''):
        objectives.guard(by="b")  # pyright: ignore[reportArgumentType]
