"""Learned noise: the std comes from a head, carries gradient, is replayed with current weights, and is saved with the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tinyrun
import torch
import toy
from torch import Tensor

from flowrl import advantage, export, methods, objectives
from flowrl.models import load_policy
from flowrl.models.noise_head import HEAD_FILE, NoiseHead
from flowrl.recipe import MethodSpec, PolicySpec
from flowrl.recipes.run import train
from flowrl.samplers import chains, kl, laws, log_prob, rollout, schedules
from flowrl.samplers.noise import Source
from flowrl.types import Batch

LAW = laws.flow_noise(0.1, 0.4)
SPEC = PolicySpec(dtype="float32", max_sequence_length=16, noise_head=True)


def excited(head: NoiseHead) -> NoiseHead:
    with torch.no_grad():
        head.outer.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return head


def test_a_head_starts_in_the_middle_whatever_the_shape() -> None:
    for shape in ((4, 8, 8), (4, 3, 8, 8), (4,)):
        head = NoiseHead(4)
        x, u = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        raw = head(x, u, torch.tensor([0.1, 0.5, 1.0]))
        assert raw.shape == x.shape and (raw == 0).all()
        moved = excited(head)(x, u, torch.tensor([0.1, 0.5, 1.0]))
        assert float(moved.detach().std()) > 0.01


def test_a_head_leaves_the_mean_alone() -> None:
    x, u = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    u.requires_grad_()
    excited(NoiseHead(4))(x, u, torch.full((3,), 0.5)).sum().backward()
    assert u.grad is None


def test_the_rollout_draws_with_the_heads_std_and_scores_with_it() -> None:
    head, source, shape = excited(NoiseHead(2, width=8)), Source(0, 0), (2, 3)
    plan = chains(schedules.linear_shift(4), LAW, [0, 1], 2)

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x, head(x, 0.5 * x, sigma)

    ro = rollout(plan, predict, 2, shape, lambda slot, node: source.normal(shape, slot, node))
    assert ro.u.shape == (2, len(plan.rows), 2, *shape)
    for p in range(2):
        for e, child in enumerate(plan.edges.tolist()):
            parent = int(plan.parent[child])
            x, x_next = ro.states(torch.tensor([parent]))[p], ro.states(torch.tensor([child]))[p]
            level = plan.sigma[parent].float()[None]
            s = LAW.std(head(x, 0.5 * x, level))
            mean = x + (plan.sigma[child] - plan.sigma[parent]).float() * 0.5 * x
            torch.testing.assert_close(x_next, mean + s * source.normal(shape, p, child))
            torch.testing.assert_close(ro.log_prob[p, e][None], log_prob(x_next, mean, s), rtol=1e-5, atol=1e-5)


def test_a_plan_of_learned_noise_needs_a_head() -> None:
    with pytest.raises(ValueError, match="has no noise head; set policy.noise_head to true"):
        rollout(chains(schedules.linear_shift(4), LAW, [0]), lambda x, sigma, slot: x, 1, (2,), lambda slot, node: torch.zeros(2))


def test_a_head_is_ignored_where_noise_is_not_learned() -> None:
    plan, source = chains(schedules.linear_shift(4), laws.flow_sde(0.7), [0], 2), Source(0, 0)
    one, other = (
        rollout(plan, f, 1, (2,), lambda slot, node: source.normal((2,), slot, node))
        for f in (lambda x, sigma, slot: 0.3 * x, lambda x, sigma, slot: (0.3 * x, x))
    )
    assert torch.equal(one.x, other.x) and torch.equal(one.u, other.u)


def batch(u_old: Tensor, learned: laws.FlowNoise | None = LAW) -> tuple[Batch, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x, x_next = torch.randn(2, 4, 3, dtype=torch.float64, generator=draw)
    one = torch.full((4,), 0.25, dtype=torch.float64)
    a, b = one * 4, -one
    rows = torch.arange(4)
    return Batch(x, one, rows, rows, a, b, one, one, one, one, one, x_next, u_old, learned=learned), x_next


def test_the_ratio_is_that_of_two_gaussians_with_gradient_through_both() -> None:
    draw = torch.Generator().manual_seed(0)
    old, now, ref = torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=draw)
    q, x_next = batch(old)
    now.requires_grad_()
    m = objectives.clip(0.1, beta=0.5).measure(q, {"current": now, "reference": ref})

    def density(u: Tensor) -> Tensor:
        return log_prob(x_next, q.x - 0.25 * u[:, 0], LAW.std(u[:, 1]))

    torch.testing.assert_close(m[:, 0], density(now) - density(old))
    expected = kl(q.x - 0.25 * now[:, 0], q.x - 0.25 * ref[:, 0], LAW.std(now[:, 1]), LAW.std(ref[:, 1]))
    torch.testing.assert_close(m[:, 1], expected)
    gradient = torch.autograd.grad(m[:, 0].sum(), now)[0]
    assert (gradient[:, 0] != 0).all() and (gradient[:, 1] != 0).all()
    assert torch.autograd.gradcheck(lambda u: objectives.clip(0.1).measure(q, {"current": u})[:, 0], (now,), eps=1e-6, atol=1e-7)
    assert (objectives.clip(0.1).measure(q, {"current": old})[:, 0] == 0).all()


@pytest.mark.parametrize("objective", [objectives.guard(0.1), objectives.dppo(0.1)])
def test_objectives_without_a_form_for_it_say_so(objective: objectives.Guard) -> None:
    policy = toy.Policy(noisy=True)
    plan = chains(schedules.linear_shift(toy.STEPS), LAW, [0, 1], 3)
    got, _ = toy.collected(policy, plan)  # pyright: ignore[reportArgumentType]
    assert got.rollout is not None
    credit, _ = advantage.Group().apply(got.outcome, {})
    with pytest.raises(ValueError, match="has no form for learned noise"):
        objective.queries(got.rollout, credit, Source(0, 0))


def test_a_policy_trains_its_head_and_saves_it_with_the_adapter(tmp_path: Path) -> None:
    pipe = tiny.sd3_pipeline()
    policy = load_policy(pipe, spec=SPEC)
    names = [name for name, _ in policy.trainable()]
    assert sum(name.startswith("noise_head.") for name in names) == 4
    assert policy.head is not None
    excited(policy.head)
    cond = policy.encode(["a red circle"]).take(torch.tensor([0, 0]))
    x = torch.randn(2, *policy.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 0.9])
    u, raw = policy.predict(x, sigma, cond)
    assert u.shape == raw.shape == x.shape and raw.requires_grad and (raw != 0).any()
    with policy.reference(), torch.no_grad():
        assert (policy.predict(x, sigma, cond)[1] == 0).all()
    export.save(policy, tmp_path / "lora")
    assert (tmp_path / "lora" / HEAD_FILE).is_file()
    other = load_policy(tiny.sd3_pipeline(), spec=SPEC)
    export.load_lora(other, tmp_path / "lora")
    assert torch.equal(other.predict(x, sigma, cond)[1], raw)
    plain = tiny.sd3_pipeline()
    plain.load_lora_weights(str(tmp_path / "lora"))  # diffusers finds its own file beside the head's
    assert plain.get_list_adapters()["transformer"]
    (tmp_path / "lora" / HEAD_FILE).unlink()
    with pytest.raises(ValueError, match="holds no noise head"):
        export.load_lora(other, tmp_path / "lora")


def test_the_method_has_one_std_range() -> None:
    plan = methods.flow_noise(group=4).plan_at(0, schedules.sd3(10), 0)
    assert plan.learned == laws.flow_noise(0.08, 0.16) and len(plan.rows) == 4 * 9


def test_a_run_of_learned_noise_starts_at_ratio_1_and_saves_its_head(tmp_path: Path) -> None:
    spec = MethodSpec("flow_noise", {"updates": 1, "beta": 0.1})
    made = tinyrun.recipe(tmp_path / "run", {"run.iterations": 2, "evaluate.every": 0, "policy.noise_head": True}, spec)
    train(made, rewards={"bright": tinyrun.bright})
    rows = tinyrun.rows(tmp_path / "run")
    assert [row["ratio/first_max_abs"] for row in rows] == [0.0, 0.0] and rows[1]["kl/mean"] > 0
    assert (tmp_path / "run" / "lora" / HEAD_FILE).is_file()


def test_a_run_of_learned_noise_without_a_head_says_what_to_set(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"run.iterations": 1, "evaluate.every": 0}, MethodSpec("flow_noise", {"updates": 1}))
    with pytest.raises(ValueError, match="set policy.noise_head to true"):
        train(made, rewards={"bright": tinyrun.bright})
