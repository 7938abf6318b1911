"""Solvers, shortened schedules and whole rollouts against the numbers of the systems they come from."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from golden_reader import Case, close, load
from test_golden import cases
from test_golden_laws import field
from torch import Tensor

from flowrl.samplers import Rollout, chains, laws, multistep, paths, rollout, schedules, solvers


@pytest.mark.parametrize("case", cases("diffusion_nft_solvers", lambda c: c.args["deterministic"]))
def test_deterministic_solvers_are_diffusionnfts(case: Case) -> None:
    """Their Euler, DDIM and DPM trajectories, walked by one rollout over a chain without noise."""
    grid = load("diffusion_nft_solvers").shared[f"N{case.args['N']}"].double()
    solver = {"dpm1": solvers.dpm(1), "dpm2": solvers.dpm(2)}.get(case.args["solver"], solvers.euler)
    close(last(chains(grid, laws.ode()), case["z0"], solver), case["all_latents"][-1])


def last(plan: Any, z0: Tensor, solver: solvers.Solver) -> Tensor:
    ro = rollout(plan, lambda x, sigma, slot: field(x, sigma), len(z0), z0.shape[1:], lambda slot, node: z0[slot], solver)
    return ro.states(plan.leaves)[:, 0]


def dpm(case: Case) -> tuple[Tensor, multistep.Kind, int, bool]:
    assert case.args["algorithm"] == "dpmsolver++"
    return case["sigmas"].double(), case.args["solver_type"], case.args["order"], case.args["sde"]


def orders(steps: int, most: int) -> list[int]:
    """Theirs: one at both ends, at most two at the last but one of fewer than 15 steps."""
    short = steps < 15
    return [1 if i in (0, steps - 1) else min(i + 1, most, 2 if short and i == steps - 2 else 3) for i in range(steps)]


@pytest.mark.evidence("golden", "mix_grpo_flash")
@pytest.mark.parametrize("case", cases("mixgrpo_dpm_step", lambda c: c.args["algorithm"] == "dpmsolver++"))
def test_dpm_steps_are_mixgrpos(case: Case) -> None:
    """Every step of their chains, from their states; the stochastic third order has their slip under compat."""
    sigmas, kind, order, sde = dpm(case)
    steps, x0 = len(sigmas) - 1, case["x0"]
    for i, k in enumerate(orders(steps, order)):
        x = case["x"][i]
        close(paths.flow.x0(x, case["v"][i], sigmas[i].float()), x0[i])
        levels = [sigmas[i - j].expand(len(x)) for j in range(k)]
        got = multistep.step(
            x,
            levels[0],
            sigmas[i + 1].expand(len(x)),
            [(level, x0[i - j]) for j, level in enumerate(levels)],
            kind,
            noise=case["noise"][i] if sde else None,
            compat="mixgrpo@e5cdd6a",
        )
        torch.testing.assert_close(got, case["x"][i + 1], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("case", cases("mixgrpo_dpm_step", lambda c: c.args["algorithm"] == "dpmsolver++" and not c.args["sde"]))
def test_a_rollout_with_dpm_is_mixgrpos_chain(case: Case) -> None:
    """The orders at both ends, too, are theirs."""
    sigmas, kind, order, _ = dpm(case)
    torch.testing.assert_close(
        last(chains(sigmas, laws.ode()), case["x"][0], solvers.dpm(order, kind)), case["x"][-1], rtol=1e-5, atol=5e-6
    )


def test_the_third_stochastic_order_of_mixgrpo_does_not_vanish_with_the_step() -> None:
    draw = torch.Generator().manual_seed(0)
    x, a, b, c = torch.randn(4, 1, 3, dtype=torch.float64, generator=draw)
    gaps = []
    for h in (1e-2, 1e-3):
        level = torch.tensor([0.5], dtype=torch.float64)
        data = [(level, a), (level + h, b), (level + 2 * h, c)]
        ours, theirs = (
            multistep.step(x, level, level - h, data, noise=torch.zeros_like(x), compat=how) for how in (None, "mixgrpo@e5cdd6a")
        )
        gaps.append(float((ours - theirs).abs().max()))
    assert gaps[1] > 0.5 * gaps[0] > 0.1


def truncated(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
    """Their model is told int(1000 sigma) / 1000."""
    return field(x, (sigma * 1000).int() / 1000)


def flash(case: Case) -> tuple[Tensor, int]:
    """Their schedule and the last step of the window."""
    a = case.args
    steps = list(range(*a["window"]))
    grid = schedules.linear_shift(a["N"], a["shift"])
    if a["dpm"] == "null":
        return grid, steps[-1]
    return schedules.flash_tail(grid, steps[-1], a["compress_ratio"], compat="mixgrpo@e5cdd6a"), steps[-1]


@pytest.mark.evidence("golden", "mix_grpo", "mix_grpo_flash")
@pytest.mark.parametrize("case", cases("mixgrpo_rollout"))
def test_a_rollout_is_mixgrpos(case: Case) -> None:
    """Window, rebuilt tail, DPM-Solver++ with the window's predictions in its history: all states and scores."""
    a = case.args
    grid, end = flash(case)
    law = laws.flow_sde(a["eta"]) if a["flow_grpo_sampling"] else laws.dance_sde(a["eta"])
    window = range(*a["window"])
    plan = chains(grid, law, window)
    draw = torch.Generator().manual_seed(a["seed"])
    noises = {
        i: torch.randn(case["z0"].shape, generator=draw)
        for i in range(len(grid) - 1)
        # their flow step draws noise on quiet steps, too; the tail does not
        if i in window or (a["flow_grpo_sampling"] and (a["dpm"] == "null" or i <= end))
    }
    solver = solvers.euler if a["dpm"] == "null" else solvers.tail(solvers.dpm(2))

    def noise(slot: int, node: int) -> Tensor:
        return case["z0"][0] if node == 0 else noises[node - 1][0]

    ro: Rollout = rollout(plan, truncated, 1, case["z0"].shape[1:], noise, solver)
    latents = case["all_latents"][0]
    assert len(latents) == len(grid)
    for node in plan.kept.tolist():
        torch.testing.assert_close(ro.states(torch.tensor([node]))[0, 0], latents[node], rtol=1e-5, atol=5e-6)
    theirs = case["all_log_probs"][0][list(window)]
    if a["flow_grpo_sampling"]:
        torch.testing.assert_close(ro.log_prob[0], theirs, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(ro.states(plan.leaves)[0, 0], case["final"][0], rtol=1e-5, atol=5e-6)


@pytest.mark.evidence("golden", "mix_grpo_flash")
@pytest.mark.parametrize("case", cases("mixgrpo_flash_post_schedule"))
def test_a_flash_tail_is_mixgrpos(case: Case) -> None:
    a = case.args
    grid = schedules.linear_shift(a["N"], a["shift"])
    close(schedules.flash_tail(grid, a["window"][-1], a["ratio"], compat="mixgrpo@e5cdd6a"), case["schedule"])
    ours = schedules.flash_tail(grid, a["window"][-1], a["ratio"])
    assert ours[-1] == 0 and (ours.diff() < 0).all()
    if case["schedule"][-1] == 0:
        close(ours, case["schedule"])


def test_a_rollout_with_history_follows_each_branch() -> None:
    """On a tree, DPM's first step after a branch uses the parent's prediction: it equals a chain through the same states."""
    grid = schedules.linear_shift(6, 2.0)
    from flowrl.samplers import tree
    from flowrl.samplers.noise import Source

    source = Source(0, 0)
    shape = (2, 3)
    plan = tree(grid, laws.flow_sde(0.7), [1], {1: 2})

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        return field(x, sigma)

    ro = rollout(plan, predict, 1, shape, lambda slot, node: source.normal(shape, slot, node), solvers.dpm(2))
    for leaf, child in zip(plan.leaves.tolist(), plan.edges.tolist(), strict=True):
        x, level = ro.states(plan.rows)[0], grid[1]
        past = [(level.expand(1), paths.flow.x0(x, field(x, level[None]), level.float()))]
        x = ro.states(torch.tensor([child]))[0]
        for i, (at, to) in enumerate(itertools.pairwise(grid[2:])):
            past = [(at.expand(1), paths.flow.x0(x, field(x, at[None]), at.float())), *past]
            x = multistep.step(x, at.expand(1), to.expand(1), past[: 1 if i == len(grid) - 4 else 2])
        torch.testing.assert_close(ro.states(torch.tensor([leaf]))[0], x)
