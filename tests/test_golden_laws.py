"""Laws and paths against the numbers of the systems they come from."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from golden_reader import Case, close, close_gradient, load
from test_golden import at, cases, numbers, scored_gradient
from torch import Tensor

from flowrl.kernels import step
from flowrl.samplers import Law, clipped, laws, levels, log_prob, paths, schedules


@pytest.mark.evidence("derived", "flash_grpo")
@pytest.mark.parametrize("case", cases("flow_grpo_wan_sde_step"))
def test_wan_sde_is_flow_grpos_wan_step(case: Case) -> None:
    sigmas = load("flow_grpo_wan_sde_step").shared[f"shift{case.args['flow_shift']}_N{case.args['N']}/sigmas"]
    n = at(case, laws.wan_sde(), sigmas)
    x, u = case["sample"], case["model_output"]
    mean = step(x, u, *n)
    close(mean, case["prev_sample_mean"])
    close(n[2][0], case["std_full_default_return"].flatten()[0])
    quiet = step(x, u, *at(case, laws.ode(), sigmas))
    close(quiet if case.args["determistic"] else step(x, u, *n, case["noise"]), case["prev_sample"])
    close(log_prob(case["prev_sample"], mean, n[2]), case["log_prob"])


def ddpo(case: Case) -> tuple[paths.VP, Tensor, Tensor]:
    """(path, sigma, sigma') of a step of DDPO, which ends at the first trained level and starts below 1."""
    table = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod  # float32, as theirs
    torch.testing.assert_close(paths.alphas_cumprod(), table.double(), rtol=0, atol=1e-6)
    grid = schedules.vp(case.args["N"], table, end="first")
    i = case.args["index"]
    return paths.vp(case.args.get("prediction_type", "epsilon"), table), grid[i : i + 1], grid[i + 1 : i + 2]


def near(actual: Tensor, expected: Tensor) -> None:
    """DDPO takes 1 - alpha_bar in float32, which costs it 1e-4."""
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4, check_dtype=False)


@pytest.mark.evidence("golden", "ddpo")
@pytest.mark.parametrize("case", cases("ddpo_ddim_step", lambda c: "clip_sample" not in c.args))
def test_ddim_on_the_diffusion_path_is_ddpos_step(case: Case) -> None:
    path, sigma, sigma_next = ddpo(case)
    c, s = laws.ddim(case.args["eta"])(sigma, sigma_next, 1.0, alpha=path.alpha)
    n = tuple(t.expand(len(case["sample"])) for t in path.coefficients(sigma, sigma_next, c, s))
    assert int(path.time(sigma)) == case.args["timestep"] and int(path.time(sigma_next)) == case.args["prev_timestep"]
    near(step(case["sample"], case["model_output"], *n, case["noise"]), case["prev_sample"])
    if not case.args["eta"]:
        return
    near((s / case.args["eta"]) ** 2, case["variance"][:1])
    near(log_prob(case["prev_sample"], step(case["sample"], case["model_output"], *n), n[2]), case["log_prob"])
    if "log_prob_b" in case:
        value, gradient = scored_gradient(case, "model_output_b", case["sample"], n, "full")  # pyright: ignore[reportArgumentType]
        near(value, case["log_prob_b"])
        scale = float(case["grad_log_prob_b"].abs().max())
        torch.testing.assert_close(gradient, case["grad_log_prob_b"], rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("case", cases("ddpo_ddim_step", lambda c: "clip_sample" in c.args))
def test_a_clipped_step_is_ddpos(case: Case) -> None:
    path, sigma, sigma_next = ddpo(case)
    two, law = len(case["sample"]), laws.ddim(1.0)
    x, mean = clipped.step(
        case["sample"],
        case["model_output"],
        sigma.expand(two),
        sigma_next.expand(two),
        law,
        path,
        case["noise"],
        again=case.args["use_clipped_model_output"],
    )
    near(x, case["prev_sample"])
    near(log_prob(case["prev_sample"], mean, law(sigma, sigma_next, 1.0, alpha=path.alpha)[1].expand(two)), case["log_prob"])


@pytest.mark.evidence("derived", "sage_grpo")
@pytest.mark.parametrize("case", cases("sage_grpo_step", lambda c: "index" in c.args))
def test_sage_is_sage_grpos_step(case: Case) -> None:
    sigmas = load("sage_grpo_step").shared[f"shift{case.args['shift']}_N{case.args['N']}"]
    n = at(case, laws.sage(case.args["eta"]), sigmas, "index", "sample")
    x, u = case["sample"], case["model_output"]
    # sde_solver False: the Euler point with the stochastic std
    mean = step(x, u, *(n if case.args["sde_solver"] else at(case, laws.ode(), sigmas, "index", "sample")))

    def close5(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(
            actual, expected, rtol=1e-5, atol=1e-5, check_dtype=False
        )  # theirs is ln of a float32 near 0 at sigma = 1

    close5(mean, case["prev_sample_mean"])
    close5(n[2][0], case["std_full"])
    close5(mean + n[2][0] * case["noise"], case["prev_sample"])
    close5(log_prob(case["prev_sample"], case["prev_sample_mean"], n[2]), case["log_prob"])


@pytest.mark.evidence("golden", "flow_cps")
@pytest.mark.evidence("derived", "flow_noise", "flow_grpo_fast", "adv_grpo")
@pytest.mark.parametrize("case", cases("pi_rl_mean_std", lambda c: "method" in c.args))
def test_laws_are_pi_rls(case: Case) -> None:
    steps, level, i, method = (case.args[k] for k in ("K", "noise_level", "index", "method"))
    grid = torch.cat([torch.linspace(1, 1 / steps, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    make: dict[str, Law] = {
        "flow_ode": laws.ode(),
        "flow_sde": laws.flow_sde(level),
        "flow_cps": laws.cps(level),
        "flow_noise": laws.flow_noise(0.08, 0.16),
    }
    a, b, s = (t.expand(len(case["x"])) for t in numbers(make[method], grid, [i]))
    mean = step(case["x"], case["v"], a, b, s)
    close(mean, case["mean"])
    std = case["noise_head_std"] if method == "flow_noise" else s.float().view(-1, 1, 1).expand_as(mean)
    close(std, case["std"])
    if (std > 0).all():  # theirs is 0 where a step has no noise; ours has no density there
        ours = log_prob(case["next"], mean, std)
        torch.testing.assert_close(ours, case["log_prob_elem"].mean((1, 2)), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("case", cases("pi_rl_mean_std", lambda c: "noise_params" in c.args))
def test_an_annealed_level_is_pi_rls(case: Case) -> None:
    close(torch.tensor([levels.annealed(i, *case.args["noise_params"]) for i in case.args["steps"]]), case["levels"])


@pytest.mark.evidence("derived", "flow_noise")
@pytest.mark.parametrize("case", cases("reinflow_noise_logprob", lambda c: "std_min" in c.args))
def test_a_learned_std_is_reinflows(case: Case) -> None:
    law = laws.flow_noise(case.args["std_min"], case.args["std_max"])
    close(law.std(case["raw_logvar"]), case["std"])


@pytest.mark.evidence("golden", "branch_grpo")
@pytest.mark.parametrize("case", cases("branchgrpo_step"))
def test_dance_sde_is_branchgrpos_step(case: Case) -> None:
    """Its split noise is wider than the density that it is scored with; ours mixes noise and keeps the density (`Plan.mix`)."""
    grid = schedules.linear_shift(case.args["N"], case.args["shift"])
    splits = case.args["num_splits"]
    a, b, s = (t.expand(splits) for t in numbers(laws.dance_sde(case.args["eta"]), grid, [case.args["index"]]))
    x, u = (torch.cat([case[k]] * splits) for k in ("latents", "model_output"))
    mean = step(x, u, a, b, s)
    close(mean[:1], case["prev_sample_mean"])
    scale = case.args["split_noise_scale"] if splits > 1 else 1.0
    # terms of size 4 scale, rounded to float32 each
    torch.testing.assert_close(step(x, u, a, b, s * scale, case["unit_noise"]), case["prev_sample"], rtol=1e-5, atol=4e-6)
    close(paths.flow.x0(x, u, grid[case.args["index"]].float()), case["pred_original"])
    close(log_prob(case["prev_sample"], mean, s), case["log_prob"])


@pytest.mark.evidence("derived", "tempflow_grpo")
@pytest.mark.parametrize("case", cases("tempflow_step_weights", lambda c: "K" in c.args))
def test_flow_sde_is_tempflows_branching_step(case: Case) -> None:
    sigmas = load("tempflow_step_weights").shared[f"{case.args['schedule']}/sigmas"]
    i, k = case.args["index"], case.args["K"]
    count = len(case["sample"]) * k
    a, b, s = (t.expand(count) for t in numbers(laws.flow_sde(case.args["noise_level"]), sigmas, [i]))
    x, u = (case[name].repeat_interleave(k, 0) for name in ("sample", "model_output"))
    mean = step(x, u, a, b, s)
    close(mean, case["prev_sample_mean"])
    close(s[0], case["std_full"].flatten()[0])
    close(step(x, u, a, b, s, case["noise"]), case["prev_sample"])
    close(log_prob(case["prev_sample"], mean, s), case["log_prob"])
    close(step(case["sample"], case["model_output"], *(t.expand(2) for t in numbers(laws.ode(), sigmas, [i]))), case["ode_next"])
    mean_b = step(x, case["model_output_b"], a, b, s)
    close(mean_b, case["prev_sample_mean_b"])
    close(log_prob(case["prev_sample"], mean_b, s), case["log_prob_b"])


@pytest.mark.evidence("derived", "g2rpo")
@pytest.mark.parametrize("case", cases("g2rpo_step_mgai", lambda c: "eta" in c.args))
def test_flow_sde_is_g2rpos_step(case: Case) -> None:
    # their levels are float32, and 1 - sigma near 1 feels it
    grid = schedules.linear_shift(case.args["N"], case.args["shift"]).float()
    eta, i = case.args["eta"], case.args["index"]
    x, u = case["latents"], case["model_output"]
    a, b, s = (t.expand(len(x)) for t in numbers(laws.flow_sde(eta), grid, [i]))
    close(step(x, u, a, b, s, case["noise"]), case["prev_sample"])
    close(paths.flow.x0(x, u, grid[i].float()), case["pred_original"])
    if eta:
        close(log_prob(case["prev_sample"], step(x, u, a, b, s), s), case["log_prob"])
        close(log_prob(case["prev_sample"], step(x, case["model_output_b"], a, b, s), s), case["log_prob_b"])


def field(x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that the peers' whole trajectories were drawn with."""
    level = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
    return x.tanh() * (1 - level) + 0.5 * x * level


@pytest.mark.parametrize("case", cases("diffusion_nft_solvers", lambda c: "log_probs" in c and not c.args["deterministic"]))
def test_stochastic_solvers_are_diffusionnfts(case: Case) -> None:
    """Each step of their trajectories, scored by ours; their Dance drops the normaliser, as MixGRPO's does."""
    grid = load("diffusion_nft_solvers").shared[f"N{case.args['N']}"].double()
    make = {"flow": laws.flow_sde, "dance": laws.dance_sde, "ddim": laws.ddim}
    if case.args["solver"] not in make:
        return
    law = make[case.args["solver"]](case.args["eta"])
    for i, (x, x_next) in enumerate(itertools.pairwise(case["all_latents"])):
        a, b, s = (t.expand(len(x)) for t in numbers(law, grid, [i]))
        if not (s > 0).all():
            close(step(x, field(x, grid[i : i + 1]), a, b, s), x_next)
            continue
        ours = log_prob(
            x_next, step(x, field(x, grid[i : i + 1]), a, b, s), s, "quadratic" if case.args["solver"] == "dance" else "full"
        )
        torch.testing.assert_close(ours, case["log_probs"][i], rtol=1e-5, atol=5e-6)


def test_gradients_of_densities_agree_with_their_closed_form_in_float64() -> None:
    """d log p / d u = b (x' - mean) / (s^2 D) for every law that adds noise."""
    draw = torch.Generator().manual_seed(0)
    x, u, z = torch.randn(3, 2, 4, dtype=torch.float64, generator=draw)
    grid = schedules.linear_shift(5, 2.0)
    for law in (
        laws.flow_sde(0.7), laws.wan_sde(), laws.dance_sde(0.3), laws.cps(0.5), laws.ddim(0.8), laws.dgpo(0.4), laws.precise(1.5),
        laws.dance_precise(0.6), laws.sage(0.5), laws.longcat(1.0, 0.2),
    ):  # fmt: skip
        a, b, s = numbers(law, grid, [1, 2])
        x_next = step(x, u, a, b, s, z)
        leaf = u.clone().requires_grad_()
        gradient = torch.autograd.grad(log_prob(x_next, step(x, leaf, a, b, s), s).sum(), leaf)[0]
        closed = b[:, None] * (x_next - step(x, u, a, b, s)) / (s[:, None] ** 2 * 4)
        torch.testing.assert_close(gradient, closed, rtol=1e-12, atol=1e-12)
        close_gradient(gradient, closed)
