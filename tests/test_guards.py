"""Guards against reward hacking: what they see, when they speak, and where a run ends that they stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyrun
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.guards import Look, changed, fallen, suspects, verdict
from flowrl.looks import looks, spread, thumbs
from flowrl.recipe import GuardSpec
from flowrl.recipes.run import train

FLAT = {"saturation": 0.5}


def seen(*means: float, trained: tuple[float, ...] = (), look: tuple[float, ...] = ()) -> list[Look]:
    """Evaluations by one judge of four captions that differ, with a reward that rises unless it is given."""
    return [
        Look(
            i,
            {"judge": [m - 0.1, m + 0.1, m, m + 0.01 * i]},
            trained[i] if trained else float(i),
            {"saturation": look[i]} if look else FLAT,
        )
        for i, m in enumerate(means)
    ]


def test_a_judge_that_falls_while_the_reward_rises_is_told_of() -> None:
    (said,) = suspects(GuardSpec(), seen(0.5, 0.9, 0.3), ["judge"])
    assert "judge fell from 0.9025 (iteration 1) to 0.305" in said and "rose from 1 to 2" in said
    assert not suspects(GuardSpec(), seen(0.5, 0.9, 0.3, trained=(0, 2, 1)), ["judge"]), "the reward fell as well"
    assert not suspects(GuardSpec(), seen(0.3, 0.5, 0.9), ["judge"]), "the judge rose"
    assert not suspects(GuardSpec(), seen(0.5, 0.9, 0.3), []), "nobody judges that is not trained"


def test_a_fall_within_the_noise_of_the_captions_is_none() -> None:
    then, now = [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.9]
    assert 0 < fallen(then, now) < 1
    assert fallen([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]) == math.inf and fallen([1.0, 2.0], [1.0, 2.0]) == 0
    assert math.isnan(fallen([1.0, math.nan], [1.0, 0.0])), "one caption has no spread"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=20))
def test_falling_back_is_falling_with_the_other_sign(pairs: list[tuple[float, float]]) -> None:
    then, now = [a for a, _ in pairs], [b for _, b in pairs]
    assert fallen(then, now) == pytest.approx(-fallen(now, then), nan_ok=True)


def test_pictures_that_look_another_way_are_told_of() -> None:
    spec = GuardSpec(change=0.5)
    assert suspects(spec, seen(0.5, 0.5, look=(0.4, 0.61)), []) == ["saturation went from 0.4 to 0.61"]
    assert not suspects(spec, seen(0.5, 0.5, look=(0.4, 0.59)), [])
    assert not suspects(GuardSpec(change=None), seen(0.5, 0.5, look=(0.4, 4.0)), [])
    assert changed(0.0, 0.0) == 0 and changed(0.0, 1.0) == math.inf and changed(2.0, 1.0) == 0.5


def test_guards_speak_after_so_many_bad_evaluations_in_a_row() -> None:
    bad = seen(0.9, 0.9, 0.3, 0.3)
    assert [bool(verdict(GuardSpec(patience=2), bad[:n], ["judge"])) for n in range(1, 5)] == [False, False, False, True]
    assert [bool(verdict(GuardSpec(patience=1), bad[:n], ["judge"])) for n in range(1, 5)] == [False, False, True, True]
    assert not verdict(GuardSpec(patience=2), seen(0.9, 0.3, 0.9, 0.3), ["judge"])
    assert not verdict(GuardSpec(act="off"), bad, ["judge"])


def test_looks_of_known_pictures() -> None:
    red, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 90, np.uint8)
    red[..., 0] = 200
    half = grey.copy()
    half[:, :, 4:] = 250
    assert looks(red)["saturation"] == [1] and looks(grey)["saturation"] == [0] and looks(red * 0)["saturation"] == [0]
    assert looks(grey)["entropy"] == [0] and looks(half)["entropy"] == [1] and looks(grey)["edges"] == [0]
    assert looks(half)["edges"][0] == pytest.approx(160 / 255 / 7)
    assert looks(red[:, :1, :1])["edges"] == [0]
    video = np.stack([red, grey], 1)
    assert looks(video)["saturation"] == [0.5]


def test_the_spread_of_a_group_is_the_mean_distance_of_its_pairs() -> None:
    features = torch.tensor([[[0.0], [3.0], [9.0]], [[1.0], [1.0], [5.0]]])
    assert spread(features, torch.ones(2, 3, dtype=torch.bool)) == pytest.approx((3 + 6 + 9 + 0 + 4 + 4) / 6)
    assert spread(features, torch.tensor([[True, True, False], [True, False, False]])) == 3
    assert math.isnan(spread(features, torch.tensor([[True, False, False]] * 2)))
    assert thumbs(torch.full((2, 16, 24, 3), 51, dtype=torch.uint8)).equal(torch.full((2, 192), 0.2))


def dark(images: np.ndarray, prompts: Any, metadata: Any) -> list[float]:
    """Easy to hack: black is best."""
    return (-images.mean((1, 2, 3)) / 255).tolist()


CHANGES = {
    "rewards": (), "evaluate.every": 1, "evaluate.quick": 2, "run.iterations": 30, "optim.lr": 0.1, "guard.patience": 1,
    "method.args.updates": 2, "evaluate.rewards": (tinyrun.BRIGHT,), "run.save_every": 100, "run.keep": 1,
}  # fmt: skip


def test_a_run_that_is_hacked_is_stopped_and_ends_with_its_best_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {}
    for act in ("warn", "stop"):
        with caplog.at_level("WARNING", "flowrl"):
            done = train(tinyrun.recipe(tmp_path / act, {**CHANGES, "guard.act": act}), rewards={"dark": dark})
        told[act] = (done, json.loads((tmp_path / act / "result.json").read_text()), tinyrun.rows(tmp_path / act))
    done, result, rows = told["stop"]
    stopped = result["stopped"]
    assert "this looks like reward hacking" in caplog.text and "fell" in " ".join(stopped["why"])
    assert len(rows) == stopped["at"] < 30 and done.iterations == stopped["kept"] < stopped["at"]
    free, whole, _ = told["warn"]
    assert free.iterations == 30 and "stopped" not in whole
    # by the judge: the guarded run ends where it was best, the other one far below
    assert result["after"]["score"] > whole["after"]["score"]
    best = max(row["heldout/score"] for row in rows)
    kept = next(row["heldout/score"] for row in rows if row["iteration"] == stopped["kept"] - 1) if stopped["kept"] else best
    assert kept == best or stopped["kept"] == 0
    assert any("Stopped at iteration" in note for note in result["notes"])
    assert "by its guards" in (tmp_path / "stop" / "report.html").read_text()
    assert "Guards" in (tmp_path / "stop" / "report.html").read_text()


def test_what_guards_remember_is_resumed_exactly(tmp_path: Path) -> None:
    changes = {**CHANGES, "guard.act": "warn", "run.iterations": 4, "rewards": ({"name": tinyrun.BRIGHT},), "run.save_every": 1}
    with tinyrun.one_thread():
        train(tinyrun.recipe(tmp_path / "whole", changes))
        train(tinyrun.recipe(tmp_path / "parts", {**changes, "run.iterations": 2}))
        train(resume=tmp_path / "parts", overrides={"run.iterations": 4})
    tinyrun.same_run(tmp_path / "whole", tmp_path / "parts")
    assert len(tinyrun.final(tmp_path / "whole")[1]["books"]["history"]) == 5


def test_trained_rewards_are_seen_beside_the_judges(tmp_path: Path) -> None:
    train(tinyrun.recipe(tmp_path / "run", {"evaluate.rewards": ("jpeg_compressibility",), "evaluate.every": 1}))
    assert all(
        f"heldout/{name}" in row for row in tinyrun.rows(tmp_path / "run") for name in (tinyrun.BRIGHT, "jpeg_compressibility")
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["judge"] == "jpeg_compressibility" and [j["name"] for j in result["judges"]] == [tinyrun.BRIGHT]


def test_without_a_judge_the_last_evaluation_that_looked_right_is_kept(tmp_path: Path) -> None:
    changes = {**CHANGES, "evaluate.rewards": (), "guard.act": "stop", "guard.change": 0.2}
    train(tinyrun.recipe(tmp_path / "run", changes), rewards={"dark": dark})
    rows = tinyrun.rows(tmp_path / "run")
    stopped = json.loads((tmp_path / "run" / "result.json").read_text())["stopped"]
    # the trained reward is highest where it is hacked most: that is not the best
    assert rows[-1]["heldout/score"] > rows[0]["heldout/score"] and rows[-1]["guard/suspects"] > 0
    assert stopped["kept"] < stopped["at"] and (not stopped["kept"] or rows[stopped["kept"] - 1]["guard/suspects"] == 0)
