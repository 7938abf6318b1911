"""Our numbers against those that the published systems' own code computed (tests/golden/README.md)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden_reader import Case, close, close_gradient, load
from torch import Tensor

from flowrl import methods, objectives
from flowrl.advantage import zscore
from flowrl.kernels import log_ratio, step
from flowrl.samplers import Law, chains, kl, laws, log_prob, paths, schedules, windows
from flowrl.types import Batch

Numbers = tuple[Tensor, Tensor, Tensor]


def cases(name: str, keep: Callable[[Case], bool] = lambda case: True) -> list[object]:
    return [pytest.param(c, id=c.id or name) for c in load(name).cases if keep(c)]


def numbers(law: Law, sigmas: Tensor, steps: list[int]) -> Numbers:
    """(a, b, s) of these steps of the peer's own schedule."""
    grid = sigmas.double()
    at = torch.tensor(steps)
    return paths.flow.coefficients(grid[at], grid[at + 1], *law(grid[at], grid[at + 1], float(grid[1])))


def rows(t: Tensor, count: int) -> Tensor:
    return t.expand(count) if len(t) == 1 else t


def at(case: Case, law: Law, sigmas: Tensor, index: str = "step_index", like: str = "model_output") -> Numbers:
    steps = case.args.get("step_indices") or [case.args[index]]
    return tuple(rows(t, len(case[like])) for t in numbers(law, sigmas, steps))  # pyright: ignore[reportReturnType]


def scored_gradient(case: Case, output: str, x: Tensor, n: Numbers, form: str) -> tuple[Tensor, Tensor]:
    u = case[output].clone().requires_grad_()
    value = log_prob(case["prev_sample"], step(x, u, *n), n[2], form)  # pyright: ignore[reportArgumentType]
    return value, torch.autograd.grad(value.sum(), u)[0]


@pytest.mark.evidence("golden", "flow_grpo", "grpo_guard", "flow_dppo")
@pytest.mark.parametrize("case", cases("flow_grpo_sde_step"))
def test_flow_sde_is_flow_grpos_step(case: Case) -> None:
    sigmas = load("flow_grpo_sde_step").shared[f"{case.args['schedule']}/sigmas"]
    n = at(case, laws.flow_sde(case.args["noise_level"]), sigmas)
    x, u = case["sample"].float(), case["model_output"].float()
    mean = step(x, u, *n)
    close(mean, case["prev_sample_mean"])
    per_step = case["std_dev_t"] * case["sqrt_minus_dt"]
    close(n[2], rows(per_step.flatten(), len(x)))
    if "noise" in case:
        close(step(x, u, *n, case["noise"]), case["prev_sample"])
    if case.args["noise_level"] == 0:
        # theirs is 0 / 0; a step without noise has no density, and ours says so
        assert case["log_prob"].isnan().all()
        close(mean, case["prev_sample"])
        with pytest.raises(ValueError, match="std is 0"):
            log_prob(case["prev_sample"], mean, n[2])
        return
    close(log_prob(case["prev_sample"], mean, n[2]), case["log_prob"])
    if "log_prob_b" in case:
        close(step(x, case["model_output_b"], *n), case["prev_sample_mean_b"])
        value, gradient = scored_gradient(case, "model_output_b", x, n, "full")
        close(value, case["log_prob_b"])
        close_gradient(gradient, case["grad_log_prob_b_wrt_model_output_b"])


@pytest.mark.evidence("golden", "flow_cps")
@pytest.mark.evidence("derived", "flow_grpo_fast", "adv_grpo")
@pytest.mark.parametrize("case", cases("flow_grpo_cps_step"))
def test_cps_is_flow_grpos_step(case: Case) -> None:
    sigmas = load("flow_grpo_cps_step").shared[f"{case.args['schedule']}/sigmas"]
    n = at(case, laws.cps(case.args["noise_level"]), sigmas)
    x, u = case["sample"].float(), case["model_output"].float()
    mean = step(x, u, *n)
    close(mean, case["prev_sample_mean"])
    close(n[2], rows(case["std_dev_t"].flatten(), len(x)))
    if "noise" in case:
        close(step(x, u, *n, case["noise"]), case["prev_sample"])
    # at level 0 and at sigma' = 0 their score is that of a point, 0; so is ours in this form
    close(log_prob(case["prev_sample"], mean, n[2], "bare"), case["log_prob"])
    if "log_prob_b" in case:
        value, gradient = scored_gradient(case, "model_output_b", x, n, "bare")
        close(value, case["log_prob_b"])
        close_gradient(gradient, case["grad_log_prob_b_wrt_model_output_b"])


@pytest.mark.parametrize("name", ["flow_grpo_sde_step", "flow_grpo_cps_step"])
def test_the_sd3_schedule_is_diffusers(name: str) -> None:
    for steps in (10, 40):
        close(schedules.sd3(steps), load(name).shared[f"sd3_N{steps}/sigmas"])


@pytest.mark.parametrize("name", ["mixgrpo_step", "dancegrpo_flux_step"])
def test_the_linear_schedule_is_theirs(name: str) -> None:
    for key, grid in load(name).shared.items():
        shift, steps = key.removeprefix("shift").split("_N")
        close(schedules.linear_shift(int(steps), float(shift)), grid)


@pytest.mark.evidence("golden", "dance_grpo")
@pytest.mark.parametrize("case", cases("dancegrpo_flux_step"))
def test_dance_sde_is_dancegrpos_step(case: Case) -> None:
    sigmas = load("dancegrpo_flux_step").shared[f"shift{case.args['shift']}_N{case.args['N']}"]
    n = at(case, laws.dance_sde(case.args["eta"]), sigmas, "index")
    x, u = case["latents"], case["model_output"]
    mean = step(x, u, *n)
    close(mean, case["mean_sde"])
    close(step(x, u, *n, case["noise"]), case["prev_sample"])
    close(step(x, u, *at(case, laws.ode(), sigmas, "index")), case["mean_ode"])
    close(paths.flow.x0(x, u, sigmas[case.args["index"]]), case["pred_original"])
    close(log_prob(case["prev_sample"], mean, n[2]), case["log_prob"])
    value, gradient = scored_gradient(case, "model_output_b", x, n, "full")
    close(value, case["log_prob_b"])
    close_gradient(gradient, case["grad_log_prob_b"])


@pytest.mark.evidence("golden", "mix_grpo", "mix_grpo_flash")
@pytest.mark.parametrize("case", cases("mixgrpo_step", lambda c: c.args["fn"] == "flow_grpo_step"))
def test_flow_sde_is_mixgrpos_flow_step(case: Case) -> None:
    sigmas = load("mixgrpo_step").shared[f"shift{case.args['shift']}_N{case.args['N']}"]
    n = at(case, laws.flow_sde(case.args["eta"]), sigmas, "index")
    x, u = case["latents"], case["model_output"]
    mean = step(x, u, *n)
    close(mean, case["prev_sample_mean"])
    close(n[2][0], case["std_full"])
    quiet = step(x, u, *at(case, laws.ode(), sigmas, "index"))
    close(quiet if case.args["determistic"] else step(x, u, *n, case["noise"]), case["prev_sample"])
    close(paths.flow.x0(x, u, sigmas[case.args["index"]]), case["pred_original"])
    # of a quiet step they score the Euler point under the stochastic mean
    close(log_prob(case["prev_sample"], mean, n[2]), case["log_prob"])


@pytest.mark.parametrize("case", cases("mixgrpo_step", lambda c: c.args["fn"] == "dance_grpo_step"))
def test_dance_sde_is_mixgrpos_dance_step(case: Case) -> None:
    sigmas = load("mixgrpo_step").shared[f"shift{case.args['shift']}_N{case.args['N']}"]
    n = at(case, laws.dance_sde(case.args["eta"]), sigmas, "index")
    x, u = case["latents"], case["model_output"]
    # sde_solver False: the Euler point, scored under itself
    mean = step(x, u, *(n if case.args["sde_solver"] else at(case, laws.ode(), sigmas, "index")))
    close(step(x, u, *n, case["noise"]) if case.args["sde_solver"] else mean, case["prev_sample"])
    close(paths.flow.x0(x, u, sigmas[case.args["index"]]), case["pred_original"])
    close(log_prob(case["prev_sample"], mean, n[2], "quadratic"), case["log_prob"])


def moves(case: Case) -> bool:
    return case.args["sample_strategy"] != "random" and stride(case) > 0 if "sample_strategy" in case.args else False


def stride(case: Case) -> int:
    return case.args["prog_overlap_step"] if case.args["prog_overlap"] else case.args["group_size"]


def sequence(case: Case, iterations: range) -> list[list[int]]:
    a = case.args
    return [
        list(
            windows.sliding(
                i,
                a["max_timesteps"],
                a["group_size"],
                a["iters_per_group"],
                stride(case),
                a["roll_back"],
                a["sample_strategy"],
                a.get("max_iters_per_group", 10),
                a.get("min_iters_per_group", 1),
                compat="mixgrpo@e5cdd6a",
            )
        )
        for i in iterations
    ]


@pytest.mark.evidence("golden", "mix_grpo", "mix_grpo_flash")
@pytest.mark.parametrize("case", cases("mixgrpo_window_schedule", moves))
def test_sliding_windows_are_mixgrpos(case: Case) -> None:
    expected = [[i for i in row if i >= 0] for row in case["windows"].tolist()]
    assert sequence(case, range(len(expected))) == expected


@pytest.mark.parametrize(
    "case",
    cases(
        "mixgrpo_window_schedule",
        lambda c: "sample_strategy" in c.args and c.args["sample_strategy"] != "random" and stride(c) == 0,
    ),
)
def test_a_window_that_never_moves_is_refused(case: Case) -> None:
    assert case["windows"].unique(dim=0).shape[0] == 1
    with pytest.raises(ValueError, match="stride 0"):
        sequence(case, range(1))


@pytest.mark.evidence("golden", "flow_grpo", "flow_cps")
@pytest.mark.parametrize("case", cases("flow_grpo_policy_kl_loss"))
def test_clipped_loss_and_kl_are_flow_grpos(case: Case) -> None:
    i, level, beta, clip = (case.args[k] for k in ("step_index", "noise_level", "beta", "clip_range"))
    count, limit = len(case["advantages"]), case.args["adv_clip_max"]
    a, b, s = (
        t.expand(count).float() for t in numbers(laws.flow_sde(level), load("flow_grpo_policy_kl_loss").shared["sigmas"], [i])
    )
    x, reference, credit = case["sample"], case["model_output_ref"], case["advantages"].clamp(-limit, limit)
    per_root = case["std_dev_t"].flatten()  # their std, without sqrt(sigma - sigma')
    u = case["model_output_new"].clone().requires_grad_()
    mean = step(x, u, a, b, s)
    close(mean, case["prev_sample_mean_new"])
    density = log_prob(case["prev_sample"], mean, s)
    close(density, case["log_prob_new"])
    ratio = density - case["log_prob_old"]
    close(ratio.exp(), case["ratio"])
    policy = objectives.clipped(ratio, credit, clip).mean()
    close(policy, case["policy_loss"])
    total = policy
    if beta:
        close(step(x, reference, a, b, s), case["prev_sample_mean_ref"])
        distance = kl(mean, step(x, reference, a, b, s), per_root).mean()
        close(distance, case["kl_loss"])
        close(objectives.surrogate_kl(u, reference, b, per_root).mean(), case["kl_loss"])
        total = policy + beta * distance
    close(total, case["loss"])
    close_gradient(torch.autograd.grad(total, u)[0], case["grad_wrt_model_output_new"])


@pytest.mark.evidence("golden", "flow_grpo", "flow_cps")
@pytest.mark.parametrize("case", cases("flow_grpo_policy_kl_loss"))
def test_the_clip_objective_is_flow_grpos_loss(case: Case) -> None:
    """The same numbers through measure and loss. Their log_prob_old belongs to no u_old, so the ratio is shifted to it."""
    i, level, beta, clip = (case.args[k] for k in ("step_index", "noise_level", "beta", "clip_range"))
    sigmas = load("flow_grpo_policy_kl_loss").shared["sigmas"].double()
    count, limit = len(case["advantages"]), case.args["adv_clip_max"]
    a, b, s = (t.expand(count).float() for t in numbers(laws.flow_sde(level), sigmas, [i]))
    one = torch.full((count,), 1 / count)
    x, old = case["sample"], case["model_output_ref"]
    batch = Batch(
        x=x,
        sigma=sigmas[i].expand(count).float(),
        slot=torch.arange(count),
        row=torch.arange(count),
        a=a,
        b=b,
        s=s,
        advantage=case["advantages"].clamp(-limit, limit),
        weight=one,
        kl_weight=one,
        delta=(sigmas[i] - sigmas[i + 1]).expand(count).float(),
        x_next=case["prev_sample"],
        u_old=old,
    )
    objective = objectives.clip(clip, beta=beta, compat="flow_grpo@9745241")
    u = case["model_output_new"].clone().requires_grad_()
    m = objective.measure(batch, {"current": u, "reference": case["model_output_ref"]})
    shift = log_prob(case["prev_sample"], step(x, old, a, b, s), s) - case["log_prob_old"]
    loss = objective.loss(batch, torch.stack([m[:, 0] + shift, m[:, 1]], 1))
    close(loss.metrics["loss/policy"], case["policy_loss"])
    close(loss.value, case["loss"])
    if beta:
        close(loss.metrics["kl/mean"], case["kl_loss"])
    close_gradient(torch.autograd.grad(loss.value, u)[0], case["grad_wrt_model_output_new"])


def nft_batch(case: Case, dtype: torch.dtype) -> tuple[Batch, dict[str, Tensor]]:
    x0, noise, t, u, old, reference = (case[k].to(dtype) for k in ("x0", "noise", "t", "v", "v_old", "v_ref"))
    count, level = len(t), t.view(-1, 1, 1, 1)
    one, weight = torch.ones(count), torch.full((count,), 1 / count, dtype=dtype)
    advantage = case["adv"].clamp(-case.args["adv_clip_max"], case.args["adv_clip_max"]).to(dtype)
    x = paths.flow.alpha(level) * x0 + level * noise
    batch = Batch(
        x=x,
        sigma=t,
        slot=torch.arange(count),
        row=torch.arange(count),
        a=one,
        b=one,
        s=one,
        advantage=advantage,
        weight=weight,
        kl_weight=weight,
        delta=one,
        x0=x0,
        target=paths.flow.target(x0, noise, level),
    )
    return batch, {"current": u.clone().requires_grad_(), "old": old, "reference": reference}


@pytest.mark.evidence("golden", "diffusion_nft")
@pytest.mark.parametrize("kl_weight", [1e-4, 0.0])
@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("dtype", ["", "_f32"])
@pytest.mark.parametrize("case", cases("obj_diffusion_nft"))
def test_nft_is_diffusionnfts_loss(case: Case, dtype: str, beta: float, kl_weight: float) -> None:
    batch, u = nft_batch(case, torch.float32 if dtype else torch.float64)
    positive, negative = objectives.nft_terms(u["current"], u["old"], batch.x, batch.x0, batch.sigma, beta)  # pyright: ignore
    close(positive, case[f"pos_loss_beta{beta}{dtype}"])
    close(negative, case[f"neg_loss_beta{beta}{dtype}"])
    objective = objectives.nft(beta, kl_weight, scale=case.args["adv_clip_max"])
    loss = objective.loss(batch, objective.measure(batch, u))
    close(loss.value, case[f"loss_beta{beta}_kl{kl_weight}{dtype}"])
    close_gradient(torch.autograd.grad(loss.value, u["current"])[0], case[f"grad_v_beta{beta}_kl{kl_weight}{dtype}"])
    if not dtype and (beta, kl_weight) == (1.0, 1e-4):
        close(loss.value, case["loss_omni_beta1.0_kl0.0001"])


@pytest.mark.parametrize("case", cases("obj_diffusion_nft"))
def test_the_old_policy_follows_as_diffusionnfts(case: Case) -> None:
    decay = methods.diffusion_nft().weights["old"].decay
    assert decay is not None
    close(torch.tensor([decay(int(k)) for k in case["decay_steps"]], dtype=torch.float64), case["decay_type1"])


@pytest.mark.evidence("golden", "flow_grpo", "flow_cps", "grpo_guard", "diffusion_nft")
@pytest.mark.parametrize(("std", "suffix"), [("group", ""), ("global", "_globalstd")])
@pytest.mark.parametrize("case", cases("adv_flow_grpo_tracker"))
def test_zscore_is_flow_grpos_tracker(case: Case, std: str, suffix: str) -> None:
    columns = [(case["rewards"], case[f"adv_grpo{suffix}"])]
    columns += [(case["rewards_2d"][:, t], case[f"adv2d_grpo{suffix}"][:, t]) for t in range(case["rewards_2d"].shape[1])]
    members = [(case["prompt_id"] == p).nonzero().flatten() for p in case["prompt_id"].unique()]
    for r, expected in columns:
        # groups differ in size: the rest is invalid
        table = torch.full((len(members), max(map(len, members))), math.nan, dtype=torch.float64)
        for row, mine in zip(table, members, strict=True):
            row[: len(mine)] = r[mine]
        got = zscore(table, ddof=case.args["ddof"], eps=case.args["eps"], std=std)  # pyright: ignore[reportArgumentType]
        for row, mine in zip(got, members, strict=True):
            close(row[: len(mine)], expected[mine])


def test_a_plan_refuses_what_the_peers_score_as_nan() -> None:
    for sigmas, law in ((schedules.sd3(10), laws.flow_sde(0.0)), (schedules.sd3(10), laws.cps(0.0))):
        with pytest.raises(ValueError, match="std 0"):
            chains(sigmas, law, [0])
    with pytest.raises(ValueError, match="end the stochastic range earlier"):
        chains(schedules.sd3(10), laws.cps(0.8), range(10))


@pytest.mark.parametrize("case", cases("flow_grpo_sde_step", lambda c: "log_prob_b" in c))
def test_the_log_ratio_is_the_difference_of_their_densities(case: Case) -> None:
    sigmas = load("flow_grpo_sde_step").shared[f"{case.args['schedule']}/sigmas"]
    a, b, s = at(case, laws.flow_sde(case.args["noise_level"]), sigmas)
    ours = log_ratio(case["model_output_b"], case["model_output"], case["sample"], case["prev_sample"], a, b, s)
    # a difference of two numbers, each with their own tolerance
    atol = 1e-6 + 2e-5 * float(case["log_prob"].abs().max())
    torch.testing.assert_close(ours, case["log_prob_b"] - case["log_prob"], rtol=1e-5, atol=atol, check_dtype=False)
