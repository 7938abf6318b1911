"""Losses, step weights, advantages and trees against the numbers of the systems they come from."""

from __future__ import annotations

import pytest
import torch
from golden_reader import Case, close, close_gradient, load
from test_golden import cases, numbers
from torch import Tensor

from flowrl import advantage, methods, objectives
from flowrl.kernels import log_ratio, step
from flowrl.samplers import Plan, comb, laws, log_prob, paths, rollout, schedules, tree, windows
from flowrl.samplers.noise import Source
from flowrl.types import Batch, WeightSet
from flowrl.weights import Weights


def batch(case: Case, n: tuple[Tensor, Tensor, Tensor], delta: Tensor, u_old: Tensor, x: Tensor) -> Batch:
    count = len(x)
    one = torch.full((count,), 1 / count)
    return Batch(
        x=x,
        sigma=one,
        slot=torch.arange(count),
        row=torch.arange(count),
        a=n[0],
        b=n[1],
        s=n[2],
        advantage=case["advantages"].clamp(-5, 5),
        weight=one,
        kl_weight=one,
        delta=delta,
        x_next=case["prev_sample"],
        u_old=u_old,
    )


@pytest.mark.evidence("golden", "grpo_guard")
@pytest.mark.parametrize("case", cases("grpo_guard_ratio_loss"))
def test_guard_is_grpo_guards_loss(case: Case) -> None:
    """Their one drift for the batch under compat; the norm switched off is a plain clipped ratio."""
    i, limit = case.args["step_index"], case.args["clip_range"]
    u = case["model_output_new"].clone().requires_grad_()
    a, b, s = (t.expand(len(u)).float() for t in numbers(laws.flow_sde(case.args["noise_level"]), schedules.sd3(10), [i]))
    x, x_next = case["sample"], case["prev_sample"]
    mean = step(x, u, a, b, s)
    close(mean, case["prev_sample_mean_new"])
    density = log_prob(x_next, mean, s)
    close(density, case["log_prob_new"])
    old = case["prev_sample_mean_old"]
    drift = ((mean - old) ** 2).flatten(1).mean(1) / (2 * s**2)
    ratio = density - case["log_prob_old"]
    delta = 1.0
    if case.args["rationorm"]:
        close(drift.mean(), case["ratio_mean_bias"].mean())
        ratio, delta = objectives.guarded(ratio, drift, s, compat="flow_grpo@9745241"), case["sqrt_minus_dt"].flatten()[0] ** 2
    close(ratio.exp(), case["ratio"])
    loss = objectives.clipped(ratio, case["advantages"].clamp(-5, 5), limit).mean() / delta
    close(loss, case["policy_loss"])
    gradient = torch.autograd.grad(loss, u)[0]
    # a clip of 2e-6 lies among the last bits of their ratio: an edge whose ratio is within them may fall on either side
    near = ((ratio.exp() - 1).abs() - limit).abs() < 3e-7
    close_gradient(gradient[~near], case["grad_wrt_model_output_new"][~near])


def test_guard_as_an_objective_is_the_normalised_ratio_of_every_edge() -> None:
    """The form without differences of densities, against the definition in float64."""
    draw = torch.Generator().manual_seed(0)
    x, x_next, now, old = torch.randn(4, 5, 3, dtype=torch.float64, generator=draw)
    a, b, s = (t.expand(5) for t in numbers(laws.flow_sde(0.7), schedules.sd3(10), [4]))
    delta = torch.full((5,), 0.07, dtype=torch.float64)
    one = torch.full((5,), 0.2, dtype=torch.float64)
    credit = torch.randn(5, dtype=torch.float64, generator=draw)
    rows = torch.arange(5)
    q = Batch(x, one, rows, rows, a, b, s, credit, one, one, delta, x_next, old)
    objective = objectives.guard(0.01)
    mean, mean_old = step(x, now, a, b, s), step(x, old, a, b, s)
    drift = ((mean - mean_old) ** 2).mean(1) / (2 * s**2)
    expected = objectives.guarded(log_ratio(now, old, x, x_next, a, b, s), drift, s)
    m = objective.measure(q, {"current": now})
    torch.testing.assert_close(m[:, 0], expected)
    torch.testing.assert_close(objective.loss(q, m).value, objectives.clipped(expected, credit, 0.01).mean() / 0.07)
    assert (objective.measure(q, {"current": old})[:, 0] == 0).all()


@pytest.mark.evidence("golden", "grpo_guard", "flow_dppo")
@pytest.mark.evidence("derived", "pref_grpo")
@pytest.mark.parametrize("case", cases("verl_omni_losses", lambda c: "clip_ratio" in c.args))
def test_losses_are_verl_omnis(case: Case) -> None:
    clip, limit = case.args["clip_ratio"], case.args["adv_clip_max"]
    s = case["std_dev_t"].flatten() * case["sqrt_minus_dt"]
    new, old = case["mean_new"], case["mean_old"]
    ratio = case["log_prob_new"] - case["log_prob_old"]
    credit = case["advantages"].clamp(-limit, limit)
    close(objectives.clipped(ratio, credit, clip).mean(), case["loss_flow_grpo"])
    drift = ((new - old) ** 2).flatten(1).mean(1) / (2 * s**2)
    guarded = objectives.guarded(ratio, drift, s)
    close((objectives.clipped(guarded, credit, clip) / case["sqrt_minus_dt"] ** 2).mean(), case["loss_grpo_guard"])
    threshold = case.args["kl_mask_threshold"]
    dropped = objectives.outward(ratio, case["advantages"], drift, threshold)
    close(torch.where(dropped, 0, -case["advantages"] * ratio.exp()).mean(), case["loss_flow_dppo"])
    close(dropped.double().mean(), case["dppo_masked_fraction"])
    close(drift.mean(), case["dppo_kl_mean"])


def test_dppo_drops_only_what_is_far_and_pushed_further() -> None:
    q, u = torch.tensor([0.1, 0.1, -0.1, -0.1, 0.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    far = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    assert objectives.outward(q, u, far, 0.5).tolist() == [True, False, False, True, False]
    with pytest.raises(ValueError, match="would drop every edge"):
        objectives.dppo(0.0)


@pytest.mark.parametrize("case", cases("verl_omni_losses", lambda c: "norm_by_std" in c.args))
def test_advantages_are_verl_omnis(case: Case) -> None:
    """Unbiased std and 1e-4; their rewards are tiled over steps."""
    r, ids = case["rewards"], case["prompt_ids"]
    groups = [(ids == k).nonzero().flatten() for k in ids.unique()]
    table = torch.full((len(groups), max(map(len, groups)) * r.shape[1]), torch.nan)
    for row, mine in zip(table, groups, strict=True):
        row[: r[mine].numel()] = r[mine].flatten()
    std = "global" if case.args["global_std"] else "group"
    ours = (
        advantage.zscore(table, ddof=1, eps=case.args["epsilon"], std=std) if case.args["norm_by_std"] else advantage.center(table)
    )
    for row, mine in zip(ours, groups, strict=True):
        if len(mine) == 1:
            # their group of one keeps its reward as its advantage; ours has nothing to compare and gets 0
            assert row[0] == 0
            continue
        close(row[: r[mine].numel()], case["advantages"][mine].flatten())


@pytest.mark.evidence("derived", "tempflow_grpo")
@pytest.mark.parametrize("case", cases("tempflow_step_weights", lambda c: "note" in c.args))
def test_noise_aware_weights_are_tempflows(case: Case) -> None:
    name = case.id.split("/")[0]
    sigmas = load("tempflow_step_weights").shared[f"{name}/sigmas"]
    s = numbers(laws.flow_sde(0.7), sigmas, list(range(len(sigmas) - 1)))[2]
    close(s, case["std_full"])
    for model, constant in (("sd3", 2.25), ("flux", 1.73), ("qwen", 1.53)):
        close(objectives.scales.noise_aware(s, constant), case[f"weight_{model}"])


@pytest.mark.evidence("derived", "tempflow_grpo")
@pytest.mark.parametrize("case", cases("tempflow_step_weights", lambda c: "const" in c.args))
def test_the_weighted_loss_is_tempflows(case: Case) -> None:
    weight = objectives.scales.noise_aware(case["std_full"].flatten(), case.args["const"])
    loss = objectives.clipped(case["log_prob"] - case["log_prob_old"], case["advantages"], case.args["clip_range"])
    close((weight * loss).mean(), case["policy_loss"])


@pytest.mark.evidence("derived", "sage_grpo")
@pytest.mark.parametrize("case", cases("sage_grpo_step", lambda c: "sde_type" in c.args))
def test_the_equaliser_is_sage_grpos(case: Case) -> None:
    a = case.args
    sigmas = load("sage_grpo_step").shared[f"shift{a['shift']}_N{a['N']}"]
    make = {"sage_grpo": laws.sage, "dance_grpo": laws.dance_sde, "flow_grpo": laws.flow_sde, "cps": laws.cps}
    _, b, s = numbers(make[a["sde_type"]](a["eta"]), sigmas, list(range(a["N"])))
    if not a["sde_solver"] and a["sde_type"] in ("sage_grpo", "dance_grpo"):
        b = numbers(laws.ode(), sigmas, list(range(a["N"])))[1]
    on = s > 0  # CPS ends without noise: kappa is infinite there, theirs a large number
    torch.testing.assert_close(objectives.scales.kappa(b, s)[on], case["grad_norms"][on], rtol=2e-5, atol=0, check_dtype=False)
    torch.testing.assert_close(objectives.scales.equalised(b, s)[on], case["scales"][on], rtol=2e-5, atol=0, check_dtype=False)


@pytest.mark.evidence("derived", "flash_grpo")
def test_flash_weights_have_mean_1_and_undo_kappa() -> None:
    _, b, s = numbers(laws.wan_sde(), schedules.wan(20), list(range(10)))
    weight = objectives.scales.rectified(b, s)
    assert float(weight.mean()) == pytest.approx(1)
    product = weight * objectives.scales.kappa(b, s)
    torch.testing.assert_close(product, product[:1].expand(10))


# ------------------------------------------------------------------ advantages
@pytest.mark.evidence("golden", "dance_grpo")
@pytest.mark.parametrize("case", cases("dancegrpo_advantage_bestofn", lambda c: "bestofn" in c.args))
def test_best_of_n_is_dancegrpos(case: Case) -> None:
    a = case.args
    streams = []
    for name in ("vq", "mq"):
        ours = advantage.zscore(case[f"{name}_rewards"].view(a["groups"], -1), ddof=1, eps=1e-8).flatten()
        close(ours, case[f"{name}_advantages"])
        streams.append(a[f"{name}_coef"] * ours)
    keep = advantage.extremes(sum(streams)[None], a["bestofn"])[0]  # pyright: ignore[reportIndexIssue]
    assert sorted(keep.nonzero().flatten().tolist()) == sorted([*case["top_indices"].tolist(), *case["bottom_indices"].tolist()])


def test_what_could_not_be_scored_is_neither_best_nor_worst() -> None:
    score = torch.tensor([[3.0, torch.nan, 1.0, 2.0, 5.0], [torch.nan, torch.nan, 1.0, torch.nan, torch.nan]])
    assert advantage.extremes(score, 2).tolist() == [[False, False, True, False, True], [False, False, True, False, False]]


@pytest.mark.parametrize("n", [0, 5])
def test_best_of_too_many_is_a_sentence(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} in rows of 4"):
        advantage.extremes(torch.zeros(1, 4), n)


@pytest.mark.evidence("golden", "ddpo")
@pytest.mark.parametrize("case", cases("ddpo_stat_tracker"))
def test_the_tracker_is_ddpos(case: Case) -> None:
    state: dict[str, object] = {}
    for ids, r, expected in zip(case["prompt_ids"], case["rewards"], case["advantages"], strict=True):
        names = ids.unique()
        width = max(int((ids == k).sum()) for k in names)
        table = torch.full((len(names), width), torch.nan, dtype=torch.float64)
        for row, k in zip(table, names, strict=True):
            row[: int((ids == k).sum())] = r[ids == k].double()
        ours, state = advantage.tracked(
            table, [str(int(k)) for k in names], state, case.args["buffer_size"], case.args["min_count"]
        )
        for row, k in zip(ours, names, strict=True):
            torch.testing.assert_close(row[: int((ids == k).sum())], expected[ids == k], rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.evidence("derived", "g2rpo")
@pytest.mark.parametrize("case", cases("g2rpo_step_mgai", lambda c: "granular_list" in c.args))
def test_granular_advantages_are_g2rpos(case: Case) -> None:
    """Their table of rewards [granularity, groups * 12, step], put on the leaves of a comb."""
    strides, k, groups = case.args["granular_list"], case.args["num_generations"], case.args["groups"]
    r = case["rewards"]
    steps = r.shape[-1]
    plan = comb(schedules.linear_shift(16, 3.0), laws.flow_sde(0.7), range(steps), k, strides)
    leaves = torch.full((groups, len(plan.leaves)), torch.nan)
    teeth = {int(e): i for i, e in enumerate(plan.edges)}
    for j, leaf in enumerate(plan.leaves.tolist()):
        node = leaf
        while node not in teeth and plan.parent[node] >= 0:
            node = int(plan.parent[node])
        if node not in teeth:
            continue  # the spine's own end
        at, child = divmod(teeth[node], k)
        stride = 0 if plan.label is None else int(plan.label[leaf]).bit_length() - 1
        leaves[:, j] = r.view(len(strides), groups, k, steps)[stride, :, child, at]
    if len(strides) == 1:
        with pytest.raises(ValueError, match="no labels"):
            advantage.granular(plan, leaves)
        return
    ours = advantage.granular(plan, leaves)[:, plan.edges].view(groups, steps, k).transpose(1, 2).reshape(groups * k, steps)
    close(ours, case["advantages"])
    close(ours.clamp(-5, 5), case["clamped"])


@pytest.mark.evidence("derived", "g2rpo")
@pytest.mark.parametrize("case", cases("g2rpo_step_mgai", lambda c: "granularity" in c.args))
def test_a_comb_takes_g2rpos_levels(case: Case) -> None:
    k, g = case.args["eta_step"], case.args["granularity"]
    whole = schedules.linear_shift(16, 3.0)
    plan = comb(whole, laws.flow_sde(0.7), [k], 1, (g,))
    way, node = [], int(plan.edges[0])
    children = {int(p): n for n, p in enumerate(plan.parent.tolist()) if n > node - 1}
    while True:
        way.append(float(plan.sigma[node]))
        if node not in children:
            break
        node = children[node]
    theirs = case["schedule"][case["step_indices"]].tolist()
    # their arrays are rounded to three decimals; their image is the clean prediction at the last state, a jump to 0
    assert way[:-1] == pytest.approx(theirs, abs=6e-4) and way[-1] == 0


# ------------------------------------------------------------------ trees
def arrays(case: Case) -> Plan:
    """A tree of noisy steps with the case's parents."""
    depth = case["depth"].double()
    sigma = 1 - depth / (depth.max() + 1)
    return Plan(sigma, case["parent"], case["parent"] >= 0, laws.dance_sde(0.3), 0.9)


@pytest.mark.evidence("golden", "branch_grpo")
@pytest.mark.parametrize("case", cases("branchgrpo_tree", lambda c: not c.id.startswith("split_points")))
def test_node_rewards_and_advantages_are_branchgrpos(case: Case) -> None:
    plan = arrays(case)
    assert sorted(case["dfs_leaf_index"].tolist()) == plan.leaves.tolist()
    r = torch.full((1, len(plan.leaves)), torch.nan)
    r[0, torch.searchsorted(plan.leaves, case["dfs_leaf_index"])] = case["dfs_leaf_reward"]
    for fusion, suffix, tolerance in (("mean", "uniform", 1e-6), ("softmax", "probweighted", 1e-6)):
        nodes = advantage.node_rewards(plan, r, fusion=fusion, log_prob=case["log_prob"][plan.edges][None])  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(nodes[0], case[f"node_reward_{suffix}"].double(), rtol=1e-5, atol=tolerance)
        ids = advantage.peers(plan)
        for k in ids[ids >= 0].unique():
            ours = advantage.zscore(nodes[:, ids == k], ddof=1, eps=1e-8)[0]
            torch.testing.assert_close(ours, case[f"node_advantage_{suffix}"][ids == k], rtol=1e-5, atol=2e-5)


@pytest.mark.evidence("golden", "branch_grpo")
@pytest.mark.parametrize("case", cases("branchgrpo_tree", lambda c: c.id.startswith("tree")))
def test_the_tree_is_branchgrpos(case: Case) -> None:
    a = case.args
    points = [int(i) for i in a["split_points"].split(",")]
    grid = schedules.linear_shift(a["N"], a["shift"])
    noisy = (
        windows.recurring(a["N"], a["mix_sde_window_size"], a["depth_pruning_slide_interval"], points)
        if a["mix_ode_sde_tree"]
        else range(a["N"])
    )
    plan = tree(grid, laws.dance_sde(a["eta"]), noisy, dict.fromkeys(points, 2))
    assert torch.equal(plan.parent, case["parent"]) and torch.equal(plan.depth, case["depth"])
    assert torch.equal(plan.noisy, case["is_sde_edge"] == 1)
    close(grid, case["sigmas"])
    # the path's density: theirs is taken before the state is rounded to bfloat16, ours after
    leaf = case["leaf_index"].tolist()
    for i, node in enumerate(leaf):
        total = 0.0
        while plan.parent[node] >= 0:
            total += float(case["log_prob"][node])
            node = int(plan.parent[node])
        assert total == pytest.approx(float(case["path_log_prob"][i]), abs=1e-4)
    # quiet steps of theirs are ours
    for child in (~plan.noisy & (plan.parent >= 0)).nonzero().flatten().tolist():
        x, at, to = case["latent"][plan.parent[child]], grid[plan.depth[child] - 1], grid[plan.depth[child]]
        level = int(float(at.float()) * 1000) / 1000
        u = x.tanh() * (1 - level) + 0.5 * x * level
        n = tuple(t.view(1) for t in paths.flow.coefficients(at, to, *laws.ode()(at, to, 0.9)))
        ours = step(x[None], u[None], *n)[0].bfloat16().float()
        torch.testing.assert_close(ours, case["latent"][child], rtol=1e-2, atol=1e-3)  # one bfloat16 step


@pytest.mark.parametrize("case", cases("branchgrpo_tree", lambda c: c.id.startswith("split_points")))
def test_split_points_are_branchgrpos(case: Case) -> None:
    a = case.args
    if a["tree_split_points"] is None and a["tree_split_rounds"]:
        assert windows.evenly(a["tree_split_rounds"], a["total_steps"]) == case["points"].tolist()
    elif a["tree_split_points"] is None:
        with pytest.raises(ValueError, match="0 branch points"):
            windows.evenly(0, a["total_steps"])
    else:
        asked = [int(i) for i in a["tree_split_points"].split(",")]
        inside = [i for i in asked if 0 <= i < a["total_steps"]]
        assert set(inside) <= set(case["points"].tolist())
        if len(inside) < len(asked):
            # they move points outside the schedule to its ends in silence
            with pytest.raises(ValueError, match="does not exist"):
                tree(
                    schedules.linear_shift(a["total_steps"]), laws.dance_sde(0.3), range(a["total_steps"]), dict.fromkeys(asked, 2)
                )


def test_correlated_split_noise_has_unit_variance_and_the_papers_correlation() -> None:
    """BranchGRPO's text: (xi + s eta) / sqrt(1 + s^2), of which its code has only a four times wider draw."""
    from flowrl.samplers import own_share

    plan = tree(schedules.linear_shift(3), laws.dance_sde(0.3), [0, 1, 2], {0: 2}, mix=own_share(0.5))
    source = Source(0, 0)
    shape = (20000,)
    ro = rollout(plan, lambda x, sigma, slot: 0 * x, 1, shape, lambda slot, node: source.normal(shape, slot, node))
    pair = plan.edges[:2]
    a, b, s = (t.float() for t in plan.coefficients(pair))
    z = (ro.states(pair)[0] - step(ro.states(plan.parent[pair])[0], torch.zeros(2, *shape), a, b, s)) / s[:, None]
    assert z.std(1).tolist() == pytest.approx([1, 1], abs=0.02)
    assert float((z[0] * z[1]).mean()) == pytest.approx(1 / (1 + 0.5**2), abs=0.02)


@pytest.mark.evidence("derived", "flow_grpo_fast", "adv_grpo")
@pytest.mark.parametrize("case", cases("flow_grpo_window_sampler_seed_ema", lambda c: c.id.startswith("noise_levels")))
def test_the_stochastic_window_is_flow_grpos(case: Case) -> None:
    low, high = (int(i) for i in case.id.split("/")[1].split("-"))
    plan = tree(schedules.sd3(10), laws.cps(0.8), range(low, high), {})
    assert torch.equal(plan.noisy[1:], case["levels"] > 0)


@pytest.mark.evidence("derived", "flow_grpo_fast", "adv_grpo")
@pytest.mark.parametrize("case", cases("flow_grpo_window_sampler_seed_ema", lambda c: "starts" in c))
def test_a_jumping_window_stays_where_theirs_can_be(case: Case) -> None:
    """Which start is drawn when is Python's generator there and a hash here; the set of starts is the same."""
    size, (low, high) = case.args["sde_window_size"], case.args["sde_window_range"]
    ours = {windows.jumping(i, low, high, size).start for i in range(500)}
    assert ours == set(range(low, high - size + 1)) >= set(case["starts"].tolist())


def test_qwens_frozen_window_moves_here() -> None:
    starts = {
        int(row[4]) for row in load("flow_grpo_window_sampler_seed_ema").cases[8]["table"] if row[:4].tolist() == [2, 0, 5, 0]
    }
    assert starts == {3}  # theirs, reseeded before every draw
    assert len({windows.jumping(i, 0, 5, 2).start for i in range(50)}) == 4


class One:
    """A policy that is one parameter."""

    adapted = False

    def __init__(self, value: Tensor) -> None:
        self.parameter = torch.nn.Parameter(value.clone())

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [("w", self.parameter)]


@pytest.mark.parametrize("case", cases("flow_grpo_window_sampler_seed_ema", lambda c: c.id == "ema"))
def test_an_averaged_weight_set_is_flow_grpos(case: Case) -> None:
    decay = methods.warming(case.args["decay"], case.args["update_step_interval"])
    policy = One(case["init"])
    weights = Weights(policy, {"average": WeightSet("ema", decay)})  # pyright: ignore[reportArgumentType]
    for s, (value, expected) in enumerate(zip(case["params"], case["ema"], strict=True)):
        policy.parameter.data.copy_(value)
        weights.follow(s, {})
        close(weights.stored["average"][0], expected)
        if (s + 1) % case.args["update_step_interval"] == 0:
            assert decay(s) == pytest.approx(float(case["decays"][s]))
