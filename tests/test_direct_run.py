"""Whole runs of direct methods: the embedded model under the embedded CLIP, through the same door as every other run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tinyrun
import torch

from flowrl import settings
from flowrl.models import load_policy
from flowrl.recipe import LoraSpec, MethodSpec, PolicySpec, Recipe, RewardSpec
from flowrl.recipes.run import train
from flowrl.rewards import make

DRAFT, SRPO = MethodSpec("draft", {"k": 2, "beta": 0.01}), MethodSpec("srpo", {"wanted": "a ", "unwanted": "no "})


def recipe(folder: Path, method: MethodSpec, model: str, iterations: int) -> Recipe:
    """Two prompts of two images, four steps, under the embedded CLIP."""
    sizes = {"sizes.group": 2, "sizes.slice": 2, "evaluate.images": 1, "evaluate.every": 0}
    changes = {**sizes, "policy.model": model, "run.iterations": iterations, "optim.lr": 3e-3}
    return replace(tinyrun.recipe(folder, changes, method), rewards=(RewardSpec("clip"),))


@pytest.mark.parametrize(("spec", "model"), [(DRAFT, "shapes"), (SRPO, tinyrun.model())], ids=["draft on shapes", "srpo"])
def test_a_run_resumes_exactly_and_leaves_its_adapter(tmp_path: Path, spec: MethodSpec, model: str) -> None:
    with tinyrun.one_thread():
        train(recipe(tmp_path / "straight", spec, model, 2))
        train(recipe(tmp_path / "halved", spec, model, 1))
        result = train(resume=tmp_path / "halved", overrides={"run.iterations": 2})
    tinyrun.same_run(tmp_path / "straight", tmp_path / "halved")
    assert result.gain is not None and result.iterations == 2
    rows = tinyrun.rows(tmp_path / "straight")
    assert all(r["grad/norm"] > 0 and -1 <= r["reward/clip"] <= 1 for r in rows)
    assert ("kl/mean" in rows[0]) == (spec.name == "draft")
    for name in ("report.html", "result.json", "lora/pytorch_lora_weights.safetensors"):
        assert (tmp_path / "halved" / name).is_file()
    assert json.loads((tmp_path / "halved" / "result.json").read_text())["method"] == spec.name


@pytest.mark.ci
def test_clip_rises_on_held_out_prompts_when_it_is_followed(tmp_path: Path) -> None:
    with tinyrun.one_thread():
        result = train(recipe(tmp_path / "run", MethodSpec("draft", {"k": 2}), "shapes", 10))
    assert result.gain is not None and result.gain["score"] > 0.01, result


@pytest.mark.ci
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Three prompts of three images in slices of two: a group's images are dealt to both."""
    odd = {"sizes.prompts": 3, "sizes.group": 3, "optim.eps": 1e-2, "evaluate.images": 1}
    made = [settings.resolve(recipe(tmp_path / name, DRAFT, tinyrun.model(), 2), odd) for name in ("one", "two")]
    processes = [*tinyrun.together(1, tmp_path / "one", made[0]), *tinyrun.together(2, tmp_path / "two", made[1])]
    assert [tinyrun.ended(p) for p in processes] == [0, 0, 0]
    assert [tinyrun.told(tmp_path / "two", rank)["error"] for rank in (0, 1)] == [None, None]
    one, two = (tinyrun.final(tmp_path / name)[1]["weights"]["current"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    means = [[r["reward/mean"] for r in tinyrun.rows(tmp_path / name)] for name in ("one", "two")]
    assert means[0] == pytest.approx(means[1], abs=1e-5)


def test_a_reward_without_gradient_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    made = tinyrun.recipe(tmp_path / "run", {}, MethodSpec("draft"))
    with pytest.raises(ValueError, match="only scores; use clip, or mark a function of float images"):
        train(made)
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_decoded_pixels_are_the_differentiable_images_rounded() -> None:
    policy = load_policy(PolicySpec(model=tinyrun.model(), dtype="float32", max_sequence_length=16, lora=LoraSpec(rank=2)))
    x0 = torch.randn(3, *policy.latent_shape(), generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = policy.images(x0)
    assert torch.equal(policy.decode(x0.detach()), (images.detach() * 255).round().to(torch.uint8))
    (gradient,) = torch.autograd.grad(make_score(images), x0)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def make_score(images: torch.Tensor) -> torch.Tensor:
    reward = make("clip")
    return reward.with_graph(images, ["a red circle"] * len(images), [{}] * len(images)).sum()  # pyright: ignore
