"""The run folder: refusals in sentences, and a metrics log that survives kills and resumes."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flowrl.folder import RunFolder, write_atomic

ROOT = Path(__file__).parents[1]


def text(folder: RunFolder) -> str:
    return folder.metrics.read_text()


def test_a_new_folder_is_made_with_its_parents_and_may_be_made_again_while_empty(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b")
    RunFolder.create(tmp_path / "a" / "b")
    assert Path(folder) == tmp_path / "a" / "b" and folder.samples.is_dir()
    assert [p.name for p in folder.path.iterdir()] == ["samples"]


def test_a_folder_is_taken_back_as_far_as_it_was_made(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "a" / "b")
    RunFolder.create(tmp_path / "a" / "b").forget()
    assert first.samples.is_dir()
    (tmp_path / "a" / "other").touch()
    first.forget()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]
    held = RunFolder.create(tmp_path / "c")
    (held.path / "note").touch()
    held.forget()
    assert [p.name for p in held.path.iterdir()] == ["note"]


@pytest.mark.parametrize("mark", ["run.yaml", "metrics.jsonl", "result.json", "checkpoints/000001/state.pt"])
def test_a_folder_with_a_run_is_refused_for_a_new_one_and_opened_for_resuming(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text("x")
    with pytest.raises(FileExistsError) as caught:
        RunFolder.create(tmp_path)
    assert mark.split("/")[0] in str(caught.value) and "resume" in str(caught.value) and "another folder" in str(caught.value)
    assert RunFolder.open(tmp_path).path == tmp_path


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(NotADirectoryError) as caught:
            RunFolder.create(path)
        assert str(caught.value).startswith(f"{tmp_path / 'taken'} is a file")


def test_opening_what_holds_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFolder.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        RunFolder.open(tmp_path / "nowhere")


def test_an_unwritable_folder_ends_with_a_sentence() -> None:
    """Root may write anywhere, so the check runs in a process that is somebody else."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        code = f"""
import os
from flowrl.folder import RunFolder
if os.geteuid() == 0:
    os.setuid(65534)
try:
    RunFolder.create({place!r} + "/run")
except PermissionError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        os.chmod(place, 0o755)
    assert done.stdout.startswith(f"{place}/run cannot be written to (Permission denied): choose another folder"), done


def test_rows_hold_plain_numbers_and_null_for_what_is_none(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.log(
        {
            "iteration": 0,
            "a": torch.tensor(0.5),
            "b": float("nan"),
            "c": math.inf,
            "d": torch.tensor([1.0, float("nan")]),
            "e": np.float32(2),
            "f": np.float64("nan"),
            "g": torch.tensor(3, dtype=torch.int64),
            "h": {"x": (1, None)},
            "i": "ä",
            "j": torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True),
            "k": True,
        }
    )
    assert text(folder).endswith("}\n") and text(folder).count("\n") == 1
    assert json.loads(text(folder), parse_constant=lambda c: pytest.fail(c)) == {
        "iteration": 0,
        "a": 0.5,
        "b": None,
        "c": None,
        "d": [1.0, None],
        "e": 2.0,
        "f": None,
        "g": 3,
        "h": {"x": [1, None]},
        "i": "ä",
        "j": 1.5,
        "k": True,
    }


@pytest.mark.parametrize("iteration", [None, 1.5, "1", True])
def test_a_row_without_its_iteration_is_refused(tmp_path: Path, iteration: object) -> None:
    with pytest.raises(ValueError, match="whole number 'iteration'"):
        RunFolder.create(tmp_path / "run").log({"iteration": iteration})


def test_what_has_no_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(TypeError, match="a builtin_function_or_method cannot be written"):
        folder.log({"iteration": 0, "x": len})
    assert not folder.metrics.exists()


def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = RunFolder.create(tmp_path / "whole"), RunFolder.create(tmp_path / "broken")
    for i in range(10):
        whole.log({"iteration": i, "x": i / 3})
    for i in range(7):
        broken.log({"iteration": i, "x": i / 3 if i < 5 else -1.0})
    with broken.metrics.open("a") as file:
        file.write('{"iteration": 4, "x": 1.3')
    broken = RunFolder.open(tmp_path / "broken")
    broken.cut(5)
    for i in range(5, 10):
        broken.log({"iteration": i, "x": i / 3})
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    assert sorted(p.name for p in broken.path.iterdir()) == ["metrics.jsonl", "samples"]


def test_a_torn_line_is_ignored_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.log({"iteration": 0})
    with folder.metrics.open("ab") as file:
        file.write('{"iteration": 1, "t": "ä'.encode()[:-1])
    assert [r["iteration"] for r in folder.rows()] == [0]
    folder.log({"iteration": 2})
    assert [r["iteration"] for r in folder.rows()] == [0, 2]
    folder.cut(3)
    assert text(folder) == '{"iteration": 0}\n{"iteration": 2}\n'


def test_cutting_a_folder_without_metrics_is_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.cut(3)
    assert folder.rows() == [] and not folder.metrics.exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.log({"iteration": 0})
    folder.log({"iteration": 1})
    write_atomic(tmp_path / "run" / "result.json", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, name) if name == "fsync" else (Path, name)), full)
            for act in (lambda: folder.cut(1), lambda: folder.write_json("result.json", {"new": 1})):
                with pytest.raises(OSError, match=r"could not be written \(\d+ bytes\): No space left") as caught:
                    act()
                assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "run" / "result.json").read_bytes() == b"old" and len(folder.rows()) == 2
    assert sorted(p.name for p in folder.path.iterdir()) == ["metrics.jsonl", "result.json", "samples"]


def test_a_full_disk_while_logging_is_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics.jsonl could not be appended to: No space left on device. Free space"):
        folder.log({"iteration": 0})


def test_json_and_yaml_come_back_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    data = {
        "method": "mix_grpo",
        "betas": (0.9, 0.999),
        "none": None,
        "nan": float("nan"),
        "text": "ä: [x]",
        "n": {"b": 1, "a": Path("x")},
    }
    wanted = {**data, "betas": [0.9, 0.999], "nan": None, "n": {"b": 1, "a": "x"}}
    assert json.loads(folder.write_json("result.json", data).read_text()) == wanted
    loaded = yaml.safe_load(folder.write_yaml("run.yaml", data).read_text())
    assert loaded == wanted and list(loaded) == list(data)
