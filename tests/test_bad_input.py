"""What a user gets wrong comes back as a sentence: what, with which value, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch

from flowrl import checkpoint
from flowrl.recipes.run import train

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"optim.lrr": 1e-3}, r"unknown setting optim\.lrr: did you mean optim\.lr"),
    "wrong type": ({"run.iterations": "many"}, r"run\.iterations: expected a whole number, got 'many'"),
    "out of range": ({"optim.lr": -1.0}, r"optim\.lr must be at least 0, got -1\.0"),
    "group of one": ({"sizes.group": 1}, r"sizes\.group is 1: a group of 1 has nothing to compare with, .*use at least 2"),
    "unknown method": (
        {"method.name": "mix_grop"},
        r"method 'mix_grop' is unknown \(did you mean 'mix_grpo'\?\); there are: flow_grpo, ",
    ),
    "method of a missing module": (
        {"method.name": "nowhere:f"},
        r"method 'nowhere:f': there is no module 'nowhere'",
    ),
    "unknown argument": ({"method.args": {"windo": 2}}, r"unknown setting method\.args\.windo: did you mean method\.args\.window"),
    "argument of the wrong type": ({"method.args": {"window": "two"}}, r"method\.args\.window: expected a whole number, got 'two'"),
    "group as an argument": ({"method.args": {"group": 4}}, r"the group size is sizes\.group; take method\.args\.group out"),
    "ratio without noise": (
        {"method.name": "flow_grpo", "method.args": {}, "policy.steps": 1},
        r"a ratio objective needs a plan with noisy steps; this plan has none",
    ),
    "no noise at all": ({"method.args": {"window": 1, "noise": 0.0}}, r"is marked noisy but its law gives std 0 there"),
    "window too long": (
        {"method.args": {"window": 9}},
        r"a window of 9 steps does not fit into 2 trainable steps; use a size from 1 to 2",
    ),
    "window of the method's own": (
        {"method.args": {}, "policy.steps": 3},
        r"a window of 4 steps does not fit into 1 trainable step; use a size of 1 \(method mix_grpo with its own arguments, "
        r"policy\.steps 3, sizes\.group 4\)$",
    ),
    "no step to train on": (
        {"method.args": {"window": 2}, "policy.steps": 2},
        r"does not fit into 0 trainable steps; take more steps \(method mix_grpo with method\.args window=2, policy\.steps 2, ",
    ),
    "children of no whole trajectory": (
        {"method.name": "tempflow_grpo", "method.args": {}},
        r"4 children a step do not make whole trajectories of 6; make the group a multiple of 6 \(method tempflow_grpo with its "
        r"own arguments, sizes\.group 4\)$",
    ),
    "full fine-tuning in half precision": (
        {"policy.lora.rank": 0, "policy.dtype": "bfloat16"},
        r"full fine-tuning \(lora\.rank 0\) of bfloat16 weights loses updates",
    ),
    "window out of the schedule": (
        {"method.name": "flow_grpo_fast", "method.args": {"high": 9, "low": 6}},
        r"no window of 3 steps fits into steps 6 to 2",
    ),
    "clip range too small": (
        {"method.args": {"clip": 1e-9}},
        r"clip range 1e-09 is below 3\.6e-07, 3x the float32 resolution of the ratio; use at least 1e-6",
    ),
    "more updates than chains": (
        {"method.args": {"window": 2, "skip_last": 1, "updates": 9}},
        r"9 optimizer steps a rollout, but only 8 chains to train on",
    ),
    "no optimizer step": (
        {"method.args": {"updates": 0}},
        r"0 optimizer steps a rollout over 1 epochs trains nothing; give at least 1",
    ),
    "a KL below 0": (
        {"method.name": "flow_grpo", "method.args": {"beta": -1.0}},
        r"would reward leaving the reference; give 0 or more",
    ),
    "a target without a KL": (
        {"method.name": "flow_grpo", "method.args": {"beta": 0.0, "target": 1e-3}},
        r"without a beta there is none: give beta",
    ),
    "no other reward to compare with": (
        {"method.name": "gardo", "method.args": {}, "evaluate.features": "flowrl.shapes.judge:features"},
        r"add one of weight 0",
    ),
    "budgets above all images": (
        {"data.selection": {"name": "knapsack", "args": {"high": 100000}}},
        r"high is 100000, but 2 prompts with \d images each are",
    ),
    "no reward": ({"rewards": ()}, r"there is no reward to train for; give --reward NAME"),
    "one reward twice": (
        {"rewards": [{"name": tinyrun.BRIGHT}, {"name": tinyrun.BRIGHT}]},
        r"is given twice; add the weights up instead",
    ),
    "unknown reward": ({"rewards": [{"name": "clipp"}]}, r"clip"),
    "missing prompts": ({"data.prompts": "/nowhere/prompts.txt"}, r"/nowhere/prompts\.txt"),
    "missing model": ({"policy.model": "/nowhere/model"}, r"model '/nowhere/model' is neither a folder, a file nor a hub name"),
    "unknown device": (
        {"run.device": "cuda"},
        r'device "cuda" was asked for, but torch sees no CUDA device; use --set run\.device=cpu',
    ),
}


@pytest.mark.parametrize(("changes", "said"), CASES.values(), ids=CASES)
def test_a_setting_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    if changes.get("run.device") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    made = tinyrun.recipe(tmp_path / "run")
    with pytest.raises((ValueError, OSError), match=said):
        train(made, {"method.args": {"window": 2, "skip_last": 2}, **changes})
    assert not (tmp_path / "run").exists(), "a failed start is no run"


def test_a_failed_start_leaves_what_was_there(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "samples").mkdir(parents=True)
    wrong = {"policy.lora.rank": 0, "policy.dtype": "bfloat16"}
    for folder in (kept, kept / "a" / "b"):
        with pytest.raises(ValueError, match="full fine-tuning"):
            train(tinyrun.recipe(folder, wrong))
        assert [p.relative_to(kept) for p in kept.rglob("*")] == [Path("samples")]
    (kept / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="full fine-tuning"):
        train(tinyrun.recipe(kept, wrong))
    assert {p.name for p in kept.iterdir()} == {"samples", "note.txt"}


def test_a_model_with_a_weight_that_is_no_number(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tinyrun.model(), tmp_path / "model"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.weight"][0, 0] = float("nan")
    save_file(weights, file)
    said = r"the weight 'proj_out\.weight' of transformer is not finite \(1 of \d+ values .*the file is damaged"
    with pytest.raises(ValueError, match=said):
        train(tinyrun.recipe(tmp_path / "run", {"policy.model": str(folder)}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"prompts\.txt holds no prompts; give at least one"),
        (b"a red circle\n\xff\xfe\x00 not text\n", r"prompts\.txt.*(UTF-8|utf-8)"),
    ],
    ids=["empty", "not UTF-8"],
)
def test_prompts_that_cannot_be_read(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        train(tinyrun.recipe(tmp_path / "run"), prompts=tmp_path / "prompts.txt")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda images: [1.0] * (len(images) - 1), r"reward 'bad' returned 3 scores for 4 images; return one number an image"),
        (
            lambda images: [float("nan")] * len(images),
            r"reward 'bad' could score none of the 8 images of this iteration; see its warnings above",
        ),
        (lambda images: [float("inf")] * len(images), r"infinite in float32; return a finite number, or NaN"),
        (lambda images: 0.5, r"reward 'bad' returned 0\.5 \(float\); return a list"),
    ],
    ids=["too few", "none", "infinite", "one number"],
)
@pytest.mark.filterwarnings("ignore:reward 'bad' could not score")
def test_a_reward_that_returns_nonsense(tmp_path: Path, result: Any, said: str) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"rewards": (), "data.heldout": 0.0, "method.args.updates": 1})
    with pytest.raises((ValueError, TypeError), match=said.replace("3 scores for 4", "7 scores for 8")):
        train(made, rewards={"bad": lambda images, prompts, metadata: result(images)})


@pytest.mark.filterwarnings("ignore:reward ")
def test_rewards_that_never_score_the_same_image(tmp_path: Path) -> None:
    def half(which: int) -> Any:
        return lambda images, prompts, metadata: [1.0 if i % 2 == which else float("nan") for i in range(len(images))]

    with pytest.raises(ValueError, match="no image of this iteration could be scored by all of even, odd"):
        train(tinyrun.recipe(tmp_path / "run", {"rewards": (), "data.heldout": 0.0}), rewards={"even": half(0), "odd": half(1)})


def test_a_folder_that_holds_a_run_or_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    train(tinyrun.recipe(folder, {"run.iterations": 0}))
    with pytest.raises(
        FileExistsError, match=r"already holds a run \(.*\): resume that run, choose another folder with --set run\.folder"
    ):
        train(tinyrun.recipe(folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"is a file, so .* cannot be a run's folder"):
        train(tinyrun.recipe(tmp_path / "file" / "run"))
    write = Path.write_bytes

    def refused(self: Path, data: bytes) -> int:
        if self.name == ".flowrl-probe":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(PermissionError, match=r"cannot be written to \(Permission denied\): choose another folder"):
        train(tinyrun.recipe(tmp_path / "locked"))


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give the folder of a run"):
        train(resume=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no run"):
        train(resume=tmp_path)


def test_checkpoints_that_are_all_damaged_and_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tinyrun.recipe(folder, {"run.iterations": 1, "run.keep": 1}))
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    for state in folder.glob("checkpoints/*/state.pt"):
        state.write_bytes(b"nonsense")
    with pytest.raises(
        FileNotFoundError, match=r"No checkpoint in .* is whole \(000001: .*\): start the run again in another folder"
    ):
        train(resume=folder)
    with pytest.raises(
        ValueError, match=r"the checkpoint holds weight sets \['current'\], this method needs \['average', 'current', 'old'\]"
    ):
        train(resume=kept, overrides={"method.name": "diffusion_nft", "method.args": {}})


def test_a_full_disk_ends_with_a_sentence_and_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, saved = checkpoint.Sink.write, checkpoint.save

    def full(self: Any, data: bytes) -> int:
        if left[0] <= 0:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    def counted(*args: Any) -> Path:
        path = saved(*args)
        left[0] -= 1
        return path

    left = [3]
    monkeypatch.setattr(checkpoint.Sink, "write", full)
    monkeypatch.setattr(checkpoint, "save", counted)
    with pytest.raises(
        OSError, match=r"There is no room for a checkpoint in .*: it needs \d+ bytes, \d+ bytes are free\. Free space or lower"
    ):
        train(tinyrun.recipe(tmp_path / "run"))
    assert tinyrun.final(tmp_path / "run")[0] == 2
    monkeypatch.undo()
    train(resume=tmp_path / "run")
    train(tinyrun.recipe(tmp_path / "whole"))
    tinyrun.same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "optim.lrr=1"], "error: unknown setting optim.lrr: did you mean optim.lr"),
        (["--set", "method.name=mix_grop"], "error: method 'mix_grop' is unknown (did you mean 'mix_grpo'?)"),
    ],
    ids=["key", "method"],
)
def test_the_command_line_says_it_in_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    from flowrl.settings import dump

    path = dump(tinyrun.recipe(tmp_path / "run"), tmp_path / "recipe.yaml")
    done = tinyrun.flowrl("train", str(path), *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
