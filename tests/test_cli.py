"""The command line: what each command calls, and that a mistake costs a sentence, not a traceback."""

import csv
import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flowrl
import flowrl.rewards
from flowrl import direct, methods
from flowrl.cli import catalog, screen
from flowrl.cli import methods as explained
from flowrl.cli.app import main
from flowrl.cli.sample import parse_seeds
from flowrl.methods.claims import NUMBERS
from flowrl.recipe import PolicySpec, Recipe, RewardSpec, RunSpec
from flowrl.settings import dump, load

COMMANDS = ("train", "sample", "score", "serve", "methods", "rewards", "plan", "report", "export", "vote")


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWRL_DEBUG", raising=False)


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call(*words) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err


def fresh(*words: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter with the same flowrl."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowrl.__file__).parents[1])}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Recipe, str | None]]:
    """Stands in for training: notes what it was asked to do and leaves a result."""
    calls: list[tuple[Recipe, str | None]] = []

    def train(recipe: Recipe, resume: str | None = None) -> SimpleNamespace:
        calls.append((recipe, resume))
        write_result(tmp_path / "run")
        return SimpleNamespace(folder=tmp_path / "run", interrupted=False)

    module: Any = ModuleType("flowrl.recipes.run")
    module.train = train
    monkeypatch.setitem(sys.modules, "flowrl.recipes.run", module)
    return calls


def part(score: float, **tasks: float) -> dict[str, Any]:
    return {"score": score, "low": score - 0.1, "high": score + 0.1, "n": 40, "tasks": {name: part(s) for name, s in tasks.items()}}


def write_result(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    result = {"method": "mix_grpo", "seed": 3, "iterations": 70, "minutes": 4.25, "before": part(0.21, single=0.5, counting=0.1),
              "after": part(0.35, single=0.75, counting=0.05), "gain": {"score": 0.14, "standard_error": 0.02},
              "folder": str(folder)}  # fmt: skip
    (folder / "result.json").write_text(json.dumps({**result, **changes}))
    return folder


def test_help_of_every_command_has_examples_and_loads_no_torch():
    code = (
        "import sys\nfrom flowrl.cli.app import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    for command in COMMANDS:
        said = fresh("-c", code.replace("sys.argv[1:]", f"[{command!r}, '--help']")).stdout
        assert said.count(f"flowrl {command} ") >= 2, said
        assert said.splitlines()[-1] == "[]"


def test_help_is_quick():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert fresh("-c", "from flowrl.cli.app import main; main(['--help'])").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # seconds of the processor; about half of it on a quiet machine
    assert min(seconds() for _ in range(3)) < 0.8


def test_version(capsys: pytest.CaptureFixture[str]):
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == flowrl.__version__


def test_python_m_flowrl_is_the_command():
    done = fresh("-m", "flowrl", "--version")
    assert done.stdout.strip() == flowrl.__version__


def test_train_makes_a_recipe_of_its_options(trained: list[tuple[Recipe, str | None]]):
    words = (
        "train --model m/x --reward clip=0.5 --reward jpeg_compressibility --prompts p.txt --set optim.lr=1e-4 --set sizes.group=4"
    )
    assert call(*words.split(), "--seed", "7", "--out", "o", "--iterations", "3", "--minutes", "2.5") == 0
    [(recipe, resume)] = trained
    assert resume is None
    assert recipe.rewards == (RewardSpec("clip", 0.5), RewardSpec("jpeg_compressibility", 1.0))
    assert (recipe.policy.model, recipe.data.prompts, recipe.optim.lr, recipe.sizes.group) == ("m/x", "p.txt", 1e-4, 4)
    assert (recipe.run.seed, recipe.run.folder, recipe.run.iterations, recipe.run.minutes) == (7, "o", 3, 2.5)


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        ("--model m/x --set data.prompts=p.txt", "p.txt"),
        ("--model m/x --prompts shapes", "shapes"),
        ("--model shapes", "shapes"),
        ("--model shapes_video", "shapes_video"),
        ("shapes --model m/x", "shapes"),
    ],
)
def test_prompts_come_from_where_they_are_given(trained: list[tuple[Recipe, str | None]], words: str, prompts: str):
    assert call("train", *words.split(), "--reward", "clip=1") == 0
    assert trained[0][0].data.prompts == prompts


def test_train_takes_a_recipe_by_name(trained: list[tuple[Recipe, str | None]]):
    from flowrl.recipes import named

    assert call("train", "shapes") == 0
    assert trained[0][0] == named("shapes")


def test_train_repeats_a_run_from_its_file(trained: list[tuple[Recipe, str | None]], tmp_path: Path):
    recipe = Recipe(rewards=(RewardSpec("clip"),))
    dump(recipe, tmp_path / "run.yaml")
    assert call("train", str(tmp_path / "run.yaml")) == 0
    assert trained == [(recipe, None)]


def test_train_resumes_a_run_with_its_own_settings(trained: list[tuple[Recipe, str | None]], tmp_path: Path):
    dump(Recipe(rewards=(RewardSpec("clip"),)), tmp_path / "old" / "run.yaml")
    assert call("train", "--resume", "old", "--minutes", "9") == 0
    [(recipe, resume)] = trained
    assert (resume, recipe.run.minutes, recipe.rewards) == ("old", 9.0, (RewardSpec("clip"),))


def test_train_ends_with_the_result(trained: list[tuple[Recipe, str | None]], capsys: pytest.CaptureFixture[str]):
    call("train", "shapes")
    assert "gain on the same prompts +0.140 (standard error 0.020)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "error: nothing to train: name a recipe (flowrl train shapes) or a model"),
        (
            "train --model m/x --reward clip=1",
            "error: nothing says which prompts m/x is to be trained on: give --prompts FILE, or --prompts shapes for the embedded",
        ),
        ("train shpaes", "error: recipe 'shpaes' does not exist; there are: shapes"),
        ("train none.yaml", "error: none.yaml cannot be read: No such file or directory"),
        ("train shapes --set optim.lrr=1", "error: unknown setting optim.lrr: did you mean optim.lr?"),
        ("train shapes --set sizes.group=many", "error: sizes.group: expected a whole number, got 'many' (--set)"),
        (
            "train shapes --seed 1 --set run.seed=2",
            "error: run.seed is given twice: by an option of its own and by --set run.seed=2",
        ),
        ("train shapes --seed -1", "error: run.seed must be at least 0, got -1"),
        ("train shapes --reward clip=much", "error: the weight of reward 'clip=much' is 'much', not a number"),
        ("train --resume nowhere", "error: nowhere holds no run to go on with: it has no run.yaml"),
        ("report nowhere", "error: nowhere does not exist: give the folder of a run"),
        ("plan mixgrpo", "error: method 'mixgrpo' is unknown (did you mean 'mix_grpo'?)"),
        ("plan mix_grpo --set windw=3", "error: unknown setting windw: did you mean window?"),
        ("plan mix_grpo --set window=many", "error: window: expected a whole number, got 'many'"),
        ("plan mix_grpo --set window=20", "error: a window of 20 steps does not fit into 8 trainable steps"),
        ("sample none.txt", "error: there is no file or folder 'none.txt'"),
        ("sample a --seeds 3-1", "error: seeds '3-1': 3-1 runs backwards"),
        ("sample a --lora nowhere", "error: there is no adapter at nowhere; give a run's lora folder"),
        ("sample a --lora .", "error: . holds no adapter (no .safetensors file); give a run's lora folder"),
        ("sample a --device warp", "error: device 'warp' cannot be used here"),
        ("sample a --model no/model/here", "error: model 'no/model/here' is neither a folder, a file nor a hub name"),
        ("sample a --rlg 1.5", "error: rlg 1.5 goes from the base to an adapter, and none is given; add one: --lora RUN"),
        ("sample a --rlg nan", "error: rlg is nan; give a finite number"),
        ("sample a --best-of 4", "error: --best-of and --svdd choose by a reward, and none is named"),
        ("sample a --reward clip", "error: --reward clip has nothing to choose from; add --best-of 8 or --svdd 4"),
        ("sample a --reward clip --best-of 0", "error: best-of is 0; give at least 1"),
        ("sample a --reward clip --svdd -1", "error: svdd is -1; give at least 1"),
        ("sample a --reward clap --best-of 2", "error: there is no reward 'clap'; did you mean clip?"),
        ("sample a --reward clip=2 --best-of 2", "error: reward 'clip=2' has a weight, which a choice does not need"),
        ("score nowhere --reward clip --prompts x", "error: there is no folder 'nowhere'"),
        ("score nowhere --reward clip", "error: there is no file or folder 'nowhere'"),
    ],
)
def test_a_mistake_costs_a_sentence(capsys: pytest.CaptureFixture[str], words: str, message: str):
    said = refused(capsys, *shlex.split(words))
    assert said.splitlines()[-1].startswith(message)


def test_wrong_usage_ends_with_the_same_code(capsys: pytest.CaptureFixture[str]):
    assert "Missing argument" in refused(capsys, "report")
    assert "No such option" in refused(capsys, "train", "--sed", "1")


@pytest.mark.parametrize("debug", [("--debug",), ()])
def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, debug: tuple[str, ...]):
    if not debug:
        monkeypatch.setenv("FLOWRL_DEBUG", "1")
    assert call("report", "nowhere", *debug) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "FileNotFoundError: nowhere does not exist" in said


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, trained: list[Any]):
    def broken(recipe: Recipe, resume: str | None = None) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(sys.modules["flowrl.recipes.run"], "train", broken)
    with pytest.raises(KeyError, match="lost"):
        main(["train", "shapes"])


def test_a_missing_module_of_flowrl_itself_is_a_fault_and_another_one_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.yaml").touch()
    monkeypatch.setitem(sys.modules, "flowrl.report", None)
    with pytest.raises(ModuleNotFoundError):
        main(["report", str(tmp_path)])

    def missing(folder: Path) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    module: Any = ModuleType("flowrl.report")
    module.write = missing
    monkeypatch.setitem(sys.modules, "flowrl.report", module)
    said = refused(capsys, "report", str(tmp_path))
    assert said.startswith("error: the Python package 'pyarrow' is not installed here: pip install it")


def test_an_error_that_flowrl_defines_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, trained: list[Any], capsys: pytest.CaptureFixture[str]
):
    from flowrl.rewards import RewardError

    def broken(recipe: Recipe, resume: str | None = None) -> None:
        raise RewardError("reward 'mine' failed on 4 images")

    monkeypatch.setattr(sys.modules["flowrl.recipes.run"], "train", broken)
    assert refused(capsys, "train", "shapes") == "error: reward 'mine' failed on 4 images\n"


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, trained: list[Any], capsys: pytest.CaptureFixture[str]):
    def stopped(recipe: Recipe, resume: str | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["flowrl.recipes.run"], "train", stopped)
    assert call("train", "shapes") == 130
    assert "Traceback" not in capsys.readouterr().err


NAMES = sorted({**methods.TABLE, **direct.TABLE})


def test_methods_lists_every_one_within_80_columns_and_without_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert call("methods") == 0
        said = capsys.readouterr().out
        lines = said.splitlines()
        assert "\x1b" not in said and max(map(len, lines)) <= width
        assert sorted(line.split()[0] for line in lines if line.split() and line.split()[0] in NAMES) == NAMES
        assert [line for line in lines if line.startswith(("Made for", "Ported", "Direct"))] == list(catalog.SECTIONS)
    row = next(line for line in lines if line.startswith("tempflow_grpo "))
    assert row.split()[:5] == ["tempflow_grpo", "comb", "group", "clip", "1"] and "2508.04324 TempFlow-GRPO as published" in row


def test_methods_can_be_cut(capsys: pytest.CaptureFixture[str]):
    assert call("methods", "--plain") == 0
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert sorted(row[0] for row in rows) == NAMES and {len(row) for row in rows} == {len(head)} == {9}
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert {found[n]["samples"] for n in ("mix_grpo", "branch_grpo", "g2rpo", "awm")} == {"chains", "tree", "comb", "ODE"}
    assert found["gspo"]["objective"] == "gspo" and found["mc_grpo"]["advantage"] == "mc" and found["refl"]["objective"] == "hinge"
    assert all(row["updates"] == str({**methods.TABLE, **direct.TABLE}[n]().updates) for n, row in found.items())


@pytest.mark.parametrize("name", NAMES)
def test_methods_explains_each(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "80")
    assert call("methods", name) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == name and f"  flowrl plan {name}" in lines and not any(line != line.rstrip() for line in lines)
    for title in ("arguments", "made of", "evidence", "reported by its authors", "try"):
        assert title in lines
    one = catalog.entry(name)
    flat = " ".join(said.split())
    assert one.docs.source and all(" ".join(part.split()) in flat for part in (*one.docs.what, one.docs.source, *one.numbers))
    assert all(test in said for tests in one.shown.values() for test in tests)
    assert one.docs.summary.endswith(".") and ("cannot act" in said) == bool(getattr(one.method, "idle_clip", False))


@pytest.mark.parametrize("name", ["srpo", "gardo", "flow_noise", "dance_grpo"])
def test_the_commands_to_try_a_method_are_valid(name: str, trained: list[tuple[Recipe, str | None]]):
    """Pasted into the command line they parse, and ask for what the method wants."""
    look, train = (shlex.split(line)[1:] for line in explained.commands(catalog.entry(name)))
    assert call(*train) == 0 and call(*look) == 0
    [(recipe, _)] = trained
    assert recipe.method.name == name and recipe.policy.noise_head == (name == "flow_noise")
    assert ("clip" in [r.name for r in recipe.rewards]) == (name in ("srpo", "gardo"))
    assert any(r.weight == 0 for r in recipe.rewards) == (name == "gardo")


def test_an_unknown_method_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    said = refused(capsys, "methods", "mixgrpo")
    assert said == "error: method 'mixgrpo' is unknown (did you mean 'mix_grpo'?); flowrl methods lists all\n"


def test_reported_numbers_are_of_methods_there_are():
    assert set(NUMBERS) <= set(NAMES)


def test_a_docstring_comes_apart():
    def made() -> None:
        """One thing. Another: with
        a tail.

        More of v1.5 things.

        Raises: ValueError for
        none.
        Source: Paper (2501.12345), and 2401.00001.  Differs: in all.
        """

    found = catalog.docs(made)
    assert found.what == ("One thing. Another: with a tail.", "More of v1.5 things.") and found.summary == "One thing."
    assert (found.raises, found.source, found.differs) == ("ValueError for none.", "Paper (2501.12345), and 2401.00001.", "in all.")
    assert found.paper == "2501.12345"


def test_plan_shows_noisy_steps_and_cost(capsys: pytest.CaptureFixture[str]):
    assert call("plan", "mix_grpo", "--set", "window=3", "--group", "6", "--steps", "10") == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if "->" in line]
    assert [row[4] for row in rows] == ["6"] * 3 + ["-"] * 7
    assert rows[0][0] == "1.0000" and rows[-1][2] == "0.0000"
    costs = {line[:26].strip(): line[26:].split()[0] for line in said.splitlines() if line.startswith("  ") and "->" not in line}
    wanted = {"images (leaves)": "6", "recorded (noisy) edges": "18", "quiet edges": "42", "network calls to sample": "60",
              "rows to train on": "18"}  # fmt: skip
    assert wanted.items() <= costs.items()


def test_plan_moves_its_window_with_the_iteration(capsys: pytest.CaptureFixture[str]):
    def noisy(iteration: int) -> list[int]:
        call("plan", "mix_grpo", "--iteration", str(iteration))
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if "->" in line]
        return [i for i, row in enumerate(rows) if row[4] != "-"]

    assert noisy(0) == [0, 1, 2, 3] and noisy(25) == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_sd3

    return save_sd3(tmp_path_factory.mktemp("model") / "tiny")


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in folder.glob("*-*.png")}


def test_sample_writes_images_a_sheet_and_metadata_that_score_reads(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "p.txt").write_text("a red circle\n\ntwo blue square\n")
    options = ["--model", str(tiny), "--seeds", "0,2", "--steps", "2", "--device", "cpu"]
    assert call("sample", "p.txt", "a/../green circle?", *options, "--out", "s") == 0
    rows = [json.loads(line) for line in Path("s/metadata.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (prompt, seed) for prompt in ("a red circle", "two blue square", "a/../green circle?") for seed in (0, 2)
    ]
    made = pictures(Path("s"))
    assert sorted(made) == sorted(row["file_name"] for row in rows)
    assert len(set(made.values())) == 6
    assert Image.open("s/grid.png").width >= 2 * 128

    # an image depends on its prompt and seed, not on its neighbours
    assert call("sample", "two blue square", *options[:2], "--seeds", "2", *options[4:], "--out", "alone") == 0
    assert list(pictures(Path("alone")).values()) == [made["0001-two-blue-square-2.png"]]

    capsys.readouterr()
    (tmp_path / "mine.py").write_text(
        "def redness(images, prompts, metadata):\n    return images[..., 0].mean((1, 2, 3 - 1)[:2]).tolist()\n"
    )
    assert call("score", "s", "--reward", "mine.py:redness") == 0
    said = capsys.readouterr().out
    with Path("s/scores/scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    wanted = [np.asarray(Image.open(Path("s") / row["file_name"]))[..., 0].mean() for row in scores]
    assert [float(row["mine.py:redness"]) for row in scores] == pytest.approx(wanted)
    assert f"{np.mean(wanted):.4f}" in said and "mine.py:redness" in said


def test_sample_with_an_adapter_differs_and_a_run_folder_will_do(tiny: Path, tmp_path: Path):
    from tiny import excite

    from flowrl.export import save_lora
    from flowrl.models import load_policy
    from flowrl.recipe import LoraSpec, PolicySpec

    policy = load_policy(PolicySpec(model=str(tiny), dtype="float32", max_sequence_length=16, lora=LoraSpec(rank=2, alpha=4.0)))
    excite(policy.trainable())
    save_lora(policy, tmp_path / "run" / "lora")
    options = ["a red circle", "--model", str(tiny), "--seeds", "0", "--steps", "2", "--device", "cpu"]
    for name, extra in {"base": [], "lora": ["--lora", "run/lora"], "run": ["--lora", "run"]}.items():
        assert call("sample", *options, *extra, "--out", name) == 0
    assert pictures(Path("base")) != pictures(Path("lora")) == pictures(Path("run"))


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> str:
    from tiny import excite

    from flowrl.export import save_lora
    from flowrl.models import load_policy
    from flowrl.recipe import LoraSpec, PolicySpec

    policy = load_policy(PolicySpec(model=str(tiny), dtype="float32", max_sequence_length=16, lora=LoraSpec(rank=2, alpha=4.0)))
    excite(policy.trainable())
    return str(save_lora(policy, tmp_path / "run" / "lora"))


def test_sample_guides_between_the_base_and_the_adapter(tiny: Path, adapter: str):
    options = ["a red circle", "--model", str(tiny), "--seeds", "0", "--steps", "2", "--device", "cpu", "--guidance", "3"]
    runs = {"base": [], "lora": ["--lora", adapter], **{f"w{w}": ["--lora", adapter, "--rlg", w] for w in ("0", "1", "1.5")}}
    for name, extra in runs.items():
        assert call("sample", *options, *extra, "--out", name) == 0
    images = {name: pictures(Path(name)) for name in runs}
    assert images["w0"] == images["base"] and images["w1"] == images["lora"]
    assert images["w1.5"] not in (images["base"], images["lora"])
    assert [json.loads(Path(name, "metadata.jsonl").read_text())["rlg"] for name in ("lora", "w1.5")] == [None, 1.5]


RED = """
def red(images, prompts, metadata):
    return [None if i[..., 0].mean() > LIMIT else float(i[..., 0].mean()) for i in images]
"""


def test_sample_keeps_the_best_of_n_and_never_one_without_a_score(tiny: Path, tmp_path: Path):
    options = ["a red circle", "--model", str(tiny), "--seeds", "0,1", "--steps", "2", "--device", "cpu"]
    (tmp_path / "all.py").write_text(RED.replace("LIMIT", "999"))
    assert call("sample", *options, "--out", "one") == 0
    assert call("sample", *options, "--best-of", "3", "--reward", "all.py:red", "--out", "three") == 0
    rows = [json.loads(line) for line in Path("three/metadata.jsonl").read_text().splitlines()]
    for row in rows:
        assert len(set(row["scores"])) == 3 and row["score"] == max(row["scores"]) and row["best_of"] == 3
        assert np.asarray(Image.open(Path("three") / row["file_name"]))[..., 0].mean() == pytest.approx(row["score"])
        plain = np.asarray(Image.open(Path("one") / row["file_name"]))[..., 0].mean()
        assert plain == pytest.approx(row["scores"][0])  # the seed's own image is the first

    best = rows[0]["score"]
    (tmp_path / "some.py").write_text(RED.replace("LIMIT", str(best - 1e-3)))
    with pytest.warns(UserWarning, match="could not score"):
        assert call("sample", *options[:4], "0", *options[5:], "--best-of", "3", "--reward", "some.py:red", "--out", "some") == 0
    (row,) = [json.loads(line) for line in Path("some/metadata.jsonl").read_text().splitlines()]
    assert None in row["scores"] and row["score"] == sorted(rows[0]["scores"])[-2]


def test_sample_says_where_no_image_had_a_score(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "none.py").write_text(RED.replace("LIMIT", "-1"))
    options = ["a red circle", "--model", str(tiny), "--seeds", "0", "--steps", "1", "--device", "cpu"]
    with pytest.warns(UserWarning, match="could not score"):
        assert call("sample", *options, "--best-of", "2", "--reward", "none.py:red", "--out", "s") == 2
    assert "could not score any of the images, so none was chosen" in capsys.readouterr().err
    assert json.loads(Path("s/metadata.jsonl").read_text())["scores"] == [None, None]


def test_sample_by_svdd_scores_higher_and_takes_an_adapter_and_guidance(tiny: Path, tmp_path: Path, adapter: str):
    (tmp_path / "all.py").write_text(RED.replace("LIMIT", "999"))
    options = ["a red circle", "--model", str(tiny), "--seeds", "0-2", "--steps", "4", "--device", "cpu", "--reward", "all.py:red"]

    def scores(*extra: str) -> list[float]:
        assert call("sample", *options, *extra, "--out", "s") == 0
        return [json.loads(line)["score"] for line in Path("s/metadata.jsonl").read_text().splitlines()]

    two, eight = scores("--svdd", "2"), scores("--svdd", "8")
    assert np.mean(eight) > np.mean(two)
    with_adapter = scores("--svdd", "2", "--lora", adapter)
    assert with_adapter != two
    assert scores("--svdd", "2", "--lora", adapter, "--rlg", "0") == two
    assert scores("--svdd", "2", "--lora", adapter, "--rlg", "1") == with_adapter


def test_captions_of_the_shapes_world_bring_what_they_ask_for(tmp_path: Path):
    options = ["--seeds", "0", "--steps", "2", "--device", "cpu", "--best-of", "2", "--reward", "shapes:strict", "--out", "s"]
    assert call("sample", "a red circle", *options) == 0
    row = json.loads(Path("s/metadata.jsonl").read_text())
    assert row["include"] == [{"class": "circle", "count": 1, "color": "red"}] and len(row["scores"]) == 2
    assert call("score", "s", "--reward", "shapes:strict") == 0


def folder_of_images(place: Path, count: int, size: tuple[int, int] = (8, 8)) -> None:
    place.mkdir(exist_ok=True)
    with (place / "metadata.jsonl").open("a") as file:
        for i in range(count):
            name = f"{size[0]}-{i}.png"
            Image.new("RGB", size, (i, 0, 0)).save(place / name)
            file.write(json.dumps({"file_name": name, "prompt": f"caption {i // 2}", "task": "single" if i < 4 else "two"}) + "\n")


def test_score_groups_by_task_and_leaves_out_what_could_not_be_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder_of_images(tmp_path / "s", 6)
    folder_of_images(tmp_path / "s", 2, (16, 8))
    (tmp_path / "mine.py").write_text(
        "def red(images, prompts, metadata):\n    return [None if i.max() == 5 else float(i.max()) for i in images]\n"
    )
    with pytest.warns(UserWarning, match="could not score 1 of 6"):
        assert call("score", "s", "--reward", "mine.py:red", "--out", "out") == 0
    with Path("out/scores.csv").open() as file:
        rows = [row["mine.py:red"] for row in csv.DictReader(file)]
    assert rows == ["0.0", "1.0", "2.0", "3.0", "4.0", "", "0.0", "1.0"]
    assert Image.open("out/mine.py-red.png").width > 400
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # captions 0, 1, 2 have means 0.5 (four images), 2.5 and 4 (the failed one left out)
    assert [row[:3] for row in table if "all" in row] == [["mine.py:red", "all", f"{7 / 3:.4f}"]]
    assert [row[-1] for row in table if "all" in row] == ["1"]
    assert [row[1] for row in table if row[:1] == ["single"]] == ["1.5000"]
    assert [row[1] for row in table if row[:1] == ["two"]] == ["4.0000"]


def test_score_takes_prompts_from_a_file_and_shows_groups_to_rewards_that_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "s").mkdir()
    for i in range(12):  # 10 comes after 9
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "s" / f"{i}.png")
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "mine.py").write_text(
        "import flowrl.rewards as r\n"
        "@r.groupwise\ndef ranks(images, prompt, metadata):\n"
        "    return r.Detailed([float(i) for i in range(len(images))], {'red': images[:, 0, 0, 0]})\n"
    )
    assert call("score", "s", "--prompts", "p.txt", "--reward", "mine.py:ranks") == 0
    with Path("s/scores/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["one"] * 4 + ["two"] * 4 + ["three"] * 4
    assert [float(row["mine.py:ranks"]) for row in rows] == [0, 1, 2, 3] * 3
    assert [float(row["mine.py:ranks/red"]) for row in rows] == list(range(12))
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    capsys.readouterr()
    assert "12 images for 5 prompts" in refused(capsys, "score", "s", "--prompts", "p.txt", "--reward", "mine.py:ranks")


def test_rewards_are_listed_with_what_tests_show_of_them(capsys: pytest.CaptureFixture[str]):
    assert call("rewards", "--plain") == 0
    head, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert set(rows) == set(flowrl.rewards.TABLE)
    assert rows["jpeg_compressibility"]["evidence"] == rows["shapes"]["evidence"] == "real"
    assert all(row["licence"] not in ("", "-") and row["range"] and row["hacks"] for row in rows.values())
    assert call("rewards") == 0 and "Embedded" in capsys.readouterr().out
    assert call("rewards", "clip") == 0 and "bag of words" in capsys.readouterr().out
    assert "did you mean clip" in refused(capsys, "rewards", "clap")
    assert "flowrl rewards check shapes" in refused(capsys, "rewards", "clip", "shapes")
    assert "check what?" in refused(capsys, "rewards", "check")


def test_score_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder_of_images(tmp_path / "s", 2)
    assert "has a weight, which a score does not need" in refused(capsys, "score", "s", "--reward", "clip=0.5")
    (tmp_path / "mine.py").write_text("def none(images, prompts, metadata):\n    return [None] * len(images)\n")
    with pytest.warns(UserWarning):
        assert "could not score any of the 2 images" in refused(capsys, "score", "s", "--reward", "mine.py:none")
    (tmp_path / "s" / "8-0.png").write_bytes(b"no image")
    assert "8-0.png cannot be read as a picture" in refused(capsys, "score", "s", "--reward", "mine.py:none")


def test_seeds():
    assert parse_seeds("0,2-4, 3,9") == [0, 2, 3, 4, 9]
    for wrong in ("", "a", "1-", "-1", "1.5"):
        with pytest.raises(ValueError, match=r"^seeds "):
            parse_seeds(wrong)


def test_the_final_screen_compares_every_task_and_says_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_result(tmp_path / "my run")
    (folder / "lora").mkdir()
    for name in ("pytorch_lora_weights", "mine"):
        (folder / "lora" / f"{name}.safetensors").touch()
    dump(Recipe(), folder / "run.yaml")
    screen.final(folder)
    assert "ComfyUI" not in capsys.readouterr().out  # which has no embedded model
    dump(replace(Recipe(), policy=PolicySpec(model="someone/model")), folder / "run.yaml")
    screen.final(folder)
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert rows["single"].split() == ["single", "40", "0.500", "[0.400,", "0.600]", "→", "0.750", "[0.650,", "0.850]", "+0.250"]
    assert rows["counting"].split()[-1] == "-0.050"
    assert rows["all"].split() == ["all", "40", "0.210", "[0.110,", "0.310]", "→", "0.350", "[0.250,", "0.450]", "+0.140"]
    assert "mix_grpo, seed 3, 70 iterations, 4.2 minutes" in said
    assert f"run folder  {folder}\nfor ComfyUI {folder / 'lora' / 'mine.safetensors'}   #" in said
    assert "weights.safetensors" not in said
    commands = [shlex.split(line.partition("   # ")[0]) for line in said.partition("\nnext\n")[2].splitlines()]
    assert [words[1] if words[0].endswith("flowrl") else words[3] for words in commands] == ["sample", "report", "train"]
    assert commands[0][-3] == str(folder)  # quoted, so that it survives a space in the path


def test_the_final_screen_of_a_run_without_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    screen.final(write_result(tmp_path / "run", before=None, after=None, gain=None))
    said = capsys.readouterr().out
    assert "no held-out evaluation" in said and "--lora" not in said


def test_the_final_screen_without_a_result(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no result.json: the run has not finished; go on with flowrl train --resume"):
        screen.final(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        screen.final(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="has no method and seed"):
        screen.final(tmp_path)


def test_the_commands_to_go_on_with_are_valid(tmp_path: Path, trained: list[tuple[Recipe, str | None]]):
    """Pasted into the command line they parse, and the last one is the recipe it says."""
    for command, _ in screen.commands(write_result(tmp_path / "run")):
        words = shlex.split(command)
        words = words[words.index("flowrl") + 1 :] if "flowrl" in words else words[1:]
        if words[0] == "train":
            assert call(*words) == 0
    assert trained[0][0].policy.model == "stabilityai/stable-diffusion-3.5-medium"


def test_after_a_run_of_ones_own_model_the_commands_are_about_that_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(screen, "program", lambda: "flowrl")
    run = write_result(tmp_path / "run")
    dump(Recipe(policy=PolicySpec(model="owner/model"), run=RunSpec(iterations=50)), run / "run.yaml")
    (run / "samples").mkdir()
    (run / "lora").mkdir()
    row = {"caption": 0, "prompt": "a cat's hat", "task": None}
    (run / "samples" / "index.jsonl").write_text(json.dumps(row) + "\n")
    first, _, last = (shlex.split(command)[1:] for command, _ in screen.commands(run))
    assert first == ["sample", "a cat's hat", "--lora", str(run), "--out", str(run / "drawn")]
    assert last == ["train", "--resume", str(run), "--iterations", "100"]
    (run / "samples" / "index.jsonl").write_text(json.dumps({**row, "image": "hat.png"}) + "\n")
    assert shlex.split(screen.commands(run)[0][0])[2:6] == ["a cat's hat", "--image", "hat.png", "--lora"]


def test_report_calls_the_report_and_prints_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import flowrl.report

    opened: list[str] = []
    (tmp_path / "run.yaml").touch()
    monkeypatch.setattr(flowrl.report, "write", lambda folder: Path(folder) / "report.html")
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert call("report", str(tmp_path)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html") and opened == []
    assert call("report", str(tmp_path), "--open") == 0
    assert opened == [(tmp_path / "report.html").as_uri()]


def test_run_yaml_of_a_named_recipe_loads_equal(tmp_path: Path):
    from flowrl.recipes import named

    assert load(dump(named("shapes"), tmp_path / "run.yaml")) == named("shapes")
