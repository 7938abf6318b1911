"""Several processes compute what one does, one of them writes, and none is ever left waiting.

The command is torch's: `torchrun --nproc_per_node N -m flowrl train ...` (`python -m torch.distributed.run` is the same), on CPUs
with gloo and on GPUs with nccl. `accelerate launch --multi_gpu --num_processes N -m flowrl train ...` is torchrun underneath, on
CPUs too; `accelerate launch --cpu` starts one process whatever N is, unless it is given an MPI hostfile.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch

from flowrl import settings
from flowrl.dist import World

pytestmark = pytest.mark.ci

# three prompts of three images in blocks of two: groups span blocks, and blocks are dealt to other processes whatever their number
# Adam divides a gradient by its own size: with its usual eps, the rounding of a gradient near 0 moves a weight by the whole rate
ODD = {"sizes.prompts": 3, "sizes.group": 3, "sizes.slice": 2, "sizes.batch": 2, "optim.lr": 1e-3, "optim.eps": 1e-2}


def finished(processes: list[Any], seconds: float = 200) -> list[int]:
    end = time.monotonic() + seconds
    try:
        return [tinyrun.ended(p, max(0.1, end - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()


def records(stem: Path, ranks: int, iteration: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Slot by slot what all processes walked, and the scores each of them holds."""
    parts = [torch.load(f"{stem}.{rank}.{iteration}.pt") for rank in range(ranks)]
    whole: dict[str, torch.Tensor] = {}
    for part in (p["record"] for p in parts if p["record"] is not None):
        for row, slot in enumerate(part["slots"].tolist()):
            for name in ("x", "u", "log_prob"):
                key = f"{slot}/{name}"
                whole[key] = whole.get(key, torch.zeros_like(part[name][row])) + part[name][row]
    for part in parts[1:]:
        assert not list(tinyrun.differences(parts[0]["scores"], part["scores"])), "scores are gathered: the same everywhere"
    return whole, parts[0]["scores"]


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tinyrun.final(folder)[1]["weights"]["current"]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run of three iterations with one, two and three processes."""
    home, found = tmp_path_factory.mktemp("processes"), dict[int, Path]()
    for count in (1, 2, 3):
        found[count] = home / f"run{count}"
        processes = tinyrun.together(count, found[count], tinyrun.recipe(found[count], ODD), keep=str(home / f"kept{count}"))
        assert finished(processes) == [0] * count
        assert [tinyrun.told(found[count], rank)["error"] for rank in range(count)] == [None] * count
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_states_scores_and_credit_do_not_depend_on_the_number_of_processes(runs: dict[int, Path], count: int) -> None:
    (one, scores), (many, others) = (records(runs[n].with_name(f"kept{n}"), n, 0) for n in (1, count))
    assert not list(tinyrun.differences(one, many)) and not list(tinyrun.differences(scores, others))
    first, second = (tinyrun.rows(runs[n])[0] for n in (1, count))
    for name in ("reward/mean", "reward/std", "reward/best", "ratio/first_max_abs"):
        assert first[name] == second[name]
    assert first["grad/norm"] == pytest.approx(second["grad/norm"], rel=1e-5)
    assert (weights(runs[1]) - weights(runs[count])).abs().max() <= 1e-5


@pytest.mark.parametrize("count", [2, 3])
def test_one_process_writes(runs: dict[int, Path], count: int) -> None:
    assert [row["iteration"] for row in tinyrun.rows(runs[count])] == [0, 1, 2]
    assert {p.name for p in runs[count].iterdir()} == {p.name for p in runs[1].iterdir()}
    pictures = [sorted((runs[n] / "samples" / "after").iterdir()) for n in (1, count)]
    assert [p.name for p in pictures[0]] == [p.name for p in pictures[1]], "pictures come together from all processes"
    logs = [runs[count].with_name(f"{runs[count].name}.{rank}.log").read_text() for rank in range(count)]
    assert "3 prompts x 3 images" in logs[0] and not any("3 prompts x 3 images" in text for text in logs[1:])


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_saved_by_two_processes_goes_on_with_another_number(runs: dict[int, Path], tmp_path: Path, count: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[2], folder)
    shutil.rmtree(folder / "checkpoints" / "000003")
    assert finished(tinyrun.together(count, folder, tinyrun.recipe(folder, ODD), resume=str(folder))) == [0] * count
    assert tinyrun.told(folder) == {"error": None, "iterations": 3, "interrupted": False}
    assert (weights(folder) - weights(runs[1])).abs().max() <= 1e-5


def test_budgets_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    args = {"high": 5, "warmup": 1, "threshold": 0.56}
    given = {**ODD, "data.selection.name": "knapsack", "data.selection.args": args, "method.args.updates": 1, "evaluate.every": 0}
    found = []
    for count in (1, 2):
        folder = tmp_path / f"run{count}"
        changes = {**given, "run.iterations": 4}
        assert finished(tinyrun.together(count, folder, tinyrun.recipe(folder, changes))) == [0] * count
        sizes = [(row["selection/group_min"], row["selection/group_max"]) for row in tinyrun.rows(folder)]
        found.append((sizes, tinyrun.final(folder)[1]["states"]["selection"]))
    assert found[0] == found[1] and any(low < high for low, high in found[0][0]), found


def test_rewards_that_compare_and_rewards_that_learn_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    specs = ({"name": tinyrun.WINNER}, {"name": tinyrun.LEARNER})
    found = []
    for count in (1, 2):
        folder = tmp_path / f"run{count}"
        recipe = tinyrun.recipe(folder, {**ODD, "rewards": specs, "evaluate.every": 0})
        assert finished(tinyrun.together(count, folder, recipe, keep=str(tmp_path / f"kept{count}"))) == [0] * count
        told = [(row["reward/mean"], row[f"reward/{tinyrun.WINNER}/rivals"], row["learner/bar"]) for row in tinyrun.rows(folder)]
        found.append((told[0], records(tmp_path / f"kept{count}", count, 0)[1], tinyrun.final(folder)[1]["states"]["rewards"]))
        assert told[0][1] == 3, "the whole group was seen"
    (one, scores, state), (many, others, same) = found
    assert one == many and not list(tinyrun.differences(scores, others))
    assert state[tinyrun.LEARNER]["lessons"] == same[tinyrun.LEARNER]["lessons"] == 3
    assert float(state[tinyrun.LEARNER]["bar"]) == pytest.approx(float(same[tinyrun.LEARNER]["bar"]), abs=1e-4)


def test_more_processes_than_blocks(tmp_path: Path) -> None:
    changes = {
        "sizes.prompts": 1,
        "sizes.group": 2,
        "sizes.slice": None,
        "sizes.batch": None,
        "method.args.updates": 1,
        "run.iterations": 2,
    }
    assert finished(tinyrun.together(3, tmp_path / "run", tinyrun.recipe(tmp_path / "run", changes))) == [0] * 3
    assert [tinyrun.told(tmp_path / "run", rank)["error"] for rank in range(3)] == [None] * 3
    assert len(tinyrun.rows(tmp_path / "run")) == 2


@pytest.mark.parametrize("fault", ["oom-rollout1", "oom-train0"])
def test_one_process_that_runs_out_of_memory_makes_all_of_them_smaller(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "run"
    changes = {**ODD, "run.iterations": 1, "data.heldout": 0.0}
    assert finished(tinyrun.together(2, folder, tinyrun.recipe(folder, changes), fault=fault)) == [0, 0]
    assert [tinyrun.told(folder, rank)["error"] for rank in range(2)] == [None, None]
    assert tinyrun.final(folder)[1]["sizes"] == [1, 1]
    assert tinyrun.rows(folder)[0]["anchored"] == float(fault == "oom-train0")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reward-raise1", "reward 'odd' failed on"),
        ("reward-nan*", "reward 'odd' could score none of the 9 images of this iteration"),
        ("predict1", "predict broke on purpose"),
    ],
)
def test_what_stops_one_process_stops_all_with_its_sentence(tmp_path: Path, fault: str, said: str) -> None:
    folder = tmp_path / "run"
    made = tinyrun.recipe(folder, {**ODD, "data.heldout": 0.0})
    assert finished(tinyrun.together(2, folder, made, fault=fault), 60) == [0, 0]
    for rank in range(2):
        assert said in tinyrun.told(folder, rank)["error"]


def test_images_one_process_could_not_score_are_left_out_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made = tinyrun.recipe(folder, {**ODD, "data.heldout": 0.0, "run.iterations": 2})
    assert finished(tinyrun.together(2, folder, made, fault="reward-nan1")) == [0, 0]
    assert [tinyrun.told(folder, rank)["error"] for rank in range(2)] == [None, None]
    assert all(0 < row["reward/invalid"] < 1 for row in tinyrun.rows(folder))


def test_a_folder_only_the_writer_sees_is_in_use_stops_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text("{}")
    assert finished(tinyrun.together(2, folder, tinyrun.recipe(folder)), 60) == [0, 0]
    for rank in range(2):
        assert "already holds a run (run.yaml): resume that run, choose another folder" in tinyrun.told(folder, rank)["error"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_takes_the_others_with_it(tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "run"
    made = tinyrun.recipe(folder, {**ODD, "run.iterations": 500, "evaluate.every": 0})
    processes = tinyrun.together(3, folder, made)
    end = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(processes[victim].pid, signal.SIGKILL)
    codes = finished(processes, 60)
    assert codes[victim] == -signal.SIGKILL
    for rank in {0, 1, 2} - {victim}:
        assert tinyrun.told(folder, rank)["error"] is not None


def test_ctrl_c_under_a_launcher_arrives_twice_and_still_saves(tmp_path: Path) -> None:
    """The terminal signals every process, and the launcher passes it on."""
    folder = tmp_path / "run"
    processes = tinyrun.together(2, folder, tinyrun.recipe(folder, {**ODD, "run.iterations": 500, "run.save_every": 1000}))
    end = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    for _ in range(2):
        for p in processes:
            os.kill(p.pid, signal.SIGINT)
        time.sleep(0.05)
    assert finished(processes) == [0, 0]
    said = tinyrun.told(folder)
    assert said["interrupted"] and tinyrun.final(folder)[0] == said["iterations"] > 0


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"],
}


def launched(launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "flowrl", "train", *words]
    return subprocess.run(command, env=tinyrun.environment(), capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_starts_the_command(runs: dict[int, Path], tmp_path: Path, launcher: str) -> None:
    done = launched(launcher, str(runs[1] / "run.yaml"), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert [row["iteration"] for row in tinyrun.rows(tmp_path / "run")] == [0, 1, 2]
    assert (weights(tmp_path / "run") - weights(runs[2])).abs().max() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_launcher_shows_why_one_process_failed(tmp_path: Path) -> None:
    path = settings.dump(tinyrun.recipe(tmp_path / "run", {"data.heldout": 0.0}), tmp_path / "recipe.yaml")
    done = launched("torchrun", str(path), "--reward", f"{Path(tinyrun.__file__)}:broken_on_one")
    assert done.returncode != 0 and "broken on process 1" in done.stderr, done.stderr[-4000:]


def test_alone_every_collective_is_the_value_itself() -> None:
    world = World()
    t = torch.ones(2)
    world.sum(t)
    assert (
        t.tolist() == [1, 1] and world.any(True) and not world.any(False) and world.same(0.5) == 0.5 and world.gather("x") == ["x"]
    )
    with pytest.raises(KeyError), world.together():
        raise KeyError("as it is")
