"""Objectives of the ratio family against the numbers of the systems they come from: values and gradients, float64 to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from golden_reader import Case, load
from torch import Tensor

from flowrl import advantage, objectives
from flowrl.methods import warming
from flowrl.objectives import pools
from flowrl.rewards.adversarial import hinge, two_way
from flowrl.rewards.base import Scores
from flowrl.samplers import chains, kl, laws, schedules
from flowrl.types import Batch, Credit, Objective, Outcome, WeightSet
from flowrl.weights import Weights

DOUBLE = {"": (torch.float64, 1e-9), "_f32": (torch.float32, 2e-4)}


def only(name: str) -> Case:
    return load(name).cases[0]


def same(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    """Equal relative to the largest entry."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()), check_dtype=False)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


# ------------------------------------------------------------------ a denoising step, by its means
def steps(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Batch, dict[str, Tensor]]:
    """Their mean is our prediction: a = 0, b = 1."""
    count = len(case["adv"])
    one = torch.full((count,), 1 / count, dtype=dtype)
    mean = case["mu"].to(dtype).requires_grad_()
    batch = Batch(
        x=torch.zeros_like(mean),
        sigma=one,
        slot=torch.arange(count),
        row=torch.arange(count),
        a=torch.zeros(count, dtype=dtype),
        b=torch.ones(count, dtype=dtype),
        s=(case["std_dev_t"] * case["dt"].abs().sqrt()).to(dtype).expand(count),
        advantage=case["adv"].to(dtype).clamp(-5, 5),
        weight=one,
        kl_weight=one,
        delta=case["dt"].abs().to(dtype).expand(count),
        x_next=case["x"].to(dtype),
        u_old=case["mu_old"].to(dtype),
    )
    return batch, {"current": mean, "reference": case["mu_ref"].to(dtype)}


def loss_of(objective: Objective, batch: Batch, u: dict[str, Tensor]) -> Tensor:
    return objective.loss(batch, objective.measure(batch, u)).value


@pytest.mark.parametrize("suffix", DOUBLE)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_clip_is_flow_grpos_surrogate(beta: float, suffix: str) -> None:
    case, (dtype, rtol) = only("obj_flow_grpo_loss"), DOUBLE[suffix]
    batch, u = steps(case, dtype)
    objective = objectives.clip(case.args["clip_range"], beta=beta, compat="flow_grpo@9745241")
    m = objective.measure(batch, u)
    same(m[:, 0].exp(), case[f"ratio{suffix}"], rtol)
    loss = objective.loss(batch, m)
    same(loss.metrics["loss/policy"], case[f"policy_loss{suffix}"], rtol)
    same(loss.value, case[f"loss_b{beta}{suffix}"], rtol)
    same(gradient(loss.value, u["current"]), case[f"grad_mu_b{beta}{suffix}"], rtol)
    if beta:
        same(loss.metrics["kl/mean"], case[f"kl{suffix}"], rtol)


@pytest.mark.parametrize("suffix", DOUBLE)
def test_guard_in_its_three_implementations(suffix: str) -> None:
    """verl-omni's is ours; Flow-Factory lacks the division by sigma - sigma'; the release takes one drift for the batch."""
    case, (dtype, rtol) = only("obj_grpo_guard"), DOUBLE[suffix]
    batch, u = steps(case, dtype)
    objective = objectives.guard(case.args["clip_range"])
    m = objective.measure(batch, u)
    same(m[:, 0].exp(), case[f"ratio_flow_factory{suffix}"], rtol)
    loss = objective.loss(batch, m).value
    same(loss, case[f"loss_omni{suffix}"], rtol)
    same(gradient(loss, u["current"]), case[f"grad_mu_omni{suffix}"], rtol)
    same(gradient(loss, u["current"]) * batch.delta[0], case[f"grad_mu_flow_factory{suffix}"], rtol)
    plain = objectives.clip(1e-3).measure(batch, u)[:, 0]
    drift = objectives.surrogate_kl(u["current"], case["mu_old"].to(dtype), batch.b, batch.s)
    release = objectives.guarded(plain, drift, batch.s, compat="flow_grpo@9745241")
    same(drift.mean(), case[f"bias_release{suffix}"], rtol)
    same(release.exp(), case[f"ratio_release{suffix}"], rtol)
    loss = objectives.clipped(release, batch.advantage, case.args["clip_range"]).mean() / batch.delta[0]
    same(loss, case[f"loss_release{suffix}"], rtol)
    same(gradient(loss, u["current"]), case[f"grad_mu_release{suffix}"], rtol)


def test_dppo_is_flow_dppos_mask() -> None:
    case = only("obj_flow_dppo_mask")
    batch, u = steps(case)
    objective = objectives.dppo(case.args["kl_mask_threshold"])
    loss = objective.loss(batch, objective.measure(batch, u))
    same(loss.metrics["clip/fraction"], case["masked_fraction"])
    same(objective.measure(batch, u)[:, 1], case["kl"])
    ratio = (case["log_prob"] - case["log_prob_old"]).requires_grad_()
    credit = case["adv"]  # not clamped there
    dropped = objectives.outward(ratio.detach(), credit, case["kl"], case.args["kl_mask_threshold"])
    value = torch.where(dropped, 0, -credit * ratio.exp()).mean()
    same(value, case["loss"])
    same(gradient(value, ratio), case["grad_log_prob"])


def test_the_kl_of_a_step_is_exact_and_theirs_lack_the_step() -> None:
    case = only("obj_gaussian_kl")
    batch, u = steps(case)
    now, ref = u["current"].detach(), u["reference"]
    same(objectives.surrogate_kl(now, ref, batch.b, batch.s), case["exact_mean"])
    same(kl(now, ref, batch.s) * now[0].numel(), case["exact_sum"])
    own, other = (case["std_pair"][i].expand(len(now)) for i in range(2))
    same(kl(now, ref, own, other) * now[0].numel(), case["exact_general_sum"])
    theirs = objectives.clip(beta=1.0, compat="flow_grpo@9745241").measure(batch, u)[:, 1]
    same(theirs.mean(), case["flow_grpo"], 1e-7)  # they average in float32
    same(objectives.clip(beta=1.0).measure(batch, u)[:, 1].mean(), case["pref_grpo"], 2e-6)


# ------------------------------------------------------------------ trajectories of steps, by their log-probs
PER_TOKEN = "per token"
PER_SEQUENCE = "per sequence"
LENGTH = "over a length"


def weights(mask: Tensor, by: str = PER_TOKEN, length: float = 0.0) -> Tensor:
    """How their aggregations weigh an entry."""
    if by == PER_TOKEN:
        return mask / mask.sum()
    if by == LENGTH:
        return mask / length
    return mask / len(mask) / (length or mask.sum(1, keepdim=True))


EDGE: dict[str, tuple[Callable[..., Tensor], str, float]] = {
    "ppo_dualclip": (partial(objectives.clipped, low=0.2, dual=3.0), PER_TOKEN, 0),
    "ppo_nodual": (partial(objectives.clipped, low=0.2), PER_TOKEN, 0),
    "dapo_cliphigher": (partial(objectives.clipped, low=0.2, high=0.28, dual=10.0), PER_TOKEN, 0),
    "ngrpo_asym": (partial(objectives.clipped, low=0.16, high=0.24, dual=10.0), PER_TOKEN, 0),
    "ppo_seqmean": (partial(objectives.clipped, low=0.2, dual=3.0), PER_SEQUENCE, 0),
    "ppo_seqsum": (partial(objectives.clipped, low=0.2, dual=3.0), PER_SEQUENCE, 1),
    "drgrpo_norm": (partial(objectives.clipped, low=0.2, dual=3.0), LENGTH, 6),
    "sapo": (objectives.soft, PER_SEQUENCE, 0),
}


@pytest.mark.parametrize("name", EDGE)
def test_a_surrogate_of_single_steps(name: str) -> None:
    case, (surrogate, by, length) = only("obj_ppo_family"), EDGE[name]
    log_prob = case["log_prob"].clone().requires_grad_()
    loss = (weights(case["mask"], by, length) * surrogate(log_prob - case["log_prob_old"], case["adv"])).sum()
    # theirs divide by a sequence's count + 1e-8; sapo's temperatures are float32
    rtol = {"sapo": 1e-6, "ppo_seqmean": 1e-8}.get(name, 1e-9)
    same(loss, case[f"loss_{name}"], rtol)
    same(gradient(loss, log_prob), case[f"grad_{name}"], rtol)


@pytest.mark.parametrize("name", ["cispo", "gspo", "gspo_wide", "gmpo"])
def test_a_surrogate_of_whole_trajectories(name: str) -> None:
    case = only("obj_ppo_family")
    mask, credit = case["mask"], case["adv"]
    log_prob = case["log_prob"].clone().requires_grad_()
    ratio = (log_prob - case["log_prob_old"]).flatten()
    pool = torch.arange(len(mask)).repeat_interleave(mask.shape[1])
    on = mask.flatten() > 0
    if name == "cispo":
        each, weight = objectives.truncated(ratio, credit.flatten(), 10.0, 0.2, log_prob.flatten()), weights(mask)
    elif name == "gmpo":
        each, weight = objectives.geometric(ratio, credit.flatten(), pool, 0.4, on), weights(mask, PER_SEQUENCE)
    else:
        low, high = (3e-4, 4e-4) if name == "gspo" else (0.1, 0.15)
        whole = objectives.sequence(ratio, pool, on)
        each, weight = objectives.clipped(whole, credit.flatten(), low, high), weights(mask, PER_SEQUENCE)
    loss = (weight.flatten() * each).sum()
    # theirs divide by a sequence's count + 1e-8
    same(loss, case[f"loss_{name}"], 1e-8)
    same(gradient(loss, log_prob), case[f"grad_{name}"], 1e-8)


@pytest.mark.parametrize("how", ["token-mean", "only-token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_dcpos_dynamic_clip_on_probabilities(how: str) -> None:
    case = only("obj_dcpo_loss")
    log_prob = case["log_prob"].clone().requires_grad_()
    ratio = log_prob - case["log_prob_old"]
    lower, upper = objectives.dynamic_range(case["log_prob_old"].exp())
    each = objectives.clipped(ratio, case["adv"], 1 - lower, upper - 1, dual=10.0)
    weight = weights(case["mask"], PER_TOKEN if "seq" not in how else PER_SEQUENCE, 1.0 if how.endswith("sum") else 0.0)
    loss = (weight * each).sum()
    same(loss, case[f"loss_{how}"], 1e-6)
    same(gradient(loss, log_prob), case[f"grad_{how}"], 1e-6)


def test_rifts_dual_clip() -> None:
    case = only("obj_rift_dualclip")
    ratio = case["log_ratio"].clone().requires_grad_()
    each = objectives.clipped(ratio, case["adv"], 0.2, dual=3.0)
    same(-each, case["objective"])
    same(each.mean(), case["loss"])
    same(gradient(each.mean(), ratio), case["grad"])


def test_dppos_clip_widens_and_its_advantage_is_discounted() -> None:
    case = only("obj_dppo")
    a = case.args
    wide = objectives.scales.widening(case["denoise_index"], a["K"], a["clip_base"], a["clip"], a["rate"])
    same(wide, case["clip"], 1e-6)
    log_prob = case["log_prob"].clone().requires_grad_()
    ratio = log_prob.clamp(-5, 2).mean((1, 2)) - case["log_prob_old"].clamp(-5, 2).mean((1, 2))
    loss = objectives.clipped(ratio, case["adv_final"], case["clip"].double()).mean()
    same(loss, case["loss"], 1e-6)  # their clip is float32
    same(gradient(loss, log_prob), case["grad"], 1e-6)
    discount = objectives.scales.discounted(case["denoise_index"], a["K"], a["gamma_denoising"])
    quiet = case["adv_final"] / discount
    # normalised before it is discounted: mean 0 and one std but for their quantile clip
    assert abs(float(quiet.mean())) < 0.2 and 0.5 < float(quiet.std()) < 1.1


def test_reg_is_the_regression_of_the_standardised_ratio() -> None:
    case = only("obj_reg_grpo")
    log_prob = case["log_prob"].clone().requires_grad_()
    pool = torch.arange(4).repeat_interleave(8)
    on = torch.ones(32, dtype=torch.bool)
    goal = objectives.standardised(case["reward"].flatten(), pool, on)
    loss = ((goal - objectives.standardised((log_prob - case["log_prob_old"]).flatten(), pool, on)) ** 2).mean()
    same(loss, case["loss"])
    same(gradient(loss, log_prob), case["grad"])


@pytest.mark.parametrize("limit", [1e-4, 1.0])
@pytest.mark.parametrize("score", ["Lratio", "logL"])
@pytest.mark.parametrize("kind", ["discob", "disco"])
def test_disco_contrasts_right_with_wrong_answers(kind: str, score: str, limit: float) -> None:
    """The value of their disco is a constant with the right gradient: only that is compared."""
    case = only("obj_disco")
    log_prob = case["log_prob"].clone().requires_grad_()
    ratio, mask = log_prob - case["log_prob_old"], case["mask"]
    on, pool = mask.flatten() > 0, torch.arange(len(mask)).repeat_interleave(mask.shape[1])
    values = pools.mean_of((ratio.exp() if score == "Lratio" else log_prob).flatten(), pool, on).view(mask.shape)[:, 0]
    moved = (objectives.estimated_kl(-ratio) * mask).sum() / mask.sum()
    same(moved, case["kl"], 1e-8)
    tau = None if kind == "discob" else {"logL": 10.0, "Lratio": 1.0}[score]
    every = torch.ones(len(mask), dtype=torch.bool)
    contrast = objectives.contrast(values, case["reward"] > 0.5, case["uid"], every, tau)
    loss = -contrast + objectives.hinge(moved, limit, case.args["beta"])
    if kind == "discob":
        same(loss, case[f"loss_{kind}_{score}_delta{limit}"], 1e-8)
    same(gradient(loss, log_prob), case[f"grad_{kind}_{score}_delta{limit}"], 1e-8)


def test_rapos_forward_kl() -> None:
    case = only("obj_rapo_forward_kl")
    log_prob = case["log_prob"].clone().requires_grad_()
    value = objectives.forward_kl(log_prob - case["log_prob_ref"])
    same(value, case["kl"])
    same(gradient(value.sum(), log_prob), case["grad"])


# ------------------------------------------------------------------ around the objectives
@pytest.mark.parametrize(("decay", "every"), [(0.9, 8), (0.9, 1), (0.99, 1)])
def test_the_average_of_the_weights_follows_as_theirs(decay: float, every: int) -> None:
    case = only("misc_ema")
    layer = torch.nn.Linear(5, 1, bias=False, dtype=torch.float64)

    class Policy:
        adapted = False

        def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
            return list(layer.named_parameters())

    with torch.no_grad():
        layer.weight.copy_(case["param"][:1])
        sets = Weights(Policy(), {"average": WeightSet("ema", decay=warming(decay, every))})  # pyright: ignore[reportArgumentType]
        for step, weight in enumerate(case["param"]):
            layer.weight.copy_(weight[None])
            sets.follow(step, {})
            same(sets.stored["average"][0][0], case[f"ema_{decay}_{every}"][step])


def test_the_discriminators_losses_are_adv_grpos() -> None:
    case = only("obj_adv_grpo_discriminator")
    w1, w2 = (case[n].clone().requires_grad_() for n in ("W1", "W2"))

    def head(x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ w1.T + case["b1"]) @ w2.T + case["b2"]

    image = hinge(head(case["cls_real"]), head(case["cls_fake"]))
    picked = (
        torch.stack([patches[at] for patches, at in zip(case[f"patch_{k}"], case[f"idx_{k}"], strict=True)])
        for k in ("real", "fake")
    )
    patch = hinge(*(head(p) for p in picked))
    same(image, case["image_loss"])
    same(patch, case["patch_loss"])
    loss = image + case.args["patch_loss_weight"] * patch
    same(loss, case["d_loss"])
    same(gradient(loss, w1), case["grad_W1"])
    same(gradient(loss, w2), case["grad_W2"])
    real, fake = (case[n].clone().requires_grad_() for n in ("img_ref", "img_gen"))
    loss = two_way(case["text"], real, fake, case["logit_scale"])
    same(loss, case["clip_loss"])
    same(gradient(loss, real), case["grad_ref"])
    same(gradient(loss, fake), case["grad_gen"])


def test_the_kl_controller_is_pref_grpos() -> None:
    """One image an iteration, target 0.01, horizon 100; their coefficient starts at 0.04, ours is a factor of it."""
    case = only("obj_gaussian_kl")
    plan, one = chains(schedules.sd3(4), laws.ode(), (), 1), torch.ones(1, 5)
    control = advantage.Adaptive(advantage.lift(lambda outcome: Credit(one, one, one)), 0.01, 100.0)
    state, scores = control.init(), {"r": Scores(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))}
    for k, expected in zip(case["ctl_kl"].tolist(), case["ctl_beta"].tolist(), strict=True):
        outcome = Outcome(plan, scores, {"r": 1.0}, ["a prompt"], [{}], torch.zeros(1), 0, metrics={"kl/mean": k})
        credit, state = control.apply(outcome, state)
        assert 0.04 * credit.kl_scale == pytest.approx(expected, rel=1e-9)
