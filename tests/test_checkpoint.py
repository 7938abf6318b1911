"""Checkpoints: whole or not there, whatever happens to the process, the disk and the files."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowrl import checkpoint

ROOT = Path(__file__).parents[1]


def state(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "weights": torch.full((64, 64), float(iteration)),
        "nested": {"a": [1, (2.5, None), "x"], 3: True},
    }


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    wanted = state(7) | {"half": torch.arange(6, dtype=torch.bfloat16), "empty": torch.zeros(0), "scalar": torch.tensor(3)}
    path = checkpoint.save(tmp_path, 7, wanted, 0.5, keep=2)
    assert path == tmp_path / "checkpoints" / "000007"
    iteration, found, where = checkpoint.load_latest(tmp_path)
    assert (iteration, where) == (7, path)
    assert list(found) == list(wanted) and found["nested"] == wanted["nested"] and type(found["nested"]["a"][1]) is tuple
    for key in ("weights", "half", "empty", "scalar"):
        assert found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["state.pt"]["size"] == (path / "state.pt").stat().st_size
    assert (manifest["iteration"], manifest["score"]) == (7, 0.5)


def test_state_dicts_of_modules_and_optimizers_are_accepted(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 4)
    optim = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optim.step()
    checkpoint.save(
        tmp_path, 0, {"net": net.state_dict(), "live": OrderedDict(net.named_parameters()), "optim": optim.state_dict()}, None, 1
    )
    _, found, _ = checkpoint.load_latest(tmp_path)
    assert torch.equal(found["net"]["weight"], net.weight) and not found["live"]["weight"].requires_grad
    optim.load_state_dict(found["optim"])


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 0, {"view": torch.zeros(1_000_000)[:10]}, None, 1)
    assert (path / "state.pt").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"rng": {"numpy": np.zeros(3)}}, "state['rng']['numpy'] is a numpy.ndarray"),
        ({"a": [1, {2, 3}]}, "state['a'][1] is a builtins.set"),
        ({"s": np.float64(1.0)}, "state['s'] is a numpy.float64"),
        ({"f": len}, "state['f'] is a builtins.builtin_function_or_method"),
        ({"k": {(1, 2): 3}}, "state['k'] has a key of type tuple"),
        ({"m": torch.empty(2, device="meta")}, "state['m'] is a torch.Tensor"),
    ],
)
def test_what_could_not_be_loaded_safely_is_refused_by_name(tmp_path: Path, bad: dict[str, Any], named: str) -> None:
    checkpoint.save(tmp_path, 1, state(1), None, 1)
    with pytest.raises(TypeError) as caught:
        checkpoint.save(tmp_path, 2, bad, None, 1)
    assert named in str(caught.value)
    assert names(tmp_path) == ["000001"]


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    scores = [0.1, 0.9, 0.3, None, float("nan"), 0.2]
    for i, score in enumerate(scores):
        checkpoint.save(tmp_path, i, state(i), score, keep=2)
    assert names(tmp_path) == ["000001", "000004", "000005"]
    assert [(e.iteration, e.score) for e in checkpoint.entries(tmp_path)] == [(5, 0.2), (4, None), (1, 0.9)]


def test_the_one_just_written_stays_even_behind_newer_ones(tmp_path: Path) -> None:
    for i in (10, 20, 5):
        checkpoint.save(tmp_path, i, state(i), None, keep=1)
    assert names(tmp_path) == ["000005", "000020"]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, state(3), None, 2)
    checkpoint.save(tmp_path, 3, state(3) | {"again": 1}, None, 2)
    assert checkpoint.load_latest(tmp_path)[1]["again"] == 1
    assert names(tmp_path) == ["000003"]


def cut_short(path: Path) -> None:
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def no_pickle(path: Path) -> None:
    """A file that fits its manifest but is no state: what a writer's fault would leave."""
    import hashlib

    data = b"not a checkpoint"
    (path / "state.pt").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "truncated": (cut_short, "bytes instead of"),
    "one bit": (flip, "sha256"),
    "no state": (lambda p: (p / "state.pt").unlink(), "state.pt is missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "torn manifest": (lambda p: (p / "manifest.json").write_text('{"iter'), "manifest.json cannot be read"),
    "other manifest": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "unreadable state": (no_pickle, "state.pt cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, kind: str) -> None:
    harm, reason = DAMAGE[kind]
    for i in (1, 2):
        checkpoint.save(tmp_path, i, state(i), None, 3)
    harm(tmp_path / "checkpoints" / "000002")
    with pytest.warns(UserWarning) as caught:
        iteration, found, path = checkpoint.load_latest(tmp_path)
    assert (iteration, found["iteration"], path.name) == (1, 1, "000001")
    (said,) = [str(w.message) for w in caught]
    assert "000002 is damaged" in said and reason in said and "going on from" in said and "000001" in said


def test_damaged_ones_do_not_push_out_the_last_whole_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), None, 2)
    for i in (2, 3):
        checkpoint.save(tmp_path, i, state(i), None, 3)
        cut_short(tmp_path / "checkpoints" / f"{i:06d}")
    checkpoint.save(tmp_path, 4, state(4), None, 2)
    assert "000001" in names(tmp_path)


def test_without_a_whole_checkpoint_a_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        checkpoint.load_latest(tmp_path)
    cut_short(checkpoint.save(tmp_path, 1, state(1), None, 1))
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .* is whole .*000001: state.pt has"):
        checkpoint.load_latest(tmp_path)


def test_leftovers_of_killed_writes_go_and_a_moved_one_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), None, 1)
    home = tmp_path / "checkpoints"
    (home / ".new-000002-abc").mkdir()
    (home / ".new-000002-abc" / "state.pt").write_bytes(b"half")
    (home / "000001").rename(home / ".old-000001-abc")
    assert checkpoint.load_latest(tmp_path)[0] == 1
    assert names(tmp_path) == ["000001"]


def test_a_reader_leaves_a_live_writers_files_alone(tmp_path: Path) -> None:
    import fcntl

    checkpoint.save(tmp_path, 1, state(1), None, 1)
    home = tmp_path / "checkpoints"
    (home / ".new-000002-abc").mkdir()
    handle = os.open(home, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert checkpoint.load_latest(tmp_path)[0] == 1
    os.close(handle)
    assert names(tmp_path) == [".new-000002-abc", "000001"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_a_full_disk_ends_with_a_sentence_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    checkpoint.save(tmp_path, 1, state(1), None, 1)

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if where == "write":
            plain_open = Path.open

            class Full:
                def __init__(self, file: Any) -> None:
                    self.file, self.left = file, 3000

                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *_: object) -> None:
                    self.file.close()

                def write(self, data: bytes) -> int:
                    self.left -= len(data)
                    if self.left < 0:
                        full()
                    return self.file.write(data)

            patch.setattr(
                Path, "open", lambda p, mode="r", *a: Full(plain_open(p, mode, *a)) if "w" in mode else plain_open(p, mode, *a)
            )
        else:
            patch.setattr({"fsync": os, "rename": Path}[where], where, full)
        with pytest.raises(OSError) as caught:
            checkpoint.save(tmp_path, 2, state(2), None, 1)
    said = str(caught.value)
    assert caught.value.errno == code and str(tmp_path / "checkpoints") in said and "bytes are free" in said
    assert int(said.split("needs ")[1].split()[0]) > 64 * 64 * 4
    assert names(tmp_path) == ["000001"]
    assert checkpoint.load_latest(tmp_path)[1]["iteration"] == 1


FILL = """
import sys, resource, signal, torch
from flowrl import checkpoint
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
checkpoint.save(sys.argv[1], 1, {"w": torch.ones(1000)}, None, 1)
try:
    checkpoint.save(sys.argv[1], 2, {"w": torch.ones(1_000_000)}, None, 1)
except OSError as error:
    print(error)
print(checkpoint.load_latest(sys.argv[1])[0])
"""


@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_a_disk_that_is_really_full(tmp_path: Path, kind: str) -> None:
    if kind == "tmpfs" and (
        os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "x", str(tmp_path)]).returncode
    ):
        pytest.skip("needs to mount a small tmpfs")
    try:
        done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path), kind], capture_output=True, text=True, cwd=ROOT)
        left = names(tmp_path)
    finally:
        if kind == "tmpfs":
            subprocess.run(["umount", str(tmp_path)], check=True)
    said, latest = done.stdout.splitlines()
    assert done.returncode == 0 and "There is no room for a checkpoint" in said and latest == "1", done.stderr
    assert int(said.split("needs ")[1].split()[0]) > 4_000_000
    assert left == ["000001"]


# A process that imports torch once and forks a writer for each line it reads; the test kills the writer.
WRITERS = """
import os, sys, torch
from flowrl import checkpoint
folder = sys.argv[1]
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
        continue
    try:
        start = checkpoint.load_latest(folder)[0] + 1
    except FileNotFoundError:
        start = 0
    for i in range(start, start + 10_000):
        # Every fifth is written twice: the replacing path is killed too.
        for _ in range(2 if i % 5 == 0 else 1):
            checkpoint.save(folder, i, {"i": i, "w": torch.full((500_000,), float(i))}, None, 2)
    os._exit(0)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    kills, reached, litter, rng = 0, -1, 0, random.Random(0)
    patience = 0.4
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    command = [sys.executable, "-c", WRITERS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdin and server.stdout
        # On a busy machine it takes more kills until enough of them hit a write and the writers got on.
        while kills < 24 or litter < 3 or reached < 1:
            assert kills < 200
            kills += 1
            patience *= 1.2 if kills > 5 and reached < 1 else 1
            print("go", file=server.stdin, flush=True)
            writer = int(server.stdout.readline())
            time.sleep(rng.uniform(0.02, patience))
            os.kill(writer, signal.SIGKILL)
            assert server.stdout.readline() == "dead\n"
            litter += any(name.startswith(".") for name in names(folder))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    iteration, found, _ = checkpoint.load_latest(folder)
                except FileNotFoundError:
                    assert reached == -1
                    continue
            assert iteration == found["i"] >= reached
            assert len(found["w"]) == 500_000 and bool((found["w"] == iteration).all())
            assert not any(name.startswith(".") for name in names(folder))
            reached = iteration
        server.stdin.close()
