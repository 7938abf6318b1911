"""Rollouts: one state, one prediction, one record, however the work is cut; a replay of the recorded calls has the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import plans
from torch import Tensor

from flowrl.kernels import log_ratio, step
from flowrl.samplers import Plan, Rollout, chains, comb, laws, log_prob, rollout, schedules, solvers, tree, units
from flowrl.samplers.noise import Source

quick = settings(deadline=None, max_examples=25)  # a shared machine may stall at any moment
SHAPE = (2, 3)
SOURCE = Source(3, 1)


def noise(slot: int, node: int) -> Tensor:
    return SOURCE.normal(SHAPE, slot, node)


class RowLocal:
    """A network whose rows cannot see each other, that counts its calls and their rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.asked: list[tuple[bytes, float, int]] = []

    def __call__(self, x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        self.rows.append(len(x))
        self.asked += [(row.numpy().tobytes(), float(s), int(p)) for row, s, p in zip(x, sigma, slot, strict=True)]
        level = sigma.view(-1, 1, 1)
        return torch.sin(3 * x + level) + 0.3 * x + 0.1 * slot.view(-1, 1, 1)


def walked(plan: Plan, prompts: int | Tensor = 2, **how: object) -> Rollout:
    return rollout(plan, RowLocal(), prompts, SHAPE, noise, **how)  # pyright: ignore[reportArgumentType]


def same(one: Rollout, other: Rollout) -> bool:
    return all(torch.equal(getattr(one, k), getattr(other, k)) for k in ("x", "u", "log_prob", "owned"))


@quick
@given(plans(), st.integers(1, 3), st.data())
def test_states_do_not_depend_on_how_work_is_cut(plan: Plan, prompts: int, data: st.DataObject) -> None:
    whole = walked(plan, prompts)
    every = units(plan, prompts)
    order = torch.tensor(data.draw(st.permutations(range(len(every)))))
    cuts = sorted(data.draw(st.lists(st.integers(1, max(1, len(every) - 1)), max_size=3, unique=True)))
    blocks = [b for b in torch.tensor_split(every[order], cuts) if len(b)]
    cut = walked(plan, prompts, blocks=blocks, slice=data.draw(st.integers(1, 5)))
    assert same(whole, cut)
    assert cut.owned.all()


@pytest.mark.parametrize("solver", [solvers.heun, solvers.dpm(2), solvers.dpm(3, "heun")], ids=str)
@settings(deadline=None, max_examples=10)
@given(plans(), st.integers(1, 4), st.integers(1, 3))
def test_solvers_cost_what_the_plan_says_and_do_not_see_the_cut(solver: solvers.Solver, plan: Plan, size: int, batch: int) -> None:
    network = RowLocal()
    whole = rollout(plan, network, 2, SHAPE, noise, solver)
    assert sum(network.rows) == 2 * plan.nfe(solver)
    network = RowLocal()
    cut = rollout(plan, network, 2, SHAPE, noise, solver, blocks=list(units(plan, 2).split(3)), slice=size, batch=batch)
    assert same(whole, cut) and max(network.rows) <= max(size, batch)


@quick
@given(plans(), st.integers(1, 4))
def test_quiet_calls_are_no_longer_than_their_batch(plan: Plan, batch: int) -> None:
    network = RowLocal()
    cut = rollout(plan, network, 2, SHAPE, noise, slice=2, batch=batch)
    assert max(network.rows) <= max(2, batch) and same(cut, walked(plan))


@pytest.mark.parametrize("name", ["slice", "batch"])
def test_a_call_without_rows_is_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}, the rows of a network call, is 0"):
        walked(PLANS["chains"](), **{name: 0})


def test_a_network_or_noise_of_another_shape_is_a_sentence() -> None:
    plan = PLANS["chains"]()
    with pytest.raises(ValueError, match=r"given states \[6, 2, 3\] and returned \[6, 2\]"):
        rollout(plan, lambda x, sigma, slot: x[..., 0], 2, SHAPE, noise)
    with pytest.raises(ValueError, match=r"returned \[4\] for latents of \[2, 3\]"):
        rollout(plan, RowLocal(), 2, SHAPE, lambda slot, node: torch.zeros(4))


def test_mixed_roots_are_neighbours() -> None:
    """Neighbor-GRPO: sqrt(1 - s^2) shared + s own, per prompt; each alone is N(0, I)."""
    ro = rollout(chains(schedules.linear_shift(2), laws.ode(), (), 4, mix=0.3), RowLocal(), 2, SHAPE, noise)
    network = RowLocal()
    rollout(ro.plan, network, 2, SHAPE, noise)
    starts = {(p, r): (1 - 0.3**2) ** 0.5 * noise(p, -1) + 0.3 * noise(p, r) for p in range(2) for r in ro.plan.roots.tolist()}
    seen = [torch.frombuffer(bytearray(state), dtype=torch.float32).view(SHAPE) for state, sigma, _ in network.asked if sigma == 1]
    assert len(seen) == 8
    for got, expected in zip(seen, starts.values(), strict=True):
        torch.testing.assert_close(got, expected)


def test_states_may_lie_elsewhere_than_they_are_computed() -> None:
    """The record alone: other states live as long as their wave."""
    plan = comb(schedules.linear_shift(8), laws.flow_sde(0.7), [1], 2)
    ro = walked(plan, storage="cpu")
    assert ro.x.shape[1] == len(plan.kept) == 1 + 2 + 3 < len(plan.parent)


@quick
@given(plans())
def test_a_prompt_does_not_see_the_others(plan: Plan) -> None:
    three = walked(plan, torch.tensor([4, 7, 9]))
    alone = walked(plan, torch.tensor([7]))
    assert (
        torch.equal(three.x[1:2], alone.x)
        and torch.equal(three.u[1:2], alone.u)
        and torch.equal(three.log_prob[1:2], alone.log_prob)
    )


@quick
@given(plans(), st.integers(1, 4))
def test_calls_are_those_the_plan_promises(plan: Plan, size: int) -> None:
    network = RowLocal()
    ro = rollout(plan, network, 2, SHAPE, noise, slice=size)
    assert sum(network.rows) == 2 * plan.nfe()
    assert len(set(network.asked)) == len(network.asked)  # no state is asked twice: children share its prediction
    assert all(len(call.row) <= size for call in ro.slices)
    assert sum(len(call.row) for call in ro.slices) == 2 * len(plan.rows)


def drawn(plan: Plan, slot: int, node: int) -> Tensor:
    """A node's noise, part of it its siblings' where the plan mixes."""
    own = 1.0 if plan.mix is None else float(plan.mix[node])
    return (
        noise(slot, node) if own == 1 else (1 - own**2) ** 0.5 * noise(slot, -2 - int(plan.parent[node])) + own * noise(slot, node)
    )


@quick
@given(plans())
def test_a_recorded_step_is_its_formula_and_its_density(plan: Plan) -> None:
    ro = walked(plan)
    if not len(plan.edges):
        assert ro.log_prob.shape == (2, 0) and not ro.slices
        return
    a, b, s = plan.coefficients(plan.edges)
    for p in range(2):
        parents = ro.states(plan.parent[plan.edges])[p]
        u = ro.u[p, torch.searchsorted(plan.rows, plan.parent[plan.edges])]
        z = torch.stack([drawn(plan, p, int(n)) for n in plan.edges])
        torch.testing.assert_close(ro.states(plan.edges)[p], step(parents, u, a, b, s, z), rtol=0, atol=0)
        torch.testing.assert_close(
            ro.log_prob[p], log_prob(ro.states(plan.edges)[p], step(parents, u, a, b, s), s), rtol=1e-6, atol=1e-6
        )


def test_a_leaf_is_what_the_ode_gives() -> None:
    grid = schedules.linear_shift(5)
    ro = walked(chains(grid, laws.ode(), (), 2))
    for p in range(2):
        for i, root in enumerate(ro.plan.roots.tolist()):
            x = noise(p, root)
            for at, to in itertools.pairwise(grid):
                x = x + (to - at).float() * RowLocal()(x[None], at.float()[None], torch.tensor([p]))[0]
            torch.testing.assert_close(ro.states(ro.plan.leaves)[p, i], x)


PLANS: dict[str, Callable[[], Plan]] = {
    "chains": lambda: chains(schedules.sd3(5), laws.flow_sde(0.7), range(4), 3),
    "tree": lambda: tree(schedules.linear_shift(5, 3.0), laws.dance_sde(0.3), range(5), {0: 3, 2: 2}),
    "comb": lambda: comb(schedules.linear_shift(5), laws.cps(0.5), [0, 2, 3], 3, strides=(1, 2)),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_stored_is_what_is_scored(name: str) -> None:
    plan = PLANS[name]()
    network = RowLocal()
    ro = rollout(plan, network, 2, SHAPE, noise, dtype=torch.bfloat16)
    assert ro.x.dtype == torch.bfloat16
    a, b, s = plan.coefficients(plan.edges)
    asked = {state for state, _, _ in network.asked}
    for p in range(2):
        x, x_next = ro.states(plan.parent[plan.edges])[p].float(), ro.states(plan.edges)[p].float()
        assert all(row.numpy().tobytes() in asked for row in x)  # the network saw the rounded state
        u = ro.u[p, torch.searchsorted(plan.rows, plan.parent[plan.edges])]
        assert torch.equal(ro.log_prob[p], log_prob(x_next, step(x, u, a.float(), b.float(), s.float()), s.float()))
    exact = walked(plan)
    assert not torch.equal(exact.x, ro.x.float())  # rounding does happen here
    for state, _, _ in network.asked:
        row = torch.frombuffer(bytearray(state), dtype=torch.float32)
        assert torch.equal(row.to(torch.bfloat16).float(), row)


def test_slices_never_mix_lanes_or_waves() -> None:
    plan = PLANS["chains"]()
    calls: list[Tensor] = []

    def network(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        calls.append(sigma)
        return x

    ro = rollout(plan, network, 3, SHAPE, noise, slice=4, lane=lambda sigma: int(sigma > 0.5))
    assert all(len(c.unique()) == 1 for c in calls)
    assert all(float(plan.sigma[plan.rows[c.row]].unique()) == c.sigma for c in ro.slices)
    comb_calls = rollout(PLANS["comb"](), network, 3, SHAPE, noise, slice=4, lane=lambda sigma: int(sigma > 0.5)).slices
    assert comb_calls and all(
        len({float(s) > 0.5 for s in PLANS["comb"]().sigma[PLANS["comb"]().rows[c.row]]}) == 1 for c in comb_calls
    )


def test_unowned_units_hold_zeros() -> None:
    plan = PLANS["chains"]()
    ro = walked(plan, 2, blocks=[units(plan, 2)[:2]])
    assert ro.owned.any() and not ro.owned[1].any()
    assert (ro.x[1] == 0).all() and (ro.log_prob[1] == 0).all() and (ro.u[1] == 0).all()


def test_a_rollout_of_nothing_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="a rollout of 0 prompts"):
        walked(PLANS["chains"](), 0)


# ------------------------------------------------------------------ replay
class Block(torch.nn.Module):
    """A transformer block over the dims of a latent, written out: torch's own has other kernels with a graph than without."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.out = torch.nn.Linear(SHAPE[1] + 2, width), torch.nn.Linear(width, SHAPE[1])
            self.qkv, self.norm = torch.nn.Linear(width, 3 * width), torch.nn.LayerNorm(width)

    def forward(self, x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        extra = torch.stack([sigma, slot.float() / 4], 1)[:, None].expand(-1, x.shape[1], -1)
        h = self.into(torch.cat([x, extra], 2).to(self.out.weight.dtype))
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        return self.out(h + (q @ k.mT).softmax(-1) @ v).float()


def replayed(ro: Rollout, network: Callable[[Tensor, Tensor, Tensor], Tensor], calls: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Log-ratios [P, e] of predictions made in these calls (prompt, row)."""
    plan = ro.plan
    u = torch.full_like(ro.u, torch.nan)
    for prompt, row in calls:
        states = ro.x[prompt, torch.searchsorted(plan.kept, plan.rows[row])].float()
        u[prompt, row] = network(states, plan.sigma[plan.rows[row]].float(), ro.slots[prompt])
    a, b, s = (t.float() for t in plan.coefficients(plan.edges, ro.path))
    at = torch.searchsorted(plan.rows, plan.parent[plan.edges])
    return torch.stack(
        [
            log_ratio(
                u[p, at], ro.u[p, at], ro.states(plan.parent[plan.edges])[p].float(), ro.states(plan.edges)[p].float(), a, b, s
            )
            for p in range(len(ro.slots))
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLANS)
def test_the_ratio_is_exactly_1_when_recorded_calls_are_replayed(name: str, dtype: torch.dtype) -> None:
    network = Block().to(dtype).eval()
    plan = PLANS[name]()
    ro = rollout(plan, network, 4, SHAPE, noise, slice=4, blocks=list(units(plan, 4).split(5)), dtype=dtype)
    ratio = replayed(ro, network, [(c.prompt, c.row) for c in ro.slices])
    assert (ratio == 0).all()
    with torch.no_grad():  # the same rows, one of them with another prediction
        network.out.bias += 1e-2
        assert (replayed(ro, network, [(c.prompt, c.row) for c in ro.slices]) != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_cut_anew_may_differ(dtype: torch.dtype) -> None:
    """The control: a network whose bits depend on the number of rows of its call, as those of fast kernels do."""
    block = Block().to(dtype).eval()

    def network(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        return block(x, sigma, slot) * (1 + 1e-6 * len(x))

    plan = PLANS["chains"]()
    ro = rollout(plan, network, 4, SHAPE, noise, slice=5)
    assert (replayed(ro, network, [(c.prompt, c.row) for c in ro.slices]) == 0).all()
    prompt, row = torch.cat([c.prompt for c in ro.slices]), torch.cat([c.row for c in ro.slices])
    assert (replayed(ro, network, list(zip(prompt.split(3), row.split(3), strict=True))) != 0).any()


@pytest.mark.parametrize("kind", ["chains", "tree", "comb"])
def test_the_policys_own_record_is_replayed_exactly(kind: str) -> None:
    policy = toy.Policy(excited=True)
    got, _ = toy.collected(policy, toy.plan(kind))  # pyright: ignore[reportArgumentType]
    ro = got.rollout
    assert ro is not None

    def network(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        return policy.predict(x, sigma, got.cond.take(slot))  # pyright: ignore[reportArgumentType]

    assert (replayed(ro, network, [(c.prompt, c.row) for c in ro.slices]) == 0).all()
