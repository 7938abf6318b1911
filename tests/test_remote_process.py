"""`flowrl serve` in a process of its own: the same scores, and what becomes of a client or a run whose server dies or hangs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import serving
import tinyrun
import torch
from serving import Server, pictures

from flowrl import checkpoint, rewards, settings
from flowrl.recipes import run
from flowrl.recipes.run import train
from flowrl.rewards import Samples
from flowrl.rewards.forms import Call, Detailed
from flowrl.rewards.remote.client import Patience, remote

TOKEN = "planted-5e1c9a"
QUICK = Patience(connect=1, read=4, total=6, first=0.02, longest=0.2, retries=3)


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with serving.server("--reward", serving.spec(serving.plain), "--waiting", "2", FLOWRL_TOKEN=TOKEN) as made:
        yield made


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRL_TOKEN", TOKEN)


def ask(address: str, *prompts: str, patience: Patience = QUICK) -> Detailed:
    return replace(remote(address, patience), chunk=2)(pictures(len(prompts)), list(prompts), [{} for _ in prompts])


def post(made: Server, **headers: str) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.post(made.address, headers={"Content-Type": "application/json", **headers}, content=b"{}")


@pytest.mark.parametrize("shape", [(9, 14), (3, 9, 14)])
def test_scores_and_parts_are_those_of_the_reward_itself(served: Server, shape: tuple[int, ...]) -> None:
    prompts = ["a", "bad", "c"]
    pixels = torch.from_numpy(pictures(12, *shape)).unflatten(0, (3, 4))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 1] = False
    samples = Samples(pixels, prompts, [{"more": i / 3} for i in range(3)], mask, torch.tensor([0, 0, 1, 1]))
    with pytest.warns(UserWarning, match="could not score 4 of 11"):
        found = [r(samples, r.init())[0] for r in map(rewards.make, (serving.level, f"remote:{served.address}"))]
    assert not list(tinyrun.differences(found[0].values.nan_to_num(9), found[1].values.nan_to_num(9)))
    assert torch.equal(found[0].valid, found[1].valid) and found[0].valid.sum() == 7
    assert not list(tinyrun.differences(found[0].parts["red"].nan_to_num(9), found[1].parts["red"].nan_to_num(9)))


def test_the_printed_address_serves_every_reward_and_health_needs_no_token(served: Server) -> None:
    assert served.said[1].strip() == f"train with: --reward remote:http://127.0.0.1:{served.port}/plain"
    images = pictures(3)
    told = remote(f"http://127.0.0.1:{served.port}/plain")(images, ["a"] * 3, [{}] * 3)
    assert np.array_equal(told.values, np.float32(serving.plain(images, [], [])))
    health = httpx.get(f"http://127.0.0.1:{served.port}/health", trust_env=False)
    assert health.status_code == 200 and health.json() == {"status": "ok", "waiting": 0}


def test_a_wrong_or_missing_token_is_refused_and_scores_are_nan(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
        said = post(served, **headers)
        assert said.status_code == 401 and "token is missing or wrong" in said.json()["error"] and TOKEN not in said.text
    assert post(served, Authorization=f"Bearer {TOKEN}").status_code == 400
    for value in ("wrong", ""):
        monkeypatch.setenv("FLOWRL_TOKEN", value)
        with pytest.warns(UserWarning, match="401"):
            assert np.isnan(ask(served.address, "a", "a").values).all()


def test_an_exception_in_the_reward_is_a_500_and_others_are_not_touched(served: Server) -> None:
    with pytest.warns(UserWarning, match="the server said 500: the reward failed: .*the judge broke on purpose"):
        told = ask(served.address, "raise", "raise", "a", "a", "exit", "exit", "b", "b")
    assert np.isnan(told.values).tolist() == [True, True, False, False] * 2
    assert not np.isnan(ask(served.address, "a").values).any()


@pytest.mark.ci
def test_a_server_with_enough_waiting_says_when_to_come_back() -> None:
    with serving.server("--waiting", "1") as made:
        hung = threading.Thread(target=ask, args=(made.address, "sleep"), daemon=True)
        hung.start()
        end = time.monotonic() + 10
        while httpx.get(f"http://127.0.0.1:{made.port}/health", trust_env=False).json()["waiting"] < 1 and time.monotonic() < end:
            time.sleep(0.02)
        said = post(made)
        assert said.status_code == 503 and said.headers["retry-after"] == "2" and "wait already" in said.json()["error"]
        hung.join(20)
        assert not hung.is_alive()


@pytest.mark.ci
def test_a_reward_that_hangs_costs_its_client_no_more_than_the_total() -> None:
    with serving.server() as made:
        begun = time.monotonic()
        with pytest.warns(UserWarning, match="ReadTimeout"):
            told = ask(made.address, "a", "a", "sleep", "sleep", patience=replace(QUICK, read=1.0, total=4.0))
        assert time.monotonic() - begun < 9 and np.isnan(told.values[2:]).all()
        assert httpx.get(f"http://127.0.0.1:{made.port}/health", trust_env=False).status_code == 200


@pytest.mark.ci
def test_a_server_killed_while_it_scores_leaves_nan_in_time() -> None:
    with serving.server() as made:
        threading.Timer(1.0, made.process.kill).start()
        begun = time.monotonic()
        with pytest.warns(UserWarning, match=r"(ConnectError|RemoteProtocolError|ReadError)"):
            assert np.isnan(ask(made.address, "sleep", "sleep").values).all()
        assert time.monotonic() - begun < 12


@pytest.mark.ci
def test_a_server_that_comes_back_is_found_again() -> None:
    patience = replace(QUICK, total=100, longest=0.5, retries=400)
    with serving.server() as made:
        good = ask(made.address, "a", "a", "b", "b").values
        made.process.kill()
        made.process.wait()
        told: list[Detailed] = []
        asking = threading.Thread(target=lambda: told.append(ask(made.address, "a", "a", "b", "b", patience=patience)))
        asking.start()
        time.sleep(0.3)
        with serving.server(port=made.port):  # a slow start: it loads for seconds
            asking.join(60)
        assert np.array_equal(told[0].values, good) and not np.isnan(good).any()


@pytest.mark.ci
def test_sigterm_answers_what_is_inside_and_ends_well() -> None:
    with serving.server() as made:
        assert not np.isnan(ask(made.address, "a", "a").values).any()
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(20) == 0
        assert "Traceback" not in (made.process.stdout.read() if made.process.stdout else "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "serving on 0.0.0.0 without a token"),
        (("--reward", serving.spec(serving.level)), "two rewards would be served as 'level'"),
        (("--reward", "jpeg_compressibility=2"), "has a weight"),
        (("--port", "99999"), "port"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowrl.cli.app import main

    monkeypatch.delenv("FLOWRL_TOKEN")
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--reward", serving.spec(serving.level), *words])
    assert caught.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_run_trained_by_a_server_is_the_run_trained_here_and_holds_no_token(served: Server, tmp_path: Path) -> None:
    address, here = f"remote:http://127.0.0.1:{served.port}/plain", serving.spec(serving.plain)
    folders, few = {name: tmp_path / name for name in ("here", "there")}, {"run.iterations": 1, "evaluate.every": 0}
    alone = tinyrun.start(folders["here"], tinyrun.recipe(folders["here"], {**few, "rewards": [{"name": here}]}))
    file = settings.dump(tinyrun.recipe(folders["there"], {**few, "rewards": []}), tmp_path / "made.yaml")
    done = tinyrun.flowrl("train", str(file), "--reward", address, timeout=600, FLOWRL_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert tinyrun.ended(alone, 600) == 0
    found = [
        [{k.replace(spec, "r"): v for k, v in row.items()} for row in tinyrun.rows(folders[name])]
        for name, spec in (("here", here), ("there", address))
    ]
    assert found[0] == found[1] and found[0][0]["reward/invalid"] == 0
    assert address in (folders["there"] / "run.yaml").read_text()
    files = [path.read_bytes() for path in folders["there"].rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(TOKEN.encode() in data for data in [*files, done.stdout.encode(), done.stderr.encode()])


@dataclass
class Stands:
    """A remote reward whose server is killed before one call, and started again before another. server None: the same scores, and
    the same ones missing, without any network."""

    server: Server | None
    killed: int
    again: int = 10**6
    asked: int = 0
    waits = compares = True

    def on(self, call: Call) -> Any:
        at, self.asked = self.asked, self.asked + 1
        if self.server is None:
            values = serving.plain(call.images, call.prompts, call.metadata)
            return [math.nan] * len(values) if self.killed <= at < self.again else np.float32(values)
        if at == self.killed:
            self.server.process.kill()
            self.server.process.wait()
        if at == self.again:
            self.server.process = serving.start(function=serving.plain, port=self.server.port).process
        return remote(self.server.address, replace(QUICK, retries=1)).on(call)


def outage(folder: Path, reward: Stands, more: dict[str, Any] | None = None, resume: bool = False) -> Any:
    # two calls an iteration, one an evaluation
    changes = {"rewards": (), "run.iterations": 5, "evaluate.every": 0, "data.heldout": 0.0, **(more or {})}
    made = None if resume else tinyrun.recipe(folder, changes)
    return train(made, rewards={"judge": reward}, resume=folder if resume else None)


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_outage_costs_its_iterations_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(run, "_wait", lambda times, caught=(): waited.append(times))
    with serving.server(function=serving.plain) as made, tinyrun.one_thread():
        outage(tmp_path / "there", Stands(made, 2, 6), {"run.keep": 9})
        made.process.kill()
    assert waited == [1, 2]
    told = tinyrun.rows(tmp_path / "there")
    assert [row.get("policy/skipped", 0) for row in told] == [0, 1, 1, 0, 0] and "reward/mean" not in told[1]
    state = {at: checkpoint.load(tmp_path / "there/checkpoints" / f"{at:06d}")[1] for at in (1, 3, 4)}
    same, moved = (list(tinyrun.differences(state[a]["weights"], state[b]["weights"])) for a, b in ((1, 3), (3, 4)))
    assert not same and moved, "weights stay while nothing is scored, and are trained again afterwards"
    assert not list(tinyrun.differences(state[1]["optimizer"], state[3]["optimizer"]))
    with tinyrun.one_thread():
        outage(tmp_path / "here", Stands(None, 2, 6), {"run.keep": 9})
    tinyrun.same_run(tmp_path / "there", tmp_path / "here")


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_server_that_stays_away_stops_the_run_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE", 0.01)
    monkeypatch.setattr(run, "EMPTY", 2)
    folder = tmp_path / "run"
    with tinyrun.one_thread():
        with pytest.raises(ValueError, match=f"nothing could be scored 2 times in a row, .*: flowrl train --resume {folder}$"):
            outage(folder, Stands(None, 2), {"run.save_every": 100})
        at, state = tinyrun.final(folder)
        assert at == 3 and state["states"]["rewards"]["judge"] == {"scored": 8, "failed": 0}, "as if they had not been"
        outage(folder, Stands(None, 10**6), resume=True)
        monkeypatch.setattr(run, "EMPTY", 5)
        outage(tmp_path / "whole", Stands(None, 2, 6), {"run.save_every": 100})
    tinyrun.same_run(folder, tmp_path / "whole")


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_evaluation_without_scores_has_no_value_and_the_last_one_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PAUSE", 0.01)
    seen = {"data.heldout": 0.25, "evaluate.every": 1, "run.iterations": 2}
    # before 0, look 1; iteration 2 and 3, look 4; iteration 5 and 6, look 7; after 8, and again 9
    with tinyrun.one_thread():
        result = outage(tmp_path / "late", Stands(None, 5, 9), seen)
    assert result.after is not None and math.isfinite(result.after["score"])
    told = [row["heldout/score"] for row in tinyrun.rows(tmp_path / "late")]
    assert told[0] is not None and told[1] is None
    with tinyrun.one_thread(), pytest.raises(ValueError, match="judge could score no held-out image, .*--resume"):
        outage(tmp_path / "never", Stands(None, 0), seen)


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"scores": [null]}', b'{"scores": "many"}', b'{"scores": [1e99, 1, 1, 1]}'])
def test_garbage_from_a_server_skips_an_iteration(answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE", 0.01)
    with serving.false(lambda handler, body: serving.say(handler, answer)) as address, tinyrun.one_thread():
        changes = {"rewards": (), "run.iterations": 2, "evaluate.every": 0, "data.heldout": 0.0}
        train(tinyrun.recipe(tmp_path / "run", changes), rewards={"judge": remote(address, QUICK)})
    assert [row["policy/skipped"] for row in tinyrun.rows(tmp_path / "run")] == [1, 1]
