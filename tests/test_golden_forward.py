"""Forward-process objectives and their credit against the published systems' own numbers; AWM and DPO against their formulas."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from golden_reader import Case, close
from test_golden import cases
from torch import Tensor

from flowrl import methods, objectives
from flowrl.advantage import Best, Pairs, Rewarded
from flowrl.objectives.awm import Weighting
from flowrl.objectives.nft import Mode
from flowrl.rewards.base import Scores
from flowrl.samplers import chains, laws, schedules
from flowrl.types import Advantage, Batch, Credit, Outcome


def batch_of(count: int, advantage: Tensor, target: Tensor, sigma: Tensor | None = None) -> Batch:
    """Re-noised rows of one prompt each, weighed alike."""
    at, one = torch.arange(count), torch.ones(count, dtype=torch.float64)
    return Batch(
        x=torch.zeros_like(target),
        sigma=one if sigma is None else sigma,
        slot=at,
        row=at,
        a=one,
        b=one,
        s=one,
        advantage=advantage,
        weight=one / count,
        kl_weight=one / count,
        delta=one,
        x0=torch.zeros_like(target),
        target=target,
        group=at,
        node=at,
        draw=torch.zeros_like(at),
    )


@pytest.mark.parametrize("kind", ["sft", "rwr"])
@pytest.mark.parametrize("case", cases("obj_sft_rwr"))
def test_matching_is_flow_grpos_sft_and_rwr(case: Case, kind: str) -> None:
    u = case["v"].clone().requires_grad_()
    batch = batch_of(len(u), case[f"{kind}_adv"], case["noise"] - case["x0"])
    objective = objectives.matching()
    loss = objective.loss(batch, objective.measure(batch, {"current": u})).value
    # theirs casts errors to float32
    torch.testing.assert_close(loss, case[f"loss_{kind}"], rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(loss, u)[0]
    torch.testing.assert_close(gradient, case[f"grad_{kind}"], rtol=0, atol=1e-6 * float(case[f"grad_{kind}"].abs().max()))


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("case", cases("adv_nft_probability"))
def test_the_probability_of_a_leaf_is_diffusionnfts(case: Case, mode: Mode) -> None:
    got = objectives.probability(case["adv_in"], case.args["adv_clip_max"], mode)
    close(got, case[f"nv_prob_{mode}"])
    close(got, case[f"prob_{mode}"])


@pytest.mark.parametrize(
    ("kind", "args"),
    [(0, {"decay_rate": 0.0}), (1, {}), (2, {"decay_rate": 0.0075, "decay_max": 0.999, "decay_start": 75})],
)
@pytest.mark.parametrize("case", cases("obj_diffusion_nft"))
def test_every_decay_of_the_old_policy_is_diffusionnfts(case: Case, kind: int, args: dict[str, float]) -> None:
    decay = methods.diffusion_nft(**args).weights["old"].decay  # pyright: ignore[reportArgumentType]
    assert decay is not None
    close(torch.tensor([decay(int(k)) for k in case["decay_steps"]], dtype=torch.float64), case[f"decay_type{kind}"])


def credited(advantage: Advantage, r: Tensor) -> Credit:
    """Credit of rewards [P, L], NaN where a leaf could not be scored."""
    plan = chains(schedules.sd3(4), laws.ode(), (), r.shape[1])
    scores = {"reward": Scores(r, torch.isfinite(r))}
    outcome = Outcome(plan, scores, {"reward": 1.0}, [""] * len(r), [{}] * len(r), torch.arange(len(r)), 0)
    credit = advantage.apply(outcome, advantage.init())[0]
    return Credit(*(t[:, plan.leaves] for t in (credit.advantage, credit.weight, credit.kl_weight)))


@pytest.mark.parametrize(("kind", "advantage"), [("sft", Best()), ("dpo", Pairs()), ("rwr", Rewarded())])
@pytest.mark.parametrize("case", cases("adv_flow_grpo_tracker"))
def test_choices_are_flow_grpos_tracker(case: Case, kind: str, advantage: Advantage) -> None:
    compared = 0
    for prompt in case["prompt_id"].unique():
        mine = case["prompt_id"] == prompt
        r = case["rewards"][mine][None]
        if kind == "rwr" or (len(r[0]) > 1 and float(r.max()) > float(r.min())):
            close(credited(advantage, r).advantage[0], case[f"adv_{kind}"][mine])
            compared += 1
    assert compared > 1


# ------------------------------------------------------------------ no peer numbers: their formulas, written out
def numbers(seed: int) -> tuple[Tensor, ...]:
    """u, u_ref, u_recent, target [8, 2, 3], advantage and sigma [8]; float64."""
    draw = torch.Generator().manual_seed(seed)
    four = torch.randn(4, 8, 2, 3, dtype=torch.float64, generator=draw)
    return *four, 4 * torch.randn(8, dtype=torch.float64, generator=draw), torch.rand(8, dtype=torch.float64, generator=draw)


def minus_likelihood(d: float, t: float, weighting: str) -> float:
    return {
        "uniform": d,
        "t": d * t,
        "t2": d * t * t,
        "huber": (math.sqrt(d + 1e-10) - 1e-5) * t,
        "ghuber": ((d + 1e-10) ** 0.25 - 1e-10**0.25) * t / 0.25,
    }[weighting]


@pytest.mark.parametrize("elbo", [False, True])
@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_awm_on_policy_is_its_formula(weighting: Weighting, elbo: bool) -> None:
    """Value and gradient, rows of a micro-batch one by one: -A' + KLs, and -A' grad l / rows + grad KLs."""
    now, ref, recent, target, advantage, sigma = numbers(3)
    objective = objectives.AWM(weighting, beta=0.3, pull=0.7, elbo=elbo)
    batch, u = batch_of(8, advantage, target, sigma), now.clone().requires_grad_()
    loss = objective.loss(batch, objective.measure(batch, {"current": u, "reference": ref, "recent": recent})).value
    value = torch.zeros((), dtype=torch.float64)
    direct = now.clone().requires_grad_()
    for i in range(8):
        a, t = max(-5.0, min(5.0, float(advantage[i]))) / 5, float(sigma[i])
        kl, near = ((direct[i] - other[i]).square().mean() for other in (ref, recent))
        both = (0.3 * kl + 0.7 * near) / (2 * 0.49 * t / (1 - min(t, 0.99)) if elbo else 1)
        d = (direct[i] - target[i]).square().mean()
        slope = (
            minus_likelihood(float(d.detach()) + 1e-6, t, weighting) - minus_likelihood(float(d.detach()) - 1e-6, t, weighting)
        ) / 2e-6
        value = value + (-a + both + a * slope * (d - d.detach())) / 8
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(v, w)[0] for v, w in ((loss, u), (value, direct)))
    # the slope of l is a difference quotient here
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
    likely = objectives.likelihood(torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.3]), weighting)
    assert float(likely) == pytest.approx(-minus_likelihood(0.4, float(torch.tensor(0.3)), weighting), rel=1e-12)


@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_dpo_is_its_formula(beta: float) -> None:
    now, ref, _, target, advantage, _ = numbers(5)
    winners, losers = [0, 3, 5], [6, 1, 2]
    advantage = torch.zeros(8, dtype=torch.float64)
    advantage[winners], advantage[losers] = 1, -1
    group = torch.tensor([0, 1, 2, 1, 9, 2, 0, 8])
    objective = objectives.dpo(beta)
    batch = batch_of(8, advantage, target)
    batch = Batch(**{**vars(batch), "group": group, "weight": (advantage != 0).double() / 6})
    u = now.clone().requires_grad_()
    loss = objective.loss(batch, objective.measure(batch, {"current": u, "reference": ref})).value
    direct, value = now.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for w, l in zip(winners, losers, strict=True):
        error = [(v[w] - target[w]).square().mean() - (v[l] - target[l]).square().mean() for v in (direct, ref)]
        value = value - torch.sigmoid(-beta / 2 * (error[0] - error[1])).log() / 3
    torch.testing.assert_close(loss, value, rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, u)[0], torch.autograd.grad(value, direct)[0], rtol=1e-9, atol=1e-12)
