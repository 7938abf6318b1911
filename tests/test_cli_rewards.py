"""Rewards from the command line: how they are given, and that one which cannot be had is a sentence."""

from __future__ import annotations

import json
import math
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import serving
import tinyrun
from PIL import Image

from flowrl.cli import scoring
from flowrl.cli.app import main
from flowrl.recipe import Recipe, RewardSpec
from flowrl.recipes import run
from flowrl.rewards import TABLE, parse
from flowrl.settings import load

QUIET = ("policy.steps=4", "sizes.prompts=2", "sizes.group=4")
SLOW = ("ocr",)
"""Found to work here by tests of its own."""


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWRL_DEBUG", raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no weights that torch fetched before; conftest does the same for the hub."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr("torch.hub.urlopen", refused)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line a refusal says, its last; what libraries show of their progress may be before it."""
    assert call(*words) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:] and not any("Traceback" in line for line in said), (
        said
    )
    return said[-1]


def pictures(folder: Path, count: int = 2, captions: int = 1) -> Path:
    folder.mkdir()
    rows = []
    for i in range(count):
        Image.new("RGB", (32, 32), (20 * i, 0, 90)).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "prompt": f"a red circle {i % captions}", "task": "single"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Stands in for training: the recipes it was given."""
    calls: list[Recipe] = []

    def train(recipe: Recipe, resume: str | None = None) -> SimpleNamespace:
        calls.append(recipe)
        return SimpleNamespace(folder="run", interrupted=True)

    module: Any = ModuleType("flowrl.recipes.run")
    module.train = train
    monkeypatch.setitem(sys.modules, "flowrl.recipes.run", module)
    return calls


def test_fields_behind_a_reward_are_read_as_settings_are(asked: list[Recipe]) -> None:
    words = ["nsfw=0,gate=0.5", "geneval=1,gate=8e-1,threshold=.25", "aesthetic=0.1", "hpsv3=1,device=cuda:1,offload=true,batch=4"]
    call("train", "--model", "M", "--prompts", "p.txt", *(word for text in words for word in ("--reward", text)))
    assert asked[0].rewards == (
        RewardSpec("nsfw", 0.0, gate=0.5),
        RewardSpec("geneval", 1.0, gate=0.8, threshold=0.25),
        RewardSpec("aesthetic", 0.1),
        RewardSpec("hpsv3", 1.0, device="cuda:1", offload=True, batch=4),
    )


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_run_with_gates_and_places_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    gates = [
        "jpeg_compressibility=0,gate=-100",
        "shapes=1,gate=0,threshold=0.3",
        "clip=0.1,device=cpu,offload=true,batch=4,dtype=float32",
    ]
    rewards = [word for text in gates for word in ("--reward", text)]
    few = [f"evaluate.{name}" for name in ("every=0", "prompts=2", "images=1", "steps=2")]
    quiet = [word for setting in (*QUIET, *few) for word in ("--set", setting)]
    assert call("train", "shapes", "--iterations", "1", "--out", "run", *quiet, *rewards) == 0
    assert load("run/run.yaml").rewards[2] == RewardSpec("clip", 0.1, device="cpu", offload=True, batch=4, dtype="float32")
    [row] = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"reward/jpeg_compressibility", "reward/shapes", "reward/clip"} <= row.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train shapes --reward shapes=0.5,gat=0.3", "has no field 'gat'; did you mean gate?"),
        ("train shapes --reward shapes=0.5,colour=0.3", "has no field 'colour'; there are threshold, gate, device"),
        ("train shapes --reward shapes,gate=high", "rewards.0.gate: expected a number, got 'high'"),
        ("train shapes --reward shapes,batch=0.5", "rewards.0.batch: expected a whole number, got 0.5"),
        ("train shapes --reward shapes,gate=1,gate=2", "gives gate twice"),
        ("train shapes --reward clip,device=cuda:77 --out run", "device 'cuda:77' of a reward cannot be used here"),
        (
            "train shapes --reward geneval:foo",
            "reward geneval has no rule 'foo'; there are soft, official, flow_grpo. It is written",
        ),
        ("train shapes --set evaluate.foo=1", "unknown setting evaluate.foo: evaluate has every, quick, prompts, images"),
        ("score s --reward ocr=0.5,gate=0.3", "reward 'ocr=0.5,gate=0.3' gives gate, which only a reward to train for has"),
        ("score s --reward adversarial", "learns in training and knows nothing before: give it to flowrl train; it needs a folder"),
        ("rewards check adversarial_pair", "it needs a folder of references: adversarial_pair:FOLDER"),
        *((f"rewards check {name}", "there is no check for the reward") for name in ("shapes", "motion", "flicker:x")),
        ("rewards check jpeg_compressibility", "it is a rule without weights, which our tests check"),
        ("score s --reward bad.py:judge", "is not valid Python: '(' was never closed (BAD, line 2)"),
        (
            "score s --reward lacks.py:judge",
            "reward 'lacks.py:judge': No module named 'nowhere_at_all', which it imports; pip install",
        ),
    ],
)
def test_a_reward_that_cannot_be_is_a_sentence(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "s")
    (tmp_path / "bad.py").write_text("def judge(images, prompts, metadata):\n    return sum(images\n")
    (tmp_path / "lacks.py").write_text("import nowhere_at_all\n")
    told = refused(capsys, *words.split())
    assert said.replace("BAD", str(tmp_path / "bad.py")) in told and "toolkit[data]" not in told
    assert not Path("run").exists() and not list(Path().glob("runs/*"))


@pytest.mark.ci
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in TABLE if name not in SLOW])
def test_every_reward_works_without_network_or_says_what_it_needs(
    name: str, offline: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "s")
    for words in (["rewards", "check", name], ["score", "s", "--reward", name]):
        code, said = call(*words), capsys.readouterr().err.splitlines()
        assert code == 0 or (code == 2 and len(said) == 1 and said[0].startswith("error: ")), said
        assert code == 2 or not TABLE[name].weights, "what is not here was scored by"
        if code == 2 and name in ("gram", "deqa", "clipscore", "pickscore", "hpsv2", "geneval"):
            assert f"{name}:" in said[0]


def test_a_missing_package_says_what_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    assert 'reward ocr needs the package rapidocr; pip install "flowrl-toolkit[rewards]"' in refused(
        capsys, "score", "s", "--reward", "ocr"
    )


def test_one_caption_has_no_interval_and_a_narrow_screen_wraps_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_reward_with_a_long_name.py").write_text("def level(images, p, m):\n    return images.mean((1, 2, 3))\n")
    for folder, captions in (("one", 1), ("six", 6)):
        pictures(tmp_path / folder, 6, captions)
        monkeypatch.setenv("COLUMNS", "60")
        assert call("score", folder, "--reward", "a_reward_with_a_long_name.py:level") == 0
        table = capsys.readouterr().out
        assert (" to " in table) == (captions > 1), table
        lines = [line for line in table.splitlines() if " to " in line]
        assert all(len(line.partition(" to ")[2].split()) >= 2 for line in lines), "the upper end is beside the lower"


@pytest.mark.ci
def test_a_warning_is_one_plain_line(tmp_path: Path) -> None:
    pictures(tmp_path / "s", 3)
    (tmp_path / "mine.py").write_text("def some(images, p, m):\n    return [None, 1.0, 2.0]\n")
    done = tinyrun.flowrl("score", "s", "--reward", "mine.py:some")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("warning: reward 'mine.py:some' could not score 1 of 3 images") and "update" not in done.stderr


def test_what_is_told_to_try_is_a_command_that_is_understood(
    asked: list[Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, row in TABLE.items():
        assert call("rewards", name) == 0
        told = row.example or f"flowrl score images/ --reward {name}"
        assert told in " ".join(capsys.readouterr().out.split())
        words = shlex.split(told)[1:]
        spec, _ = parse(words[words.index("--reward") + 1])
        # a placeholder stands where the user's own goes, and the rest is taken as it is written
        assert spec.partition(":")[0] == name and words[0] in ("score", "train")
        if words[0] == "train":
            asked.clear()
            call(*words)
            assert asked[0].rewards[0].name == spec


def test_examples_that_need_no_download_work_as_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "images", 4, 2)
    assert call(*TABLE["winrate"].example.split()[1:]) == 0
    with serving.false(lambda handler, body: serving.say(handler, b'{"scores": [0.5, 0.25]}')) as address:
        assert call(*TABLE["remote"].example.replace("http://HOST:PORT/NAME", address).split()[1:]) == 0
    assert "0.3750" in capsys.readouterr().out


def test_a_budget_that_two_evaluations_use_up_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for minutes, seconds, left in ((None, 1e9, None), (8.0, 60.0, None), (1.0, 21.0, "14 s"), (1.0, 40.0, "0 s")):
        caplog.clear()
        run._afford(minutes, seconds)
        assert len(caplog.records) == (left is not None)
        assert all(f"{left} are left to train in; lower evaluate.prompts" in record.message for record in caplog.records)


def test_best_and_worst_are_named_and_what_is_between_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "s", 5)
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scoring, "contact_sheet", lambda *given: drawn.append(given) or Image.new("RGB", (1, 1)))
    files, read = scoring.images(tmp_path / "s", None, None)
    for values in ([3.0, 1.0, 2.0, 5.0, 4.0], [math.nan, 1.0, math.nan, math.nan, math.nan]):
        scoring.draw(tmp_path / "sheet.png", files, read, scoring.Scored(values, {}))
    (_, _, columns, scores, titles), (_, _, one, alone, title) = drawn
    assert (columns, scores, titles) == (2, [5.0, 4.0, 2.0, 1.0], ("best", "worst"))
    assert (one, alone, title) == (1, [1.0], ("best",))
