"""A run from beginning to end: what it leaves behind, and that the same settings leave the same."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tinyrun
import torch
from PIL import Image

import flowrl.loop
from flowrl import checkpoint
from flowrl.loop import begin, iterate
from flowrl.recipe import MethodSpec, Recipe
from flowrl.recipes.run import train
from flowrl.rewards.lift import RewardError
from flowrl.samplers import chains, laws
from flowrl.samplers.noise import Source
from flowrl.sizes import Sizes

RATIO = {"ratio/first_max_abs", "ratio/max_abs", "ratio/bias", "clip/pre_update_fraction", "clip/fraction"}
EVERY = {
    "iteration",
    "reward/mean",
    "reward/std",
    "reward/best",
    "reward/zero_variance",
    "reward/invalid",
    "grad/norm",
    "kl/mean",
    "loss/policy",
    "anchored",
    "optim/lr",
    "seconds/rollout",
    "seconds/decode",
    "seconds/reward",
    "seconds/train",
    "seconds/total",
}


@pytest.fixture(scope="module", params=tinyrun.METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A finished run of each method."""
    folder = tmp_path_factory.mktemp("run") / "it"
    with tinyrun.one_thread():
        train(tinyrun.recipe(folder, {"sizes.group": 3}, method=tinyrun.METHODS[request.param]))
    return request.param, folder


def test_a_run_leaves_everything_it_promises(run: tuple[str, Path]) -> None:
    name, folder = run
    there = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    assert there == {"run.yaml", "result.json", "metrics.jsonl", "samples", "report.html", "checkpoints", "lora"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert set(row) >= EVERY | {f"reward/{tinyrun.BRIGHT}"} | (RATIO if name == "mix_grpo" else set()), EVERY - set(row)
        assert all(v is not None for v in row.values())
    assert [row["iteration"] for row in rows if "heldout/score" in row] == [1]
    result = json.loads((folder / "result.json").read_text())
    assert result["iterations"] == 3 and result["protocol"]["captions"] == 2 and result["minutes"] > 0
    assert result["gain"]["score"] == pytest.approx(result["after"]["score"] - result["before"]["score"])
    assert "http" not in re.findall(r'(?:src|href)="([^"]*)', (folder / "report.html").read_text())
    assert {p.name for p in (folder / "lora").iterdir()} == {"pytorch_lora_weights.safetensors", f"{folder.name}.safetensors"}
    assert len(list((folder / "samples" / "strengths").glob("*.png"))) == 2 * 4
    for when in ("before", "after"):
        pictures = sorted((folder / "samples" / when).iterdir())
        assert len(pictures) == 4 and all(np.asarray(Image.open(p)).std() > 1 for p in pictures)
    assert [e.iteration for e in checkpoint.entries(folder)][:2] == [3, 2]


@pytest.mark.ci
def test_run_yaml_repeats_the_run(run: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = run
    done = tinyrun.flowrl("train", str(folder / "run.yaml"), "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr[-3000:]
    tinyrun.same_run(folder, tmp_path / "again")
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, tmp_path / "again"))
    assert {k: first[k] for k in ("before", "after", "gain")} == {k: second[k] for k in ("before", "after", "gain")}


def test_values_given_in_python_are_repeated_from_run_yaml(tmp_path: Path) -> None:
    given = [{"prompt": text, "tag": "odd" if i % 2 else "even"} for i, text in enumerate(tinyrun.PROMPTS)]
    train(tinyrun.recipe(tmp_path / "a", {"run.iterations": 2}), prompts=given)
    result = train(resume=tmp_path / "a", overrides={"run.iterations": 3})
    assert result.before is not None and set(result.before["tasks"]) <= {"odd", "even"} and result.before["tasks"]
    train(tinyrun.recipe(tmp_path / "b", {"run.iterations": 3}), prompts=given)
    tinyrun.same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("spec", tinyrun.METHODS.values(), ids=tinyrun.METHODS)
def test_a_learning_rate_of_zero_changes_nothing(tmp_path: Path, spec: Any) -> None:
    result = train(tinyrun.recipe(tmp_path / "run", {"optim.lr": 0.0, "run.keep": 5, "run.iterations": 2}, spec))
    assert result.before == result.after and result.gain is not None and result.gain["score"] == 0
    first, last = (checkpoint.load(tmp_path / "run" / "checkpoints" / f"{i:06d}")[1]["weights"] for i in (0, 2))
    assert not list(tinyrun.differences(first, last))
    for before, after in zip(
        sorted((tmp_path / "run/samples/before").iterdir()), sorted((tmp_path / "run/samples/after").iterdir()), strict=True
    ):
        assert before.read_bytes() == after.read_bytes()


@pytest.mark.ci
def test_training_raises_the_reward_it_trains() -> None:
    """Brightness of a tiny random model, measured on its own images of the first and the last iterations."""
    parts = tinyrun.parts(
        {"optim.lr": 3e-3, "sizes.prompts": 4, "sizes.group": 8, "method.args.beta": 0.0, "method.args.updates": 1},
        reward=lambda images, prompts, metadata: images.mean((1, 2, 3)).tolist(),
    )
    session = begin(parts, Sizes(8, 32))
    means = [iterate(parts, session)["reward/mean"] for _ in range(24)]
    assert np.mean(means[-4:]) > np.mean(means[:4]) + 2, means


def test_a_reward_given_in_python_and_a_weighted_pair(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"rewards": (), "run.iterations": 1, "evaluate.every": 0})
    ones = lambda images, prompts, metadata: [1.0] * len(images)  # noqa: E731
    train(made, rewards={"bright": tinyrun.bright, "ones": (ones, 0.5)})
    row = tinyrun.rows(tmp_path / "run")[0]
    assert (
        row["reward/mean"] == pytest.approx(row["reward/bright"] + 0.5 * row["reward/ones"], abs=1e-6) and row["reward/ones"] == 1.0
    )
    with pytest.raises(
        ValueError, match="the run was trained for the rewards bright, ones, and is now given bright; pass the same ones"
    ):
        train(resume=tmp_path / "run", rewards={"bright": tinyrun.bright})


def test_images_that_could_not_be_scored_are_counted_and_left_out(tmp_path: Path) -> None:
    def partly(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float("nan") if i % 4 == 0 else v for i, v in enumerate(tinyrun.bright(images, prompts, metadata))]

    made = tinyrun.recipe(tmp_path / "run", {"rewards": (), "data.heldout": 0.0})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(made, rewards={"partly": partly})
    assert len([w for w in told if "could not score 2 of 8 images" in str(w.message)]) == 1, "warned once"
    assert [row["reward/invalid"] for row in tinyrun.rows(tmp_path / "run")] == [0.25] * 3
    assert tinyrun.final(tmp_path / "run")[1]["states"]["rewards"]["partly"] == {"scored": 24, "failed": 6}


def test_prompts_fewer_than_an_iteration_takes_odd_groups_and_parts_that_do_not_divide(tmp_path: Path) -> None:
    made = tinyrun.recipe(
        tmp_path / "run",
        {
            "sizes.prompts": 5,
            "sizes.group": 3,
            "sizes.slice": None,
            "sizes.batch": None,
            "run.iterations": 2,
            "method.args.updates": 4,
            "data.heldout": 0.0,
        },
    )
    train(made, prompts=tinyrun.PROMPTS[:2])
    assert len(tinyrun.rows(tmp_path / "run")) == 2


def test_no_iterations_and_nothing_held_out(tmp_path: Path) -> None:
    result = train(tinyrun.recipe(tmp_path / "none", {"run.iterations": 0}))
    assert result.iterations == 0 and result.before == result.after and (tmp_path / "none" / "report.html").is_file()
    result = train(tinyrun.recipe(tmp_path / "blind", {"data.heldout": 0.0, "run.iterations": 1}))
    assert result.before is result.after is result.gain is None
    written = json.loads((tmp_path / "blind" / "result.json").read_text())
    assert "before" not in written and written["protocol"]["captions"] == 0 and (tmp_path / "blind" / "report.html").is_file()


def test_minutes_end_a_run_early_and_it_still_finishes(tmp_path: Path) -> None:
    result = train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 10_000, "run.minutes": 0.02, "run.save_every": 1000}))
    assert 0 < result.iterations < 10_000 and not result.interrupted and result.after is not None
    assert checkpoint.entries(tmp_path / "run")[0].iteration == result.iterations


def test_every_prompt_has_its_own_noise_where_plans_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots keep their place in the iteration's list when prompts of unlike plans are walked apart."""
    parts = tinyrun.parts({"sizes.prompts": 4})
    parts.method.__dict__["plan_at"] = lambda it, sigmas, slot: chains(
        sigmas, laws.flow_sde(0.7), (0, 1) if slot % 2 else (1, 2), 4
    )
    kept: list[Any] = []
    collect = flowrl.loop.collect
    monkeypatch.setattr(flowrl.loop, "collect", lambda *a, **k: kept.append(collect(*a, **k)) or kept[-1])
    iterate(parts, begin(parts, Sizes(4, 4)))
    assert [got.rollout.slots.tolist() for got in kept] == [[0, 2], [1, 3]]
    odd = kept[1].rollout
    assert torch.equal(
        odd.states(odd.plan.roots[:1])[1, 0], Source(0, 0).normal(parts.policy.latent_shape(), 3, int(odd.plan.roots[0]))
    )


def test_a_failed_start_leaves_no_run_behind(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {"policy.model": str(tmp_path)})
    with pytest.raises(ValueError, match=r"is no pipeline in diffusers format"):
        train(made)
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 0}))


def test_a_script_without_logging_sees_the_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("flowrl")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [])
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 0}))
    assert "2 prompts x 4 images = 8 images an iteration" in capsys.readouterr().err


@pytest.mark.parametrize("updates", [1, 2])
def test_a_clip_that_cannot_act_is_said_in_log_result_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, updates: int
) -> None:
    caplog.set_level(logging.INFO, "flowrl")
    train(tinyrun.recipe(tmp_path / "run", {"run.iterations": 0}, MethodSpec("mix_grpo", {"window": 2, "updates": updates})))
    page = (tmp_path / "run" / "report.html").read_text()
    noted = json.loads((tmp_path / "run" / "result.json").read_text())["notes"]
    assert len(noted) == (updates == 1)
    for said in (caplog.text, page, "".join(noted)):
        assert ("the clip cannot act" in said) == (updates == 1)


def test_a_reward_that_raises_is_named(tmp_path: Path) -> None:
    def broken(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        raise KeyError("x")

    with pytest.raises(RewardError, match="reward 'broken' failed on 4 images: KeyError: 'x'"):
        train(tinyrun.recipe(tmp_path / "run", {"rewards": ()}), rewards={"broken": broken})


@pytest.mark.ci
def test_saved_weights_give_the_same_images_in_plain_diffusers(tmp_path: Path) -> None:
    """The policy's own images at the end of training, and a fresh pipeline's with load_lora_weights in a process without flowrl."""
    parts = tinyrun.parts({"policy.guidance": 2.0})
    session = begin(parts, Sizes(4, 4))
    for _ in range(2):
        iterate(parts, session)
    from flowrl import export

    export.save(parts.policy, tmp_path / "lora")
    plan = chains(parts.policy.sigmas(6), laws.ode(), (), 1)
    start = torch.stack([Source(5, 0).normal(parts.policy.latent_shape(), slot, 0) for slot in range(2)])
    np.save(tmp_path / "start.npy", start.numpy())
    cond = parts.policy.encode(list(tiny.PROMPTS))
    from flowrl.samplers import rollout

    ro = rollout(
        plan,
        lambda x, sigma, slot: parts.policy.predict(x, sigma, cond.take(slot)),
        2,
        start.shape[1:],
        lambda slot, node: start[slot],
    )
    with torch.no_grad():
        mine = parts.policy.images(ro.states(plan.leaves)[:, 0])
    tiny.run_plain(
        [
            {
                "model": tinyrun.model(),
                "lora": str(tmp_path / "lora"),
                "latents": str(tmp_path / "start.npy"),
                "out": str(tmp_path / "out"),
                "call": {"prompt": list(tiny.PROMPTS), "num_inference_steps": 6, "guidance_scale": 2.0, "max_sequence_length": 16},
            }
        ],
        tmp_path,
    )
    theirs = torch.from_numpy(np.load(tmp_path / "out.np.npy"))
    assert mine.std() > 0.05 and (mine - theirs).abs().max() <= 1e-5
    parts.policy.network.disable_adapters()
    with torch.no_grad():
        plain = rollout(
            plan, lambda x, sigma, slot: parts.policy.predict(x, sigma, cond.take(slot)), 2, start.shape[1:], lambda s, n: start[s]
        )
    assert (parts.policy.images(plain.states(plan.leaves)[:, 0]) - theirs).abs().max() > 1e-2, "the adapter must matter"


def test_the_default_recipe_is_data() -> None:
    assert Recipe().run.iterations == 100
