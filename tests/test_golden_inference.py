"""Inference-time methods against the numbers of their authors, or of the papers' formulas where no code could run."""

from __future__ import annotations

import pytest
import torch
from golden_reader import load
from torch import Tensor

from flowrl.inference import RankSearch, chances, direction, kl_bound, rlg, success

ZO = "zo_ranksgd@13d5a26d"


def equal(actual: Tensor, expected: Tensor) -> None:
    """To 1e-9: the sets are float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 1.6, 2.5])
def test_rlg_of_two_gaussians_is_the_score_of_their_geometric_mean(w: float) -> None:
    (case,) = load("inf_rlg_score").cases
    base, tuned = ((case[name] - case["x"]) / case["var"] for name in ("mu_base", "mu_rl"))
    equal(rlg(base, tuned, w), case[f"score_w{w}"])


def test_best_of_n() -> None:
    (case,) = load("inf_best_of_n").cases
    equal(torch.stack([success(case["p"], int(n)) for n in case["N"]], 1), case["pass_at_n"])
    equal(torch.tensor([kl_bound(int(n)) for n in case["N"]], dtype=torch.float64), case["kl_bound"])


def test_svdds_chances() -> None:
    (case,) = load("inf_svdd").cases
    equal(chances(case["value"], case.args["alpha"]), case["weights"])
    assert chances(case["value"], 0.0).argmax(-1).equal(case["argmax"])
    assert chances(case["value"], 0.0).sum(-1).eq(1).all()


def test_zo_ranksgds_directions_average_until_a_line_search_improves() -> None:
    (case,) = load("misc_zo_ranksgd").cases
    search = RankSearch(case["start"], spread=case.args["mu"], shown=case["codes"].shape[1], compat=ZO)
    for codes, rank, expected in zip(case["codes"], case["rank"], case["direction"], strict=True):
        search = search.tell(codes, [i - 1 for i in rank.tolist() if i])
        assert search.mean is not None
        equal(search.mean, expected)
        asked = search.ask()
        equal(asked[-2], codes[rank[0] - 1])
        equal(asked[-1], case["start"])
        last, search = asked, search.tell(asked, [len(asked) - 1])  # no better one: the average goes on
    equal(last[:-2], case["line_search"])


def test_zo_ranksgds_direction_is_ours_and_the_mean_of_the_listed_codes() -> None:
    """What their weights add to the comparisons won and lost, on their own codes."""
    (case,) = load("misc_zo_ranksgd").cases
    codes, ranking = case["codes"][0], [i - 1 for i in case["rank"][0].tolist()]
    theirs, ours = (direction(codes, case["start"], ranking, compat) for compat in (ZO, None))
    equal(theirs, case["direction"][0])
    extra = (codes[ranking] - case["start"]).sum(0) / 15
    equal(theirs - ours, extra)
