"""A plain network as a policy: it learns by the same run as any model, and its states are read back exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyrun
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import flowrl
from flowrl import settings
from flowrl.models import Digits, FieldPolicy, load_policy
from flowrl.recipes.run import Result
from flowrl.rewards import differentiable

ANGLES = {"east": 0.0, "north": math.pi / 2, "west": math.pi, "south": -math.pi / 2}
DIGITS = Digits((2,), -4, 4)


class Points(nn.Module):
    """The exact velocity of points of N(0, 1), and a correction that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.correction = nn.Sequential(nn.Linear(5, 24), nn.SiLU(), nn.Linear(24, 2))
        nn.init.zeros_(self.correction[2].weight)
        nn.init.zeros_(self.correction[2].bias)

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        level = sigma[:, None]
        exact = x * (2 * level - 1) / ((1 - level) ** 2 + level**2)
        return exact + self.correction(torch.cat([x, level, cond], 1))


class Pairs(Points):
    """Answers as networks of diffusers do."""

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Any:
        return (super().forward(x, sigma, cond),)


def directions(prompts: list[str]) -> Tensor:
    return torch.tensor([[math.cos(ANGLES[p]), math.sin(ANGLES[p])] for p in prompts])


def there(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
    """How far a point lies in its prompt's direction."""
    return (DIGITS.read(images) * directions(prompts).numpy()).sum(1)


def smooth(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    at = (images[:, 0, 0, :2] - 0.5) * 8
    return (at * directions(prompts)).sum(1)


def faint(x0: Tensor) -> Tensor:
    """Red and green are x and y."""
    seen = (x0 / 8 + 0.5).clamp(0, 1)
    return torch.cat([seen, torch.zeros_like(seen[:, :1])], 1)[:, None, None]


def policy(**more: Any) -> FieldPolicy:
    return FieldPolicy(Points(), (2,), **{"encode": directions, "decode": DIGITS, **more})


SETTINGS: dict[str, Any] = {
    "policy.steps": 6, "method.name": "flow_grpo", "sizes.prompts": 4, "sizes.group": 12, "optim.lr": 2e-2, "run.iterations": 12,
    "run.device": "cpu", "run.save_every": 4, "data.heldout": 0.0, "evaluate.every": 0,
}  # fmt: skip


def train(folder: Path, made: FieldPolicy | None, reward: Any = there, **more: Any) -> Result:
    return flowrl.train(
        None, {**SETTINGS, "run.folder": str(folder), **more}, policy=made, prompts=list(ANGLES), rewards={"there": reward}
    )


def rewards(folder: Path) -> list[float]:
    return [json.loads(line)["reward/mean"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FieldPolicy]:
    folder, made = tmp_path_factory.mktemp("field") / "run", policy()
    train(folder, made)
    return folder, made


def test_points_move_toward_their_reward(run: tuple[Path, FieldPolicy]) -> None:
    seen = rewards(run[0])
    assert abs(seen[0]) < 0.5
    assert seen[-1] > seen[0] + 1.0


def test_the_weights_that_were_trained_are_saved(run: tuple[Path, FieldPolicy]) -> None:
    folder, made = run
    fresh = Points()
    before = {name: p.clone() for name, p in fresh.named_parameters()}
    fresh.load_state_dict(load_file(folder / "lora" / "weights.safetensors"), strict=False)
    for name, p in fresh.named_parameters():
        assert torch.equal(p, dict(made.trainable())[name])
        assert not torch.equal(p, before[name])


def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_does(run: tuple[Path, FieldPolicy], tmp_path: Path) -> None:
    train(tmp_path / "half", policy(), **{"run.iterations": 8})
    again = policy()
    flowrl.train(None, {"run.iterations": 12}, policy=again, rewards={"there": there}, resume=tmp_path / "half")
    for (_, p), (_, q) in zip(again.trainable(), run[1].trainable(), strict=True):
        assert torch.equal(p, q)


def test_a_run_of_a_value_cannot_go_on_without_it(run: tuple[Path, FieldPolicy]) -> None:
    with pytest.raises(ValueError, match="a FieldPolicy; give it again: policy="):
        flowrl.train(None, {"run.iterations": 13}, rewards={"there": there}, resume=run[0])


def test_a_frozen_reference_is_a_weight_set(tmp_path: Path) -> None:
    train(tmp_path / "run", policy(), **{"method.args.beta": 0.1, "run.iterations": 2})
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kl/mean"] > 0


def test_a_method_of_gradients_needs_images_with_a_graph(tmp_path: Path) -> None:
    direct = {"method.name": "draft", "run.iterations": 4, "sizes.group": 2}
    train(tmp_path / "run", policy(decode=faint), differentiable(smooth), **direct)
    seen = rewards(tmp_path / "run")
    assert seen[-1] > seen[0]
    with pytest.raises(ValueError, match="decode returns uint8"):
        policy().images(torch.zeros(1, 2, requires_grad=True))


def test_digits_are_read_back() -> None:
    x0 = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 6 - 3
    digits = Digits((3, 2, 2), -3, 3)
    images = digits(x0)
    assert images.shape == (5, 3, 4, 3)
    assert np.abs(digits.read(images.numpy()) - x0.numpy()).max() <= 3 / (2**24 - 1) + 1e-12


def test_guidance_moves_away_from_the_negative_prompt() -> None:
    made = policy(guidance=3.0, negative="west")
    nn.init.normal_(made.network.correction[2].weight)
    x, sigma = torch.ones(1, 2), torch.full((1,), 0.5)
    ask = {p: made.predict(x, sigma, made.encode([p], 1.0)) for p in ("east", "west")}
    wanted = ask["west"] + 3 * (ask["east"] - ask["west"])
    torch.testing.assert_close(made.predict(x, sigma, made.encode(["east"])), wanted)


def test_a_prompt_is_read_once_and_none_after_the_reader_is_gone() -> None:
    asked: list[list[str]] = []
    made = policy(encode=lambda prompts: (asked.append(prompts), directions(prompts))[1])
    made.encode(["east", "north", "east"])
    made.encode(["east"])
    assert asked == [["east"], ["north"]]
    made.negative = "west"
    made.free_encoders(["south"])
    assert torch.equal(made.encode(["south", "east"]).batch()["cond"], directions(["south", "east"]))
    with pytest.raises(ValueError, match="was not encoded before"):
        made.encode(["up"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: FieldPolicy(Points(), ()), "no elements"),
        (lambda: FieldPolicy(Points().requires_grad_(False), (2,)), "requires a gradient"),
        (lambda: Digits((2,), 1, 1), "low below high"),
        (lambda: policy(encode=lambda prompts: torch.zeros(2)).encode(["east"]), r"returned shape \[2\]"),
        (lambda: policy(encode=lambda prompts: [1 for _ in prompts]).encode(["east"]),
            r"encode\(\['east'\]\) returned a list; give a tensor \[N, \.\.\.\], a row for each prompt"),
        (lambda: policy(decode=lambda x0: x0.numpy()).decode(torch.zeros(1, 2)), "decode returned a ndarray; return images"),
        (lambda: FieldPolicy(Pairs(), (2,), encode=directions).predict(torch.zeros(1, 2), torch.ones(1), policy().encode(["east"])),
            "the network returned a tuple; return a velocity, a tensor"),
        (lambda: FieldPolicy(print, (2,)), "the network is a builtin_function_or_method; give a torch.nn.Module"),
        (lambda: FieldPolicy(Points(), (3,), encode=directions).predict(
            torch.zeros(1, 3), torch.ones(1), policy().encode(["east"])), "."),
    ],
)  # fmt: skip
def test_wrong_input_is_a_sentence(wrong: Any, said: str) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError), match=said):
        wrong()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.nn.Linear(2, 2), r"policy is a Linear, a bare network: wrap it in flowrl\.models\.FieldPolicy"),
        ("shapes", r"policy is a str: make a policy of it, policy=flowrl\.load_policy"),
        (5, r"policy is a int, which is none \(it has no network, path, guidance, .*FieldPolicy"),
    ],
    ids=["network", "name", "number"],
)
def test_a_value_that_is_no_policy_is_a_sentence(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        train(tmp_path / "run", value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", [None, 5, object(), torch.nn.Linear(2, 2)], ids=["none", "number", "object", "network"])
def test_a_source_that_is_no_model_is_a_sentence(source: Any) -> None:
    said = rf"the model is a {type(source).__name__}: give a folder, a hub name, a file, a PolicySpec or a DiffusionPipeline"
    with pytest.raises(TypeError, match=said):
        flowrl.load_policy(source)
    with pytest.raises(TypeError, match=r"spec is a dict; give a flowrl\.recipe\.PolicySpec"):
        flowrl.load_policy("shapes", spec={"dtype": "float32"})  # pyright: ignore[reportArgumentType]


def test_the_recipe_cannot_contradict_the_policy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy\.guidance is 3"):
        train(tmp_path / "run", policy(), **{"policy.guidance": 3.0})


def test_a_pipeline_that_is_a_value_trains_as_the_recipe_would_have_it(tmp_path: Path) -> None:
    named, given = (tinyrun.recipe(tmp_path / name, {"run.iterations": 1, "evaluate.every": 0}) for name in ("named", "given"))
    with tinyrun.one_thread():
        flowrl.train(named)
        flowrl.train(given, policy=load_policy(given.policy))
    assert tinyrun.rows(tmp_path / "named") == tinyrun.rows(tmp_path / "given")
    assert settings.load(tmp_path / "given" / "run.yaml").policy.model == "given:DiffusersPolicy"
    assert (tmp_path / "given" / "lora" / "pytorch_lora_weights.safetensors").is_file()
