"""Interrupted and resumed equals uninterrupted, to the bit."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinyrun
from tiny import save_sd3

from flowrl import checkpoint, settings
from flowrl.recipe import Recipe
from flowrl.recipes.run import _another as another
from flowrl.recipes.run import train


def until(done: Callable[[], bool], seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.002)
    return False


@pytest.fixture(scope="module", params=tinyrun.METHODS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A method and the folder of its undisturbed run of four iterations."""
    method, folder = tinyrun.METHODS[request.param], tmp_path_factory.mktemp("whole") / "run"
    with tinyrun.one_thread():
        train(tinyrun.recipe(folder, {"run.iterations": 4}, method))
    return method, folder


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_in_two_pieces_is_the_whole_run(whole: tuple[Any, Path], tmp_path: Path, stop: int) -> None:
    method, folder = whole
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": stop}, method))
    result = train(resume=tmp_path / "run", overrides={"run.iterations": 4})
    assert result.iterations == 4 and not result.interrupted
    tinyrun.same_run(folder, tmp_path / "run")
    assert settings.load(tmp_path / "run" / "run.yaml", Recipe).run.iterations == 4, "run.yaml is what the run has become"


def test_rows_written_after_the_checkpoint_are_written_again(whole: tuple[Any, Path], tmp_path: Path) -> None:
    method, folder = whole
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 3}, method))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000003")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "reward/mean": 9.0}\n{"iteration": 4, "rew')
    train(resume=tmp_path / "run", overrides={"run.iterations": 4})
    tinyrun.same_run(folder, tmp_path / "run")


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(whole: tuple[Any, Path], tmp_path: Path) -> None:
    method, folder = whole
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 3}, method))
    state = tmp_path / "run" / "checkpoints" / "000003" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.warns(UserWarning, match=r"000003 is damaged .*skipped; going on from .*000002"):
        train(resume=tmp_path / "run", overrides={"run.iterations": 4})
    tinyrun.same_run(folder, tmp_path / "run")


def test_a_run_without_a_checkpoint_begins_again(whole: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    method, folder = whole
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 4}, method))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with caplog.at_level(logging.INFO, logger="flowrl"):
        train(resume=tmp_path / "run")
    assert "has no checkpoint yet: the run begins again" in caplog.text
    tinyrun.same_run(folder, tmp_path / "run")


def test_a_finished_run_resumed_evaluates_again_and_changes_nothing(tmp_path: Path) -> None:
    first = train(tinyrun.recipe(tmp_path / "run"))
    before = tinyrun.rows(tmp_path / "run"), tinyrun.final(tmp_path / "run")
    second = train(resume=tmp_path / "run")
    assert first == second and not list(
        tinyrun.differences(before, (tinyrun.rows(tmp_path / "run"), tinyrun.final(tmp_path / "run")))
    )


def test_settings_given_on_resume_hold(tmp_path: Path) -> None:
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 2}))
    train(resume=tmp_path / "run", overrides={"run.iterations": 3, "optim.weight_decay": 0.5, "optim.lr": 1e-4, "sizes.slice": 1})
    _, state = tinyrun.final(tmp_path / "run")
    group = state["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["lr"], state["sizes"]) == (0.5, 1e-4, [1, 4])
    assert int(state["optimizer"]["state"][0]["step"]) == 6, "two optimizer steps an iteration, all remembered"


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"run.iterations": 500, "run.save_every": 1000})
    process = tinyrun.start(tmp_path / "run", made)
    assert until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    os.kill(process.pid, number)
    assert tinyrun.ended(process) == 0
    said = tinyrun.told(tmp_path / "run")
    done = said["iterations"]
    assert said["interrupted"] and 0 < done < 500 and tinyrun.final(tmp_path / "run")[0] == done
    advice = f"stopped after iteration {done}; go on with: flowrl train --resume {tmp_path / 'run'}"
    assert advice in (tmp_path / "run.0.log").read_text()
    assert (tmp_path / "run" / "report.html").is_file()
    train(resume=tmp_path / "run", overrides={"run.iterations": done + 2})
    train(tinyrun.recipe(tmp_path / "whole", {"run.iterations": done + 2}))
    tinyrun.same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.ci
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"data.heldout": 0.0})
    process = tinyrun.start(tmp_path / "run", made, fault="reward-sleep*", env={"FLOWRL_ASLEEP": str(tmp_path / "asleep")})
    assert until((tmp_path / "asleep").exists)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.is_alive(), "the first one waits for the iteration"
    os.kill(process.pid, signal.SIGINT)
    assert tinyrun.ended(process, 30) != 0
    assert tinyrun.final(tmp_path / "run")[0] == 0


def test_a_run_is_not_resumed_with_another_model(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"run.iterations": 1, "evaluate.images": 1})
    train(made)
    save_sd3(tmp_path / "other")
    with pytest.raises(ValueError, match="run trains .*, and .*other is given; leave the model out, or begin another run with it"):
        train(None, {"policy.model": str(tmp_path / "other")}, resume=tmp_path / "run")


def test_a_model_is_the_same_by_another_path_and_where_its_folder_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not another("model", str(tmp_path / "model")) and not another(str(tmp_path / "gone"), "model")
    assert another("owner/one", "owner/two") and another("model", "owner/two") and not another("owner/one", "owner/one")


KILLS, WRITES = 20, 8


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("method", tinyrun.METHODS.values(), ids=tinyrun.METHODS)
def test_twenty_kills_leave_the_run_as_if_nothing_had_been(tmp_path: Path, method: Any) -> None:
    """kill -9 at random moments: before the first checkpoint, between writes and in the middle of them."""
    draw = random.Random(0)
    changes = {"run.iterations": KILLS + 3, "evaluate.every": 5, "evaluate.images": 1, "data.heldout": 0.15}
    folder, made = tmp_path / "run", tinyrun.recipe(tmp_path / "run", changes, method)
    written = 0
    for kill in range(KILLS):
        started = folder / "run.yaml"
        at = max([0, *(e.iteration for e in checkpoint.entries(folder))]) if folder.exists() else 0
        process = tinyrun.start(folder, made, slow=0.01, resume=str(folder) if started.exists() else None)
        if kill == 0:
            assert until(started.exists)
        else:
            assert until(lambda at=at: any(e.iteration > at for e in checkpoint.entries(folder))), "the run got no further"
        if 0 < kill <= WRITES:
            assert until(lambda: any((folder / "checkpoints").glob(".new-*/state.pt")))
            written += 1
        else:
            time.sleep(draw.random() * 0.5)
        os.kill(process.pid, signal.SIGKILL)
        assert tinyrun.ended(process) == -signal.SIGKILL
    assert written == WRITES
    process = tinyrun.start(folder, made, resume=str(folder))
    assert tinyrun.ended(process) == 0 and tinyrun.told(folder) == {"error": None, "iterations": KILLS + 3, "interrupted": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tinyrun.recipe(tmp_path / "whole", changes, method))
    tinyrun.same_run(tmp_path / "whole", folder)
