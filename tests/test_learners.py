"""Rewards that learn, rewards that compare and rewards that look at references, in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyrun
import torch
from PIL import Image

from flowrl.recipes.run import train
from flowrl.rewards import TrainableReward, referenced
from flowrl.samplers import chains, comb, laws, schedules, tree

SIGMAS = schedules.sd3(4, 3.0)


def trained(folder: Path, *names: str, **changes: Any) -> list[dict[str, Any]]:
    train(tinyrun.recipe(folder, {"rewards": tuple({"name": name} for name in names), "evaluate.every": 0, **changes}))
    return tinyrun.rows(folder)


def test_a_reward_that_learns_is_taught_after_the_scores_and_may_keep_an_iteration_for_itself(tmp_path: Path) -> None:
    assert isinstance(tinyrun.learner, TrainableReward)
    rows = trained(tmp_path / "run", tinyrun.LEARNER, **{"run.iterations": 3})
    assert rows[0]["learner/bar"] == 0 < rows[1]["learner/bar"] and rows[2]["learner/bar"] == rows[1]["learner/bar"]
    # the second iteration is scored by the old bar, and taught from; the third is scored by the new one
    assert rows[1]["reward/mean"] > 0.1 and abs(rows[2]["reward/mean"]) < 0.1
    assert [row.get("policy/skipped", 0.0) for row in rows] == [0, 1, 0]
    assert ["grad/norm" in row for row in rows] == [True, False, True]


def test_an_iteration_that_is_skipped_leaves_the_weights_alone(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        trained(tmp_path / f"run{count}", tinyrun.LEARNER, **{"run.iterations": count})
        state = tinyrun.final(tmp_path / f"run{count}")[1]
        found.append({"weights": state["weights"], "optimizer": state["optimizer"]})
    assert not list(tinyrun.differences(*found))


def test_what_a_reward_has_learned_is_saved_and_resumed_exactly(tmp_path: Path) -> None:
    with tinyrun.one_thread():
        trained(tmp_path / "whole", tinyrun.LEARNER, **{"run.iterations": 4})
        trained(tmp_path / "parts", tinyrun.LEARNER, **{"run.iterations": 2})
        train(resume=tmp_path / "parts", overrides={"run.iterations": 4})
    one, other = (tinyrun.final(tmp_path / name) for name in ("whole", "parts"))
    assert one[1]["states"]["rewards"][tinyrun.LEARNER]["lessons"] == 4
    assert not list(tinyrun.differences(one[1]["states"], other[1]["states"]))
    assert not list(tinyrun.differences(one[1]["weights"], other[1]["weights"]))


def test_a_reward_that_compares_sees_whole_groups_and_its_parts_are_logged(tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", tinyrun.WINNER)
    assert all(row[f"reward/{tinyrun.WINNER}/rivals"] == 4 for row in rows)
    # of four images with different brightness the wins are 0, 1, 2 and 3 of 4
    assert all(row["reward/mean"] == pytest.approx(0.375) for row in rows)


def test_a_prompts_own_picture_is_its_reference(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    lines = []
    for i, value in enumerate((10, 200, 90)):
        Image.new("RGB", (4 + i, 3), (value, value, value)).save(tmp_path / "set" / f"{i}.png")
        lines.append(f'{{"file_name": "{i}.png", "prompt": "picture {i}"}}')
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    seen: set[tuple[str, int, int]] = set()

    def near(images: np.ndarray, prompts: list[str], metadata: Any, references: list[list[np.ndarray]]) -> list[float]:
        seen.update((prompt, int(given[0].mean()), given[0].shape[1]) for prompt, given in zip(prompts, references, strict=True))
        return [-abs(float(image.mean()) - float(given[0].mean())) for image, given in zip(images, references, strict=True)]

    changes = {"rewards": (), "evaluate.every": 0, "data.prompts": str(tmp_path / "set"), "data.heldout": 0.0, "run.iterations": 3}
    train(tinyrun.recipe(tmp_path / "run", changes), rewards={"near": referenced(near)})
    assert seen == {("picture 0", 10, 4), ("picture 1", 200, 5), ("picture 2", 90, 6)}


@pytest.mark.parametrize("name", ["adversarial", "adversarial_pair"])
def test_a_reward_without_the_references_it_needs_is_refused_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' compares with reference images, and these prompts have none"):
        trained(tmp_path / "run", name)
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_leaves_compete_where_their_noisy_edges_do() -> None:
    assert chains(SIGMAS, laws.flow_sde(0.7), (0, 1), 4).rivals.tolist() == [0] * 4
    assert tree(SIGMAS, laws.flow_sde(0.7), (0, 1), {0: 2, 1: 2}).rivals.tolist() == [0] * 4
    plan = comb(SIGMAS, laws.flow_sde(0.7), (0, 1), 3)
    classes = plan.rivals
    assert sorted(torch.bincount(classes).tolist()) == [3, 3] or sorted(torch.bincount(classes).tolist()) == [1, 3, 3]
