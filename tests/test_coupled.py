"""Losses that compare edges with each other, slice by slice as training takes them: the gradient of one batch, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy
from method_table import TABLE
from test_forward import SETS
from test_objectives import NOISE, credit_of, moved
from torch import Tensor

from flowrl import advantage, methods, objectives
from flowrl.collect import Collected
from flowrl.replay import Work, backward, form
from flowrl.samplers import Plan
from flowrl.sizes import Block, Sizes
from flowrl.types import Method, Objective, Queries
from flowrl.update import normalised
from flowrl.weights import Weights

RATIO: dict[str, Objective] = {
    "gspo": objectives.gspo(0.02, 0.03, beta=0.1),
    "gmpo": objectives.gmpo(0.02, beta=0.1),
    "reg": objectives.reg(beta=0.1),
    "disco": objectives.disco(limit=1e-6),
    "disco, by ratio": objectives.disco("ratio", None, limit=1e-6, beta=0.1),
    "neighbor": objectives.neighbor(2, 0.5, old=True),
}
"""Those that ask at recorded states; for re-noised leaves see test_forward."""


class Exact(toy.Policy):
    """The toy in float64 throughout."""

    def predict(self, x: Tensor, sigma: Tensor, cond: toy.Directions) -> Tensor:
        level = sigma[:, None].double()
        exact = x.double() * (2 * level - 1) / ((1 - level) ** 2 + level**2)
        return exact + self.network(torch.cat([x.double(), level, cond.angle.double()], 1))


def walked(policy: toy.Policy, name: str) -> tuple[Collected, list[Block], Queries]:
    """A record in slices of at most three rows, what is asked of it, and a policy that has moved on."""
    plan: Plan = toy.plan("chains")
    if name == "neighbor":
        plan = methods.TABLE["neighbor_grpo"](**TABLE["neighbor_grpo"].args).plan_at(0, policy.sigmas(toy.STEPS), 0)
    # a record is float32
    got, blocks = toy.collected(toy.Policy(torch.float64, excited=True), plan, sizes=Sizes(slice=3, batch=6))
    ro = got.rollout
    assert ro is not None
    moved(policy)
    q = normalised([RATIO[name].queries(ro, credit_of(ro), NOISE)], [[0] * len(ro.blocks)], 1, toy.WORLD)[0]
    assert q is not None and len(q.slices) > 8 and max(len(rows) for rows in q.slices) <= 3
    return got, blocks, q


@pytest.mark.parametrize("name", RATIO)
def test_slices_give_the_gradient_of_one_batch(name: str) -> None:
    objective, policy = RATIO[name], Exact(torch.float64, excited=True)
    assert not objective.separable
    method = Method(lambda iteration, sigmas, slot: toy.plan("chains"), advantage.Group(), objective, SETS)
    weights = Weights(policy, method.weights)
    got, blocks, q = walked(policy, name)
    ro = got.rollout
    assert ro is not None
    backward(policy, weights, method, Work(got, q, blocks), 0, NOISE, toy.WORLD)
    sliced = [p.grad.clone() for p in weights.parameters if p.grad is not None]
    policy.network.zero_grad()

    batch = form(replace(q, slices=[], block=[]), torch.arange(len(q.row_prompt)), ro, NOISE)
    mine = got.cond.take(batch.slot)
    u = {}
    for other in objective.needs:
        with torch.no_grad(), weights.using(other):
            u[other] = policy.predict(batch.x, batch.sigma, mine)  # pyright: ignore[reportArgumentType]
    u["current"] = policy.predict(batch.x, batch.sigma, mine)  # pyright: ignore[reportArgumentType]
    m = objective.measure(batch, u)
    assert m.dtype == torch.float64
    whole = torch.autograd.grad(objective.loss(batch, m).value, weights.parameters)
    largest = max(float(g.abs().max()) for g in whole)
    assert largest > 1e-6
    for one, other in zip(sliced, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * largest)


def test_every_coupled_objective_of_the_package_is_taken_slice_by_slice_somewhere() -> None:
    from test_forward import FORWARD

    tested = {type(o).__name__ + getattr(o, "name", "") for o in (*RATIO.values(), *FORWARD.values()) if not o.separable}
    used = {type(o).__name__ + getattr(o, "name", "") for make in methods.TABLE.values() if not (o := make().objective).separable}
    assert used <= tested and "AWM" in tested
