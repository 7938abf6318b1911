"""Advantages and selections against the numbers of the systems that published them (tests/golden/README.md)."""

from __future__ import annotations

import math

import pytest
import torch
from golden_reader import Case, load
from test_advantage import outcome
from test_golden import cases
from torch import Tensor

from flowrl import advantage
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, chains, laws, schedules
from flowrl.types import Credit, Outcome


def table(values: Tensor, groups: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Values of samples as rows of their groups, NaN where a group is smaller than the largest, and who is in each."""
    members = [(groups == g).nonzero().flatten() for g in groups.unique()]
    rows = torch.full((len(members), max(map(len, members))), math.nan, dtype=torch.float64)
    for row, mine in zip(rows, members, strict=True):
        row[: len(mine)] = values[mine].double()
    return rows, members


def back(rows: Tensor, members: list[Tensor]) -> Tensor:
    out = torch.full((sum(map(len, members)),), math.nan, dtype=torch.float64)
    for row, mine in zip(rows, members, strict=True):
        out[mine] = row[: len(mine)].double()
    return out


def same(ours: Tensor, theirs: Tensor, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """Ours are float32 results of float64 statistics."""
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", cases("adv_flow_grpo_tracker"))
def test_the_trackers_other_types_are_flow_grpos(case: Case) -> None:
    rows, members = table(case["rewards"], case["prompt_id"])
    same(back(advantage.raw(rows), members), case["adv_rwr"])
    same(back(advantage.best(rows), members), case["adv_sft"])
    pairs = advantage.best_worst(rows, compat="flow_grpo@ac4c86e")
    same(back(pairs, members), case["adv_dpo"])
    ours = advantage.best_worst(rows)
    equal = torch.tensor([len(set(row[~row.isnan()].tolist())) == 1 for row in rows])
    assert equal.any() and (ours[equal] == 0).all() and torch.equal(ours[~equal], pairs[~equal])


@pytest.mark.parametrize("case", cases("adv_identities"))
def test_the_identities_hold(case: Case) -> None:
    r = case["reward"][None]
    for ours, name in (
        (advantage.center(r), "drgrpo"),
        (advantage.rloo(r), "rloo"),
        (advantage.rloo(r), "rloo_direct"),
        (advantage.zscore(r), "z0"),
        (advantage.zscore(r, ddof=1, eps=1e-6), "z1"),
    ):
        same(ours[0], case[name])


@pytest.mark.parametrize("case", cases("adv_verl_outcome"))
def test_outcome_advantages_are_verls(case: Case) -> None:
    rows, members = table(case["reward"], case["group_id"])
    eps = case.args["eps"]
    alone = torch.isin(torch.arange(len(case["reward"])), torch.cat([m for m in members if len(m) == 1]))
    assert int(alone.sum()) == 1  # theirs returns the reward of a group of one, ours 0
    for ours, name in (
        (advantage.zscore(rows, ddof=1, eps=eps), "grpo"),
        (advantage.rloo(rows), "rloo"),
    ):
        same(back(ours, members)[~alone], case[name][~alone], rtol=2e-6, atol=1e-6)
        assert (back(ours, members)[alone] == 0).all()
    same(back(advantage.center(rows), members)[~alone], case["drgrpo"][~alone])
    same(back(advantage.gpg(rows), members)[~alone], case["gpg"][~alone], rtol=2e-6)
    several = case["group_id"] != 3
    rows, members = table(case["reward"][several], case["group_id"][several])
    same(back(advantage.pass_at_k(rows, eps=eps), members), case["passk"], rtol=2e-6)


@pytest.mark.parametrize("case", cases("adv_verl_omni_flow_grpo"))
def test_zscores_are_verl_omnis(case: Case) -> None:
    """Their table repeats over steps: one row a prompt holds its samples at all steps."""
    scores, steps = case["scores"], case["scores"].shape[1]
    rows, members = table(scores.flatten(), case["prompt_id"].repeat_interleave(steps))
    for norm, std in ((1, "global"), (1, "group"), (0, "global"), (0, "group")):
        z = advantage.zscore(rows, ddof=case.args["ddof"], eps=case.args["eps"], std=std)  # pyright: ignore[reportArgumentType]
        ours = z if norm else advantage.center(rows)
        same(back(ours, members).view_as(scores), case[f"adv_norm{norm}_global{int(std == 'global')}"])


@pytest.mark.evidence("golden", "mc_grpo")
@pytest.mark.parametrize("case", cases("adv_mc_grpo"))
def test_median_advantages_are_mc_grpos(case: Case) -> None:
    code = "MC-GRPO@da07745"
    r = case["rewards"]
    same(advantage.mc(r, renormalise=True, compat=code), case["adv_gsm"])
    same(advantage.mc(r, compat=code), case["adv_math"])
    same(advantage.mc(case["rewards_even"], compat=code), case["adv_even"])
    dropped = advantage.mc(r, drop=True).isnan()
    # which of several equal rewards is left out is their backend's choice
    assert (dropped.sum(1) == 1).all() and torch.equal(r[dropped], r[case["dropped_gsm"]])
    ours, theirs = advantage.mc(r), case["adv_math"]
    wild = theirs.abs().amax(1) > 100
    assert wild.any() and ours.abs().max() < math.sqrt(r.shape[1])
    same(ours[~wild], theirs[~wild])


@pytest.mark.evidence("golden", "ngrpo")
@pytest.mark.parametrize("case", cases("adv_ngrpo"))
def test_imagined_samples_are_ngrpos(case: Case) -> None:
    several = case["group_id"] != 3  # a group of one, which theirs gives its reward
    rows, members = table(case["reward"][several], case["group_id"][several])
    for copies, top, name in ((1, 1.0, "add1"), (2, 1.0, "add2"), (1, 2.0, "max2")):
        ours = advantage.ngrpo(rows, top=top, copies=copies, ddof=case.args["ddof"], eps=case.args["eps"])
        same(back(ours, members), case[f"adv_{name}"][several], rtol=2e-6, atol=1e-6)


@pytest.mark.evidence("golden", "dcpo")
@pytest.mark.parametrize("case", cases("adv_dcpo"))
def test_smooth_standardisation_is_dcpos(case: Case) -> None:
    state: dict[str, list[float]] = {}
    for k, r in enumerate(case["rewards"]):
        rows, members = table(r, case["group_id"])
        names = [str(p) for p in range(len(members))]
        ours, state = advantage.dcpo(rows, names, state)
        same(back(ours, members), case["adv"][k], rtol=2e-5, atol=2e-6)
        same(torch.tensor([state[n][1] for n in names]), case["cum_mean"][k])
        same(torch.tensor([state[n][2] for n in names]), case["cum_std"][k])


@pytest.mark.evidence("golden", "spo")
@pytest.mark.parametrize("case", cases("adv_spo"))
def test_the_value_tracker_is_spos(case: Case) -> None:
    names = [str(p) for p in range(case["reward"].shape[1])]
    state = {n: advantage.spo_start(s) for n, s in zip(names, case["offline_scores"], strict=True)}
    same(torch.tensor([state[n] for n in names]), torch.stack([case["alpha0"], case["beta0"]], 1))
    for k, r in enumerate(case["reward"]):
        same(advantage.spo_weights(names, state, case.args["explore"]), case["sample_weight"][k])
        keep = (case.args["rho_min"], case.args["rho_max"])
        ours, state = advantage.spo(r[:, None], names, state, case["D"][k], case.args["D_half"], keep)
        same(ours[:, 0], case["adv"][k], rtol=2e-6, atol=1e-6)
        same(torch.tensor([state[n] for n in names]), torch.stack([case["alpha"][k], case["beta"][k]], 1))


@pytest.mark.parametrize("case", cases("adv_stratified_san"))
def test_strata_are_stratified_grpos(case: Case) -> None:
    rows, members = table(case["reward"], case["group_id"])
    strata = table(case["stratum"], case["group_id"])[0].long()
    for share, name in ((1.0, "san"), (0.0, "global"), (case.args["alpha"], "blend")):
        ours = advantage.san(rows, strata, share=share, ddof=case.args["ddof"], eps=case.args["eps"])
        same(back(ours, members), case[name])


@pytest.mark.parametrize("case", cases("adv_riskpo"))
def test_the_risk_of_bundles_is_riskpos(case: Case) -> None:
    r, members = table(case["reward"], case["question"])
    bundle = torch.tensor([int(case["bundle"][m[0]]) for m in members])
    same(advantage.earned(r, bundle), case["paper_scores"])
    mixed = advantage.Risk(mix=case.args["w_mix"], baseline=False)
    for name, ours in (
        ("first_step_uniform", advantage.riskpo(r, bundle)),
        ("track_uniform", advantage.riskpo(r, bundle, (1.4, 2.6))),
        ("mix_uniform_nobase", advantage.riskpo(r, bundle, (1.4, 2.6), mixed)),
        ("mix_summean", advantage.riskpo(r, bundle, (1.4, 2.6), mixed, "deviation")),
    ):
        same(back(ours, members), case[f"adv_{name}"], rtol=2e-5, atol=1e-6)


@pytest.mark.evidence("derived", "pref_grpo")
@pytest.mark.parametrize("case", cases("adv_pref_grpo_winrate"))
def test_win_rates_are_pref_grpos(case: Case) -> None:
    rate = advantage.win_rate(case["pref"][None], decimals=3)
    same(rate[0], case["win_rate"])
    same(advantage.zscore(rate, ddof=1, eps=1e-8)[0], case["adv"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", cases("adv_gated_reward"))
def test_gated_rewards_are_summed_where_the_outcome_passes(case: Case) -> None:
    further = case["step_rewards"].T[:, None]
    ours = advantage.gated(case["outcome"][None], further, float(case["threshold"]))
    torch.testing.assert_close(ours[0], case["total"], rtol=1e-12, atol=0)
    # the wrapper: the same sums reach what it wraps
    scores = {str(k): Scores(r.float(), torch.isfinite(r)) for k, r in enumerate([case["outcome"][None], *further])}
    seen: list[Tensor] = []

    def look(of: Outcome) -> Credit:
        seen.append(advantage.weighed(of)[0])
        return advantage.Group().apply(of, {})[0]

    plan = chains(schedules.linear_shift(4), laws.flow_sde(0.7), [0], len(case["outcome"]))
    gate = advantage.Gated(advantage.lift(look), "0", float(case["threshold"]))
    gate.apply(outcome(plan, scores, dict.fromkeys(scores, 1.0)), gate.init())
    same(seen[0][0], case["total"])


def prefixes(tokens: Tensor, groups: Tensor, r: Tensor) -> list[tuple[Plan, Tensor, list[list[int]]]]:
    """One plan a group: the tree of its responses' prefixes, rewards by leaf, and each response's nodes."""
    trees = []
    for g in groups.unique():
        mine = (groups == g).nonzero().flatten().tolist()
        nodes: dict[tuple[int, ...], int] = {(): 0}
        parent, depth = [-1], [0]
        ways = []
        for i in mine:
            way = []
            for t in range(tokens.shape[1]):
                key = tuple(tokens[i, : t + 1].tolist())
                if key not in nodes:
                    nodes[key] = len(parent)
                    parent.append(nodes[key[:-1]])
                    depth.append(t + 1)
                way.append(nodes[key])
            ways.append(way)
        # equal responses meet in their last token; each has a leaf of its own below it
        tips = [way[-1] for way in ways]
        above = torch.tensor([*parent, *tips])
        levels = torch.tensor([*depth, *[tokens.shape[1] + 1] * len(ways)], dtype=torch.float64)
        plan = Plan(1 - levels / 8, above, above >= 0, laws.dance_sde(0.3), 0.9)
        assert plan.leaves.tolist() == list(range(len(parent), len(above)))
        rewards = r[mine].double()[None]
        trees.append((plan, rewards, ways))
    return trees


@pytest.mark.parametrize("case", cases("adv_tempo_tree_td"))
@pytest.mark.parametrize("norm", [True, False])
def test_tree_differences_are_tempos(case: Case, norm: bool) -> None:
    """An edge of ours has the mean of theirs over the responses that share the token; theirs is 0 at padding, which is left out."""
    groups = case["group_id"]
    for g, (plan, r, ways) in zip(groups.unique(), prefixes(case["tokens"], groups, case["reward"]), strict=True):
        ours = advantage.tempo(plan, r, norm=norm, eps=case.args["eps"])[0]
        theirs, mask = case[f"adv_norm{int(norm)}"][groups == g], case["mask"][groups == g]
        compared = 0
        for node in range(1, int(plan.leaves[0])):
            at = [(i, way.index(node)) for i, way in enumerate(ways) if node in way]
            if all(mask[i, t] for i, t in at):
                same(ours[node], torch.stack([theirs[i, t] for i, t in at]).double().mean(), rtol=1e-5, atol=1e-5)
                compared += 1
        assert compared > 5


@pytest.mark.parametrize("case", cases("sel_d3s"))
def test_the_kept_samples_are_d3ss(case: Case) -> None:
    assert torch.equal(advantage.d3s(case["adv"][None], int(case["n_keep"]))[0], case["keep"])


@pytest.mark.evidence("derived", "parrot")
@pytest.mark.parametrize("case", cases("sel_parrot_pareto"))
def test_the_front_is_parrots(case: Case) -> None:
    assert torch.equal(advantage.front(case["rewards"].T[:, None])[0], case["pareto"])


@pytest.mark.parametrize("case", cases("obj_pama"))
def test_the_nearest_combination_is_pamas(case: Case) -> None:
    a = case["adv"].T
    noon = advantage.noon(a, case["ratio"], case.args["eps"])
    torch.testing.assert_close(noon.T, case["noon"], rtol=1e-12, atol=0)
    torch.testing.assert_close(advantage.min_norm(noon), case["min_norm_noon"], rtol=1e-12, atol=0)
    torch.testing.assert_close(advantage.min_norm(a), case["min_norm_raw"], rtol=1e-12, atol=0)


def test_a_zscore_of_nfts_samples_is_verl_omnis() -> None:
    case = load("adv_nft_probability").cases[0]
    rows, members = table(case["reward"], case["prompt_id"])
    for std, name in (("global", "adv_global1"), ("group", "adv_global0")):
        ours = advantage.zscore(rows, ddof=1, eps=1e-4, std=std)  # pyright: ignore[reportArgumentType]
        same(back(ours, members), case[name], rtol=1e-5, atol=2e-6)
