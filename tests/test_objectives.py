"""Objectives: the clipped loss by hand, queries against a direct computation, and one gradient however the rows are sliced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl import objectives
from flowrl.advantage import Group
from flowrl.replay import RatioError, Work, form
from flowrl.samplers import Rollout, kl, log_prob
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes
from flowrl.types import Batch, Credit, Loss, Method, Objective, Queries, WeightSet
from flowrl.update import Trained, normalised, update
from flowrl.weights import Weights

quick = settings(deadline=None, max_examples=100)  # a shared machine may stall at any moment
NOISE = Source(0, 0)


# ------------------------------------------------------------------ the clipped loss
@quick
@given(st.floats(-0.5, 0.5), st.floats(-5, 5), st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.none() | st.floats(1.05, 3))
def test_clipped_by_hand(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> None:
    rho = math.exp(ratio)
    loss = max(-advantage * rho, -advantage * min(max(rho, 1 - low), 1 + high))
    if dual is not None and advantage < 0:
        loss = min(loss, -advantage * dual)
    got = objectives.clipped(
        torch.tensor([ratio], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), low, high, dual
    )
    assert float(got) == pytest.approx(loss, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "rho", "moves"),
    [
        (1.0, 1.3, False),
        (1.0, 1.1, True),
        (1.0, 0.5, True),  # what is good: no further up
        (-1.0, 0.5, False),
        (-1.0, 0.9, True),
        (-1.0, 1.3, True),  # what is bad: no further down
    ],
)
def test_the_gradient_ends_at_the_clip_on_one_side_only(advantage: float, rho: float, moves: bool) -> None:
    ratio = torch.tensor([math.log(rho)], dtype=torch.float64, requires_grad=True)
    objectives.clipped(ratio, torch.tensor([advantage], dtype=torch.float64), 0.2).sum().backward()
    assert float(ratio.grad) == pytest.approx(-advantage * rho if moves else 0.0)  # pyright: ignore[reportArgumentType]


def test_the_two_sides_of_the_clip_are_their_own() -> None:
    one = torch.ones(1)
    assert float(objectives.clipped(torch.tensor([math.log(1.5)]), one, 0.1, 0.4)) == pytest.approx(-1.4)
    assert float(objectives.clipped(torch.tensor([math.log(0.5)]), -one, 0.1, 0.4)) == pytest.approx(0.9)


def test_the_dual_clip_bounds_a_bad_sample_and_stops_its_gradient() -> None:
    ratio = torch.tensor([math.log(5.0)], requires_grad=True)
    loss = objectives.clipped(ratio, torch.tensor([-1.0]), 0.2, dual=3.0)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(3.0) and float(ratio.grad) == 0  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("low", "high"), [(1e-7, None), (1e-4, 3e-7), (0.0, None)])
def test_a_clip_below_the_noise_floor_is_refused(low: float, high: float | None) -> None:
    with pytest.raises(ValueError, match="below 3.6e-07, 3x the float32 resolution of the ratio; use at least 1e-6"):
        objectives.clip(low, high)


def test_an_unknown_compat_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="compat 'flow_grpo' is unknown to clip"):
        objectives.clip(compat="flow_grpo")
    assert objectives.clip(2e-6).low == objectives.clip(2e-6).high == 2e-6


def test_a_ratio_needs_noise() -> None:
    got, _ = toy.collected(toy.Policy(), toy.plan("ode"))
    assert got.rollout is not None
    with pytest.raises(ValueError, match="needs a plan with noisy steps; this plan has none"):
        objectives.clip().queries(got.rollout, credit_of(got.rollout), NOISE)


@quick
@given(st.integers(0, 1000))
def test_the_surrogate_kl_is_the_kl_of_the_two_means(seed: int) -> None:
    x, u, ref = torch.randn(3, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a, b, s = torch.tensor([[0.9, 0.7], [-0.3, -0.1], [0.4, 1.3]], dtype=torch.float64)
    wide = b.view(-1, 1, 1)
    torch.testing.assert_close(
        objectives.surrogate_kl(u, ref, b, s), kl(a.view(-1, 1, 1) * x + wide * u, a.view(-1, 1, 1) * x + wide * ref, s)
    )


# ------------------------------------------------------------------ queries, batches, losses
def credit_of(ro: Rollout, seed: int = 5) -> Credit:
    """Random credit with some weights 0."""
    draw = torch.Generator().manual_seed(seed)
    shape = len(ro.slots), len(ro.plan.parent)
    weight = (torch.rand(shape, generator=draw) > 0.2).float()
    return Credit(torch.randn(shape, generator=draw), weight, weight * torch.rand(shape, generator=draw))


def moved(policy: toy.Policy, by: float = 0.02) -> None:
    """Weights a little further, so that ratios are not 1."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, p in policy.trainable():
            p += by * torch.randn(p.shape, generator=draw).to(p)


def direct(
    policy: toy.Policy, ro: Rollout, cond: toy.Directions, credit: Credit, clip: float, beta: float, reference: toy.Policy
) -> Tensor:
    """The loss edge by edge, without queries, slices or batches: weighted means over all edges."""
    plan, total, distance = ro.plan, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    weight = credit.weight[:, plan.edges].sum().double()
    kl_weight = credit.kl_weight[:, plan.edges].sum().double()
    a, b, s = plan.coefficients(plan.edges)
    for p in range(len(ro.slots)):
        for e, n in enumerate(plan.edges.tolist()):
            q = int(plan.parent[n])
            x, x_next = (ro.states(torch.tensor([k]))[p].double() for k in (q, n))
            at = plan.sigma[q].float()[None], cond.take(torch.tensor([p]))
            old = ro.u[p, plan.rows.tolist().index(q)].double()[None]
            u, ref = (net.predict(x.float(), *at).double() for net in (policy, reference))
            mean, mean_old, mean_ref = (a[e] * x + b[e] * v for v in (u, old, ref))
            ratio = log_prob(x_next, mean, s[e : e + 1]) - log_prob(x_next, mean_old, s[e : e + 1])
            total = total + credit.weight[p, n] * objectives.clipped(ratio, credit.advantage[p, n].double(), clip).sum()
            distance = distance + credit.kl_weight[p, n] * kl(mean, mean_ref, s[e : e + 1]).sum()
    return total / weight + beta * distance / kl_weight


def sliced(
    policy: toy.Policy, objective: Objective, q: Queries, ro: Rollout, cond: toy.Directions, reference: toy.Policy
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows in q.slices:
        batch = form(q, rows, ro, NOISE)
        mine = cond.take(batch.slot)
        u = {"current": policy.predict(batch.x, batch.sigma, mine)}
        with torch.no_grad():
            u |= {name: reference.predict(batch.x, batch.sigma, mine) for name in objective.needs}
        total = total + objective.loss(batch, objective.measure(batch, u)).value.double()
    return total


@pytest.mark.parametrize("kind", ["chains", "tree", "comb"])
def test_queries_give_the_loss_of_every_edge_once(kind: str) -> None:
    policy, reference = toy.Policy(torch.float64, excited=True), toy.Policy(torch.float64, excited=True)
    got, _ = toy.collected(policy, toy.plan(kind))  # pyright: ignore[reportArgumentType]
    ro, cond = got.rollout, got.cond
    assert ro is not None and isinstance(cond, toy.Directions)
    moved(policy)
    moved(reference, -0.03)
    credit, objective = credit_of(ro), objectives.clip(1e-2, beta=0.3)
    q = normalised([objective.queries(ro, credit, NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None
    assert float(q.weight.sum()) == pytest.approx(1) and float(q.kl_weight.sum()) == pytest.approx(1)
    ours = sliced(policy, objective, q, ro, cond, reference)
    theirs = direct(policy, ro, cond, credit, 1e-2, 0.3, reference)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    parameters = [p for _, p in policy.trainable()]
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-5 * float(grads[1].abs().max()))


def test_step_weights_are_no_part_of_the_denominator() -> None:
    """All steps twice as heavy make the loss twice as large; the KL is left alone."""
    got, _ = toy.collected(toy.Policy(excited=True), toy.plan("comb"))
    ro = got.rollout
    assert ro is not None
    plain, double, uneven = (
        normalised([objectives.clip(scale=scale).queries(ro, credit_of(ro), NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
        for scale in (None, lambda steps: torch.full_like(steps.s, 2.0), lambda steps: objectives.scales.noise_aware(steps.s, 2.25))
    )
    assert plain is not None and double is not None and uneven is not None
    torch.testing.assert_close(double.weight, 2 * plain.weight)
    torch.testing.assert_close(uneven.weight, 2.25 * plain.s * plain.weight)
    assert torch.equal(double.kl_weight, plain.kl_weight) and torch.equal(uneven.kl_weight, plain.kl_weight)


@pytest.mark.parametrize(
    "objective",
    [objectives.clip(1e-2, beta=0.3), objectives.guard(1e-2, beta=0.3), objectives.dppo(1e-2, beta=0.3), objectives.nft(kl=0.1)],
    ids=["clip", "guard", "dppo", "nft"],
)
@pytest.mark.parametrize("kind", ["chains", "tree", "comb"])
def test_slices_accumulate_to_one_batch(kind: str, objective: Objective) -> None:
    policy, reference = toy.Policy(torch.float64, excited=True), toy.Policy(torch.float64, excited=True, seed=1)
    got, _ = toy.collected(policy, toy.plan(kind))  # pyright: ignore[reportArgumentType]
    ro, cond = got.rollout, got.cond
    assert ro is not None and isinstance(cond, toy.Directions)
    moved(policy)
    q = normalised([objective.queries(ro, credit_of(ro), NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None and len(q.slices) > 2
    assert sorted(torch.cat(list(q.slices)).tolist()) == list(range(len(q.row_prompt)))
    whole = replace(q, slices=[torch.arange(len(q.row_prompt))], block=[0])
    parameters = [p for _, p in policy.trainable()]
    found = []
    for which in (q, whole):
        loss = sliced(policy, objective, which, ro, cond, reference)
        found.append((float(loss), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6 * float(found[1][1].abs().max()))


def test_rows_are_recorded_states_and_children_share_them() -> None:
    policy = toy.Policy(excited=True)
    got, _ = toy.collected(policy, toy.plan("comb"))
    ro = got.rollout
    assert ro is not None
    q = objectives.clip().queries(ro, credit_of(ro), NOISE)
    plan, prompts = ro.plan, len(ro.slots)
    assert len(q.row_prompt) == prompts * len(plan.rows) and len(q.advantage) == prompts * len(plan.edges)
    ends = plan.kept[q.child]
    assert torch.equal(plan.parent[ends], plan.kept[q.kept[q.row]])
    assert torch.equal(q.delta, (plan.sigma[plan.parent[ends]] - plan.sigma[ends]).float())
    for call, rows in zip(ro.slices, q.slices, strict=True):  # the recorded calls, the same rows in the same order
        assert torch.equal(q.row_prompt[rows], call.prompt) and torch.equal(q.old[rows], call.row)
    batch = form(q, q.slices[0], ro, NOISE)
    assert batch.u_old is not None
    assert torch.equal(policy.predict(batch.x, batch.sigma, got.cond.take(batch.slot)), batch.u_old)  # pyright: ignore[reportArgumentType]


def test_re_noised_rows_mix_the_leaf_with_their_own_noise() -> None:
    got, _ = toy.collected(toy.Policy(excited=True), toy.plan("ode", 5))
    ro = got.rollout
    assert ro is not None
    q = objectives.nft(draws=4).queries(ro, credit_of(ro), NOISE)
    assert len(q.row_prompt) == 4 * 5 * 4 and (q.old == -1).all() and (q.child == -1).all()
    assert len({(int(p), int(k)) for p, k in zip(q.row_prompt, q.key, strict=True)}) == len(q.key)  # every row has its own noise
    grid = {float(s) for s in ro.plan.sigma[ro.plan.parent[ro.plan.parent >= 0]]}
    assert {float(s) for s in q.sigma} == grid  # the plan's own levels, all of them
    thirds = q.sigma.view(-1, 4)
    assert (thirds.diff(dim=1) >= 0).all() and (thirds[:, -1] > thirds[:, 0]).all()  # the draws of a leaf are spread over the grid
    for rows in q.slices:
        assert len(rows) <= toy.SIZES.slice
        batch = form(q, rows, ro, NOISE)
        assert batch.x0 is not None and batch.target is not None
        x1 = batch.x0 + batch.target
        torch.testing.assert_close(batch.x, (1 - batch.sigma[:, None]) * batch.x0 + batch.sigma[:, None] * x1)
        assert torch.equal(batch.x0, ro.x[q.row_prompt[rows], q.kept[rows]])
        assert torch.equal(batch.advantage, q.advantage[rows])


def test_compat_multiplies_the_step_into_the_kl() -> None:
    policy = toy.Policy(excited=True)
    got, _ = toy.collected(policy, toy.plan("chains"))
    ro = got.rollout
    assert ro is not None
    q = objectives.clip(beta=1.0).queries(ro, credit_of(ro), NOISE)
    batch = form(q, q.slices[-1], ro, NOISE)
    u = {"current": batch.u_old + 0.1, "reference": batch.u_old}  # pyright: ignore[reportOptionalOperand]
    exact, theirs = (objectives.clip(beta=1.0, compat=c).measure(batch, u)[:, 1] for c in (None, "flow_grpo@9745241"))
    torch.testing.assert_close(theirs, exact * batch.delta)


@pytest.mark.evidence("derived", "precise")
def test_guard_by_slope_divides_each_edge_by_its_slope() -> None:
    got, _ = toy.collected(toy.Policy(excited=True), toy.plan("chains"))
    ro = got.rollout
    assert ro is not None
    q = objectives.guard(1e-2).queries(ro, credit_of(ro), NOISE)
    batch = form(q, q.slices[-1], ro, NOISE)
    assert batch.u_old is not None
    u = {"current": batch.u_old + 0.01}
    step, slope = objectives.guard(1e-2), objectives.guard(1e-2, by="slope")
    assert torch.equal(step.measure(batch, u), slope.measure(batch, u))
    ratio = slope.measure(batch, u)[:, 0]
    by_hand = (batch.weight * objectives.clipped(ratio, batch.advantage, 1e-2) / batch.b.abs()).sum()
    torch.testing.assert_close(slope.loss(batch, slope.measure(batch, u)).value, by_hand)
    assert not torch.allclose(batch.b.abs(), batch.delta)


@pytest.mark.evidence("derived", "neighbor_grpo")
def test_neighbours_are_chosen_by_a_softmax_of_minus_distance_over_twice_its_mean() -> None:
    distance = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0], dtype=torch.float64, requires_grad=True)
    pool = torch.tensor([7, 7, 7, 2, 2])
    found = objectives.chosen_by_distance(distance, pool)
    first = (-torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64) / 4).log_softmax(0)
    torch.testing.assert_close(found.detach(), torch.cat([first, torch.full((2,), 0.5, dtype=torch.float64).log()]))
    slope = torch.autograd.grad(found[0], distance)[0]
    # the mean in the temperature has no gradient
    torch.testing.assert_close(slope[:3], (first.exp() - torch.tensor([1.0, 0, 0])) / 4)
    assert (slope[3:] == 0).all()


# ------------------------------------------------------------------ the optimizer step
@dataclass(frozen=True)
class Coupled:
    """A loss over all edges together that no sum over slices can give."""

    separable = False
    clips = False
    needs: Sequence[str] = ()

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        return objectives.clip().queries(rollout, credit, noise)

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        return objectives.clip().measure(batch, u)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        ratio = m[:, 0]
        value = (
            (batch.weight * batch.advantage * ratio).sum() ** 2
            + torch.logsumexp(50 * ratio, 0)
            + (ratio - ratio.mean()).square().sum()
        )
        return Loss(value, {"loss/policy": value.detach()})


def trained(
    policy: toy.Policy,
    objective: Objective,
    kind: str = "chains",
    *,
    sizes: Sizes = toy.SIZES,
    updates: int = 1,
    move: bool = True,
    exact: bool = False,
    weights: Mapping[str, WeightSet] | None = None,
) -> tuple[Trained, list[Tensor]]:
    """One iteration with plain gradient descent of rate 1: (what update says, minus the sum of the gradients)."""
    got, blocks = toy.collected(policy, toy.plan(kind), sizes=sizes, updates=updates)  # pyright: ignore[reportArgumentType]
    method = Method(lambda it, sigmas, slot: toy.plan("chains"), Group(), objective, weights or {}, updates=updates)
    kept = Weights(policy, method.weights)
    if move:
        moved(policy)
    before = [p.detach().clone() for p in kept.parameters]
    assert got.rollout is not None
    q = objective.queries(got.rollout, credit_of(got.rollout), NOISE)
    optimizer = torch.optim.SGD(kept.parameters, lr=1.0)
    done = update(policy, kept, method, [Work(got, q, blocks)], optimizer, 1e9, NOISE, toy.WORLD, exact=exact)
    return done, [p.detach() - b for p, b in zip(kept.parameters, before, strict=True)]


@pytest.mark.parametrize("kind", ["chains", "comb"])
def test_a_coupled_loss_gets_its_direct_gradient(kind: str) -> None:
    policy = toy.Policy(torch.float64, excited=True)
    _, change = trained(policy, Coupled(), kind)
    fresh = toy.Policy(torch.float64, excited=True)
    got, _ = toy.collected(fresh, toy.plan(kind))  # pyright: ignore[reportArgumentType]
    ro = got.rollout
    assert ro is not None
    moved(fresh)
    q = normalised([Coupled().queries(ro, credit_of(ro), NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None
    batch = form(q, torch.arange(len(q.row_prompt)), ro, NOISE)
    u = fresh.predict(batch.x, batch.sigma, got.cond.take(batch.slot))  # pyright: ignore[reportArgumentType]
    value = Coupled().loss(batch, Coupled().measure(batch, {"current": u})).value
    for gradient, moved_by in zip(torch.autograd.grad(value, [p for _, p in fresh.trainable()]), change, strict=True):
        torch.testing.assert_close(moved_by, -gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))


def test_the_first_ratio_must_be_exactly_1() -> None:
    done, _ = trained(toy.Policy(excited=True), objectives.clip(1e-2), move=False, exact=True)
    assert done.first["ratio/max_abs"] == 0 and done.first["clip/fraction"] == 0
    with pytest.raises(RatioError, match="before the first update log p differs"):
        trained(toy.Policy(excited=True), objectives.clip(1e-2), move=True, exact=True)


def test_optimizer_steps_divide_by_their_own_weights() -> None:
    """Two steps of half the prompts each: at a rate that moves nothing between them, their gradients are means of their own."""
    policy = toy.Policy(excited=True)
    got, blocks = toy.collected(policy, toy.plan("chains"), updates=2)
    ro = got.rollout
    assert ro is not None
    parts = [blocks[i].part for i in got.index]
    q = normalised([objectives.clip().queries(ro, credit_of(ro), NOISE)], [parts], 2, toy.WORLD)[0]
    assert q is not None
    of_row = torch.zeros(len(q.row_prompt), dtype=torch.long)
    for rows, block in zip(q.slices, q.block, strict=True):
        of_row[rows] = parts[block]
    for part in range(2):
        assert float(q.weight[of_row[q.row] == part].sum()) == pytest.approx(1)
        assert float(q.kl_weight[of_row[q.row] == part].sum()) == pytest.approx(1)


class Full(toy.Policy):
    """Out of memory above three rows of a call with gradients."""

    def predict(self, x: Tensor, sigma: Tensor, cond: toy.Directions) -> Tensor:
        if torch.is_grad_enabled() and len(x) > 3:
            raise torch.OutOfMemoryError("full")
        return super().predict(x, sigma, cond)


def test_out_of_memory_while_training_halves_the_slices_and_changes_nothing_else() -> None:
    plain, change = trained(toy.Policy(torch.float64, excited=True), objectives.clip(1e-2), move=False, exact=True)
    halved, other = trained(Full(torch.float64, excited=True), objectives.clip(1e-2), move=False, exact=True)
    assert plain.halvings == 0 and halved.halvings == 1 and halved.first["ratio/max_abs"] == 0
    for a, b in zip(change, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(a.abs().max()))


def test_weight_sets_come_back_after_use() -> None:
    policy = toy.Policy(excited=True)
    kept = Weights(policy, {"reference": WeightSet("frozen"), "old": WeightSet("ema", decay=lambda it: 0.75)})
    start = [p.detach().clone() for p in kept.parameters]
    moved(policy)
    now = [p.detach().clone() for p in kept.parameters]
    with kept.using("reference"):
        assert all(torch.equal(p, s) for p, s in zip(kept.parameters, start, strict=True))
    assert all(torch.equal(p, n) for p, n in zip(kept.parameters, now, strict=True))
    assert all(torch.equal(p, s) for p, s in zip(kept.stored["reference"], start, strict=True))
    with pytest.raises(RuntimeError, match="inside"), kept.using("old"):
        raise RuntimeError("inside")
    assert all(torch.equal(p, n) for p, n in zip(kept.parameters, now, strict=True))
    kept.follow(0, {})
    for old, s, n in zip(kept.stored["old"], start, now, strict=True):
        torch.testing.assert_close(old, 0.75 * s + 0.25 * n)
    assert all(torch.equal(p, s) for p, s in zip(kept.stored["reference"], start, strict=True))
    with pytest.raises(ValueError, match="weight set 'best' does not exist; the method declares"), kept.using("best"):
        pass


def test_a_copy_is_replaced_when_it_is_due() -> None:
    policy = toy.Policy(excited=True)
    kept = Weights(policy, {"old": WeightSet("copy", when=lambda it, metrics: it % 2 == 1)})
    moved(policy)
    kept.follow(0, {})
    assert not torch.equal(kept.stored["old"][0], kept.parameters[0])
    kept.follow(1, {})
    assert torch.equal(kept.stored["old"][0], kept.parameters[0])
    assert kept.bytes() == {"old": sum(p.numel() * p.element_size() for p in kept.parameters)}
