"""Objectives on re-noised leaves: shared noise, coupled losses slice by slice, what no influence may have, and where they lead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from method_table import parts, session
from test_golden_forward import batch_of, credited
from test_objectives import NOISE, credit_of, moved, trained
from torch import Tensor

from flowrl import methods, objectives
from flowrl.advantage import Best, Pairs, Rewarded
from flowrl.loop import iterate
from flowrl.replay import form
from flowrl.rewards import make
from flowrl.samplers import Rollout, paths
from flowrl.types import Batch, Credit, Objective, Queries, WeightSet
from flowrl.update import normalised

quick = settings(deadline=None, max_examples=30)
SETS = {name: WeightSet("frozen") for name in ("reference", "old", "recent")}
FORWARD: dict[str, Objective] = {
    "nft": objectives.nft(kl=0.1, draws=2),
    "awm": objectives.awm(draws=2, old=True),
    "awm_sum_first": objectives.awm(order="sum_first", draws=3, old=True),
    "dgpo": objectives.dgpo(beta=3.0, kl=0.1, clip=0.05, draws=2),
    "dpo": objectives.dpo(beta=3.0, draws=2),
    "matching": objectives.matching(draws=2, beta=0.1),
}


def rolled(group: int = 5) -> tuple[toy.Policy, Rollout, toy.Directions]:
    """A policy that has moved on from the one that sampled, and what that one walked."""
    policy = toy.Policy(torch.float64, excited=True)
    got, _ = toy.collected(policy, toy.plan("ode", group))
    assert got.rollout is not None and isinstance(got.cond, toy.Directions)
    return policy, got.rollout, got.cond


def whole_batch(objective: Objective, ro: Rollout, credit: Credit) -> tuple[Queries, Batch]:
    q = normalised([objective.queries(ro, credit, NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None
    return q, form(q, torch.arange(len(q.row_prompt)), ro, NOISE)


def signed(ro: Rollout, seed: int = 5) -> Credit:
    """Random advantages, a few of them 0, and masks."""
    credit = credit_of(ro, seed)
    return replace(credit, advantage=torch.where(credit.advantage.abs() < 0.3, 0, credit.advantage))


# ------------------------------------------------------------------ where it asks
@pytest.mark.parametrize("name", ["dgpo", "dpo"])
def test_the_leaves_of_a_prompt_share_noise_and_level(name: str) -> None:
    _, ro, _ = rolled()
    q, batch = whole_batch(FORWARD[name], ro, credit_of(ro))
    noise, drawn = (batch.x - (1 - batch.sigma[:, None]) * batch.x0) / batch.sigma[:, None], {}  # pyright: ignore
    for i, place in enumerate(zip(q.group.tolist(), q.draw.tolist(), strict=True)):
        drawn.setdefault(place, []).append((noise[i], batch.sigma[i]))
    assert len({float(of[0][1]) for of in drawn.values()}) > 2
    for of in drawn.values():
        assert len(of) > 1 and all(torch.equal(level, of[0][1]) for _, level in of)
        for z, _ in of:
            torch.testing.assert_close(z, of[0][0], rtol=1e-4, atol=1e-5)
    firsts = torch.stack([of[0][0] for of in drawn.values()])
    assert len(firsts.unique(dim=0)) == len(drawn), "prompts and draws have noise of their own"


def test_only_leaves_that_take_part_are_asked() -> None:
    _, ro, _ = rolled(6)
    credit = signed(ro)
    leaves = ro.plan.leaves
    q = objectives.matching(draws=3).queries(ro, credit, NOISE)
    assert len(q.row) == 3 * int((credit.weight[:, leaves] > 0).sum())
    q = objectives.dpo(draws=2).queries(ro, credit, NOISE)
    useful = credit.advantage[:, leaves].sign() * (credit.weight[:, leaves] > 0)
    pairs = torch.minimum((useful > 0).sum(1), (useful < 0).sum(1))
    assert len(q.row) == 2 * 2 * int(pairs.sum()) > 0 and sorted(torch.cat(list(q.slices)).tolist()) == list(range(len(q.row)))


@pytest.mark.parametrize("name", ["online_dpo", "sft"])
def test_equal_rewards_everywhere_ask_nothing_and_change_nothing(name: str) -> None:
    of = parts(name)
    flat = make(lambda images, prompts, metadata: [1.0] * len(images), "toy")
    recipe = replace(of.recipe, optim=replace(of.recipe.optim, weight_decay=0.0))
    of = replace(of, recipe=recipe, rewards={"toy": (flat, 1.0)})
    state = session(of)
    before = [p.detach().clone() for p in state.weights.parameters]
    row = iterate(of, state)
    assert row["grad/norm"] == 0 and all(torch.equal(p, b) for p, b in zip(state.weights.parameters, before, strict=True))


@quick
@given(st.floats(0, 1, exclude_max=True), st.integers(2, 40))
def test_levels_stay_where_they_belong(place: float, steps: int) -> None:
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    assert objectives.Grid()(grid, place) in grid.tolist()
    inner = objectives.Grid(1, 0.9)
    if int(0.9 * steps) > 1:
        assert float(grid[steps - int(0.9 * steps)]) <= inner(grid, place) < 1
    else:
        with pytest.raises(ValueError, match="no level is left of a grid of"):
            inner(grid, place)
    assert 0.2 <= objectives.Band(0.2, 0.8)(grid, place) <= 0.8 and 0.01 <= objectives.LogitNormal()(grid, place) < 1


def test_logit_normal_levels_have_their_median_and_shift() -> None:
    grid = torch.ones(1, dtype=torch.float64)
    assert objectives.LogitNormal()(grid, 0.5) == pytest.approx(0.5)
    assert objectives.LogitNormal(shift=3.0)(grid, 0.5) == pytest.approx(0.75)
    # Phi(1) = 0.8413
    assert objectives.LogitNormal(0.5, 2.0)(grid, 0.8413447460685429) == pytest.approx(1 / (1 + math.exp(-2.5)))


# ------------------------------------------------------------------ one gradient however it is cut
@pytest.mark.parametrize("name", FORWARD)
def test_slices_give_the_gradient_of_one_batch(name: str) -> None:
    """The update as it runs, in small slices, against autograd through one batch."""
    objective = FORWARD[name]
    _, change = trained(toy.Policy(torch.float64, excited=True), objective, "ode", weights=SETS)
    policy = toy.Policy(torch.float64, excited=True)
    got, _ = toy.collected(policy, toy.plan("ode"))
    ro, start = got.rollout, toy.Policy(torch.float64, excited=True)
    assert ro is not None
    moved(policy)
    _, batch = whole_batch(objective, ro, credit_of(ro))
    mine = got.cond.take(batch.slot)
    u = {"current": policy.predict(batch.x, batch.sigma, mine)}  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        u |= {n: start.predict(batch.x, batch.sigma, mine) for n in objective.needs}  # pyright: ignore[reportArgumentType]
    value = objective.loss(batch, objective.measure(batch, u)).value  # pyright: ignore[reportArgumentType]
    for gradient, by in zip(torch.autograd.grad(value, [p for _, p in policy.trainable()]), change, strict=True):
        # u passes through float32 in the toy
        torch.testing.assert_close(by, -gradient, rtol=0, atol=2e-6 * float(gradient.abs().max()))


def pieces(objective: Objective, cut: Sequence[int]) -> list[Tensor]:
    """Gradients to u of a coupled loss in float64: of one batch, and of its measures taken piece by piece."""
    _, ro, _ = rolled()
    _, batch = whole_batch(objective, ro, signed(ro))
    draw = torch.Generator().manual_seed(1)
    u = {n: torch.randn(batch.x.shape, dtype=torch.float64, generator=draw) for n in ("current", *objective.needs)}
    found = []
    for sizes in ([len(batch.x)], cut):
        parts = torch.arange(len(batch.x)).split(sizes[0])
        now = u["current"].clone().requires_grad_()
        measures = []
        for rows in parts:
            of = replace(batch, x=batch.x[rows], x0=batch.x0[rows], target=batch.target[rows], sigma=batch.sigma[rows])  # pyright: ignore
            measures.append(objective.measure(of, {n: (now if n == "current" else v)[rows] for n, v in u.items()}))
        leaf = torch.cat([m.detach() for m in measures]).requires_grad_()
        objective.loss(replace(batch, x=torch.zeros(0), target=None, x0=None), leaf).value.backward()
        assert leaf.grad is not None
        for m, g in zip(measures, leaf.grad.split([len(m) for m in measures]), strict=True):
            m.backward(g)
        assert now.grad is not None
        found.append(now.grad)
    return found


@pytest.mark.parametrize("name", ["dgpo", "dpo", "awm_sum_first"])
def test_a_coupled_loss_needs_no_latents_and_no_order(name: str) -> None:
    whole, cut = pieces(FORWARD[name], [3])
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-12)
    assert float(whole.abs().max()) > 0


@pytest.mark.parametrize("name", [name for name in FORWARD if name != "nft"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    objective = FORWARD[name]
    _, ro, _ = rolled()
    _, batch = whole_batch(objective, ro, signed(ro))
    # what is stopped on purpose is no slope of the value: DGPO's clip here, DiffusionNFT's divisor
    objective = replace(objective, clip=None) if name == "dgpo" else objective  # pyright: ignore
    draw = torch.Generator().manual_seed(2)
    other = {n: torch.randn(batch.x.shape, dtype=torch.float64, generator=draw) for n in objective.needs}

    def value(u: Tensor) -> Tensor:
        m = objective.measure(batch, {"current": u, **other})
        return objective.loss(batch, m).value

    u = torch.randn(batch.x.shape, dtype=torch.float64, generator=draw).requires_grad_()
    assert torch.autograd.gradcheck(value, (u,), atol=1e-6)


@pytest.mark.parametrize("name", FORWARD)
def test_masked_leaves_have_no_influence(name: str) -> None:
    objective = FORWARD[name]
    _, ro, _ = rolled()
    credit = signed(ro)
    credit = replace(credit, kl_weight=credit.weight)
    dead = credit.weight == 0
    wild = replace(credit, advantage=torch.where(dead, 1e3, credit.advantage))
    found = []
    for of in (credit, wild):
        _, batch = whole_batch(objective, ro, of)
        draw = torch.Generator().manual_seed(2)
        u = {n: torch.randn(batch.x.shape, dtype=torch.float64, generator=draw) for n in ("current", *objective.needs)}
        now = u["current"].requires_grad_()
        loss = objective.loss(batch, objective.measure(batch, u)).value
        gradient = torch.autograd.grad(loss, now)[0]
        assert (gradient[batch.weight == 0] == 0).all() and (gradient[batch.weight > 0] != 0).any()
        found.append((float(loss.detach()), gradient))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


# ------------------------------------------------------------------ where it leads
@pytest.mark.parametrize("path", [paths.flow, paths.vp("epsilon"), paths.vp("v_prediction")], ids=["flow", "epsilon", "v"])
def test_dpo_raises_the_winner_and_lowers_the_loser(path: paths.Path) -> None:
    """One small step down the gradient: the winner's error falls, the loser's rises, whatever the network predicts."""
    draw = torch.Generator().manual_seed(4)
    x0, x1, u, ref = torch.randn(4, 2, 5, dtype=torch.float64, generator=draw)
    x1 = x1[:1].expand(2, -1)
    level = torch.full((2, 1), 0.6, dtype=torch.float64)
    target = path.target(x0, x1, level)
    batch = replace(batch_of(2, torch.tensor([1.0, -1.0]), target, level[:, 0]), group=torch.zeros(2, dtype=torch.long))
    objective, u = objectives.dpo(10.0), u.requires_grad_()
    before = objective.measure(batch, {"current": u, "reference": ref})
    gradient = torch.autograd.grad(objective.loss(batch, before).value, u)[0]
    after = objective.measure(batch, {"current": u - 1e-3 * gradient, "reference": ref})
    won, lost = (after - before)[:, 0].tolist()
    assert won < 0 < lost


@quick
@given(st.integers(0, 1000), st.integers(1, 9))
def test_dpo_of_a_mean_equals_that_of_a_sum_with_beta_by_the_dimension(seed: int, dims: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    u, ref, target = torch.randn(3, 2, dims, dtype=torch.float64, generator=draw)
    batch = replace(batch_of(2, torch.tensor([1.0, -1.0]), target), group=torch.zeros(2, dtype=torch.long))
    objective = objectives.dpo(7.0 * dims)
    loss = objective.loss(batch, objective.measure(batch, {"current": u, "reference": ref})).value
    summed = [(v - target).square().sum(1) for v in (u, ref)]
    margin = (summed[0][0] - summed[0][1]) - (summed[1][0] - summed[1][1])
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(-3.5 * margin))


def test_pairs_join_the_best_with_the_worst_and_leave_the_rest() -> None:
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    advantage = torch.tensor([0.5, 2.0, -1.0, 0.0, -3.0, 1.0, 1.0, -1.0])
    weight, node = torch.ones(8), torch.arange(8)
    assert objectives.paired(group, torch.zeros(8), node, advantage, weight).tolist() == [[1, 4], [0, 2]]
    weight[4] = 0
    assert objectives.paired(group, torch.zeros(8), node, advantage, weight).tolist() == [[1, 2]]
    assert objectives.paired(group, node, node, advantage, weight).shape == (0, 2)  # other draws are no partners


@pytest.mark.evidence("derived", "dgpo")
def test_dgpos_sides_are_balanced_and_its_partition_function_cancels() -> None:
    """A constant added to every error of a group changes nothing: that is what the shared normaliser would do."""
    _, ro, _ = rolled()
    objective = objectives.DGPO(beta=3.0, kl=0.0, clip=None)
    _, batch = whole_batch(objective, ro, signed(ro))
    m = torch.rand(len(batch.x), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.rand(8, dtype=torch.float64)[batch.group]  # pyright: ignore[reportArgumentType]
    moved_on = m + torch.stack([shift, *[torch.zeros_like(shift)] * 3], 1)
    torch.testing.assert_close(objective.loss(batch, moved_on).value, objective.loss(batch, m).value)
    a = objectives.balanced(torch.tensor([3.0, 1.0, -1.0, -1.0, 2.0]), torch.tensor([0, 0, 0, 0, 1]), torch.ones(5))
    torch.testing.assert_close(a, torch.tensor([2.25, 0.75, -1.5, -1.5, 0.0]))


@pytest.mark.evidence("derived", "dgpo")
def test_dgpos_gradient_is_the_advantage_weighed_by_the_sigmoid() -> None:
    """mean sigmoid(S) A e, as its authors write it, for balanced advantages."""
    count, advantage = 4, torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.float64)
    batch = replace(batch_of(count, advantage, torch.zeros(count, 2)), group=torch.zeros(count, dtype=torch.long))
    m = torch.rand(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = objectives.DGPO(beta=5.0, kl=0.0, clip=None).loss(batch, m).value
    gradient = torch.autograd.grad(value, m)[0][:, 0]
    gap = 5.0 / count * (advantage * (m[:, 0] - m[:, 1])).sum()
    torch.testing.assert_close(gradient, torch.sigmoid(gap) * advantage / count)


@pytest.mark.evidence("derived", "dgpo")
def test_dgpo_stops_leaves_that_moved_far_enough() -> None:
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    batch = replace(batch_of(4, advantage, torch.zeros(4, 2)), group=torch.zeros(4, dtype=torch.long))
    old = torch.full((4,), 0.5, dtype=torch.float64)
    error = old + torch.tensor([-0.2, 0.2, 0.2, -0.2], dtype=torch.float64)
    m = torch.stack([error, old, old, 0 * old], 1).requires_grad_()
    gradient = torch.autograd.grad(objectives.DGPO(clip=0.1).loss(batch, m).value, m)[0][:, 0]
    assert (gradient[[0, 2]] == 0).all() and (gradient[[1, 3]] != 0).all()


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_minimiser_of_nfts_main_term_is_v_old_plus_2_delta_over_beta(beta: float) -> None:
    """At one point x, with unit divisors: Delta = p (E+[target] - v_old), E+ over the good ones."""
    draw = torch.Generator().manual_seed(9)
    target, p = torch.randn(50, 3, dtype=torch.float64, generator=draw), torch.rand(50, 1, dtype=torch.float64, generator=draw)
    old = target.mean(0)  # at this point the old policy is the posterior mean of its own samples
    delta = (p * (target - old)).mean(0)
    u = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sigma, x = torch.full((50,), 0.4, dtype=torch.float64), torch.randn(3, dtype=torch.float64, generator=draw).expand(50, 3)
    x0 = x - 0.4 * target
    error = [(x - 0.4 * (old + s * beta * (u - old)) - x0) for s in (1, -1)]
    scale = [e.detach().abs().mean(1).clamp(min=1e-5) for e in error]
    terms = objectives.nft_terms(u.expand(50, 3), old.expand(50, 3), x, x0, sigma, beta)
    plain = [t * s for t, s in zip(terms, scale, strict=True)]
    gradient = torch.autograd.grad((p[:, 0] * plain[0] + (1 - p[:, 0]) * plain[1]).mean(), u)[0]
    # quadratic with curvature 2 beta^2 sigma^2 / 3: one Newton step from any u is its minimiser
    best = u.detach() - gradient / (2 * beta**2 * 0.4**2 / 3)
    torch.testing.assert_close(best, old + 2 / beta * delta, rtol=1e-9, atol=1e-12)


def test_awms_two_orders_agree_on_policy_and_part_off_it() -> None:
    one, other = objectives.awm(beta=0, pull=0, draws=3), objectives.awm(order="sum_first", beta=0, pull=0, draws=3)
    assert one.separable and not other.separable
    _, ro, _ = rolled()
    _, batch = whole_batch(one, ro, credit_of(ro))
    m = torch.rand(len(batch.x), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for was in (m[:, 0], m[:, 1]):
        here = torch.stack([m[:, 0], was, 0 * was, 0 * was], 1)
        values = []
        for objective in (one, other):
            leaf = here.clone().requires_grad_()
            values.append(torch.autograd.grad(objective.loss(batch, leaf).value, leaf)[0])
        found.append(torch.equal(*values) or torch.allclose(*values))
    assert found == [True, False]


def test_awm_with_more_updates_compares_with_the_weights_that_sampled() -> None:
    assert methods.awm().objective.needs == ["reference", "recent"]
    method = methods.awm(updates=2)
    assert "old" in method.objective.needs and method.weights["old"].kind == "copy"
    done, _ = trained(
        toy.Policy(torch.float64, excited=True), objectives.awm(old=True), "ode", weights=SETS, updates=2, move=False, exact=True
    )
    assert done.first["ratio/max_abs"] == 0 and done.metrics["ratio/max_abs"] > 0


# ------------------------------------------------------------------ mixed
def test_a_mix_is_the_sum_of_both_means() -> None:
    ratio, matching = objectives.clip(1e-2), objectives.matching(draws=2)
    policy = toy.Policy(torch.float64, excited=True)
    got, _ = toy.collected(policy, toy.plan("tree"))
    ro = got.rollout
    assert ro is not None
    credit = credit_of(ro)
    moved(policy)
    found = {}
    best = objectives.best_leaf(ro.plan, credit)
    for name, objective, of in (
        ("ratio", ratio, credit),
        ("matching", matching, best),
        ("mixed", objectives.mixed(ratio, matching, 0.25), credit),
    ):
        q = normalised([objective.queries(ro, of, NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
        assert q is not None
        total = torch.zeros((), dtype=torch.float64)
        for rows in q.slices:
            batch = form(q, rows, ro, NOISE)
            u = {"current": policy.predict(batch.x, batch.sigma, got.cond.take(batch.slot))}  # pyright: ignore
            total = total + objective.loss(batch, objective.measure(batch, u)).value  # pyright: ignore
        found[name] = float(total.detach())
    assert found["mixed"] == pytest.approx(found["ratio"] + 0.25 * found["matching"], rel=1e-6)
    assert abs(found["matching"]) > 1e-3


def test_the_best_leaf_is_a_valid_one_that_is_better_than_average() -> None:
    plan = toy.plan("ode", 3)
    a, w = torch.zeros(2, len(plan.parent)), torch.zeros(2, len(plan.parent))
    a[0, plan.leaves], w[0, plan.leaves] = torch.tensor([0.2, 9.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    w[1, plan.leaves] = 1.0
    chosen = objectives.best_leaf(plan, Credit(a, w, w))
    assert chosen.advantage.nonzero().tolist() == [[0, int(plan.leaves[2])]] and torch.equal(chosen.weight, chosen.advantage)


@pytest.mark.evidence("derived", "tree_rpo")
def test_tree_rpo_takes_the_matching_term_of_layertuning() -> None:
    objective = methods.tree_rpo(sft=0.1).objective
    assert isinstance(objective, objectives.Mixed) and objective.share == 0.1
    assert isinstance(methods.tree_rpo().objective, objectives.Clip)
    with pytest.raises(ValueError, match="has no KL"):
        methods.tree_rpo(sft=0.1, beta=0.1)


def test_a_mix_trains_in_the_loop_and_its_ratio_starts_at_1() -> None:
    done, _ = trained(
        toy.Policy(torch.float64, excited=True),
        objectives.mixed(objectives.clip(1e-2), objectives.matching(), 0.1),
        "tree",
        updates=2,
        move=False,
        exact=True,
    )
    assert done.first["ratio/max_abs"] == 0 and done.first["loss/matching"] > 0


# ------------------------------------------------------------------ choices and bad arguments
def test_choices_of_leaves() -> None:
    nan = math.nan
    r = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [nan, 1.0, 5.0, nan], [nan, nan, nan, 4.0]], dtype=torch.float64)
    assert credited(Best(), r).advantage.tolist() == [[0, 1, 1, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]
    assert credited(Best(1), r).weight.tolist() == [[0, 1, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]
    assert credited(Pairs(2), r).advantage.tolist() == [[-1, 1, 1, -1], [0] * 4, [0, -1, 1, 0], [0] * 4]
    assert credited(Pairs(), r).advantage.tolist() == [[0, 1, 0, -1], [0] * 4, [0, -1, 1, 0], [0] * 4]
    raw, soft = credited(Rewarded(), r), credited(Rewarded(2.0), r)
    assert raw.advantage.tolist() == r.nan_to_num(0).tolist() and raw.weight.tolist() == torch.isfinite(r).float().tolist()
    torch.testing.assert_close(soft.advantage.sum(1), torch.isfinite(r).sum(1).float())
    assert float(soft.advantage[0, 1] / soft.advantage[0, 0]) == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.awm(weighting="t3"), "weighting 't3' is unknown to AWM; use one of uniform, t, t2"),  # pyright: ignore
        (lambda: objectives.awm(order="sum"), "order 'sum' is unknown to AWM"),  # pyright: ignore
        (lambda: objectives.AWM(power=2.0), r"a power of 2 for AWM's weighting: give one in \(0, 1\]"),
        (lambda: objectives.AWM(clip=0), "both must be positive"),
        (lambda: objectives.nft(mode="some"), "mode 'some' is unknown to NFT"),  # pyright: ignore
        (lambda: objectives.nft(scale=0.0), "NFT with scale 0"),
        (lambda: objectives.dpo(0.0), "DPO with beta 0 prefers nothing"),
        (lambda: objectives.dgpo(clip=-1.0), "DGPO with beta 100 and clip -1"),
        (lambda: objectives.Band(0.5, 0.5), r"levels in \[0.5, 0.5\) with shift 1"),
        (lambda: objectives.mixed(objectives.clip(beta=0.1), objectives.matching(), 0.1), "has no KL; set both betas to 0"),
        (lambda: objectives.mixed(objectives.dpo(), objectives.matching(), 0.1), "dpo compares edges with each other"),  # pyright: ignore
        (lambda: objectives.mixed(objectives.clip(), objectives.matching(), 0.0), "a share of 0 of matching"),
        (lambda: methods.online_dpo(every=0), "replaced every 0 iterations: give 1 or more"),
        (lambda: methods.ramp(0.1, 1.0), "at most 1: give rate and start >= 0"),
        (lambda: Best(0), "the 0 best of a prompt"),
        (lambda: Pairs(0), "0 pairs a prompt"),
        (lambda: Rewarded(0.0), "a temperature of 0 for rewards"),
    ],
)
def test_bad_arguments_are_a_sentence(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # pyright: ignore[reportCallIssue]


def test_no_draws_is_a_sentence() -> None:
    _, ro, _ = rolled()
    with pytest.raises(ValueError, match="0 draws a leaf: give 1 or more"):
        objectives.nft(draws=0).queries(ro, credit_of(ro), NOISE)


def test_awm_asks_at_the_levels_it_was_published_with() -> None:
    """14 steps: neither the first nor the last two."""
    grid = torch.arange(1, 15, dtype=torch.float64) / 14
    levels = {objectives.AWM().levels(grid, i / 1000) for i in range(1000)}
    assert levels == set(grid[2:13].tolist())
