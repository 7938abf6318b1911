"""Every method of the table on the embedded model: three iterations of the real loop, and the same to the bit when interrupted."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from method_table import TABLE
from torch import Tensor

from flowrl import methods
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.loop import Parts, Session, begin, iterate
from flowrl.models import DiffusersPolicy, load_policy
from flowrl.recipe import LoraSpec, OptimSpec, PolicySpec, Recipe, SizesSpec
from flowrl.recipes import build, named
from flowrl.rewards import make
from flowrl.sizes import Sizes

pytestmark = pytest.mark.ci

GROUP = 4
"""The largest; enough for every structure of the table."""


@cache
def model(noisy: bool) -> tuple[DiffusersPolicy, list[Tensor]]:
    """Loaded once, so that its texts are encoded once; with the adapter's first weights."""
    spec = PolicySpec(dtype="float32", steps=6, max_sequence_length=16, noise_head=noisy, lora=LoraSpec(rank=4, alpha=8.0))
    policy = load_policy(spec, "cpu")
    return policy, [p.detach().clone() for _, p in policy.trainable()]


@cache
def captions() -> Prompts:
    return build.prompts(named("shapes").data)[0].take([0, 1])


def patches(images: np.ndarray) -> np.ndarray:
    """Mean colours of 8 x 8 patches: features that need no second model."""
    n, h, w, c = images.shape
    return images.reshape(n, h // 8, 8, w // 8, 8, c).mean((2, 4)).reshape(n, -1).astype(np.float32) + 1


def darkness(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return (-images.mean((1, 2, 3)) / 255).tolist()


def parts(name: str) -> Parts:
    """With an adapter that was never trained."""
    row = TABLE[name]
    policy, first = model(row.noisy)
    with torch.no_grad():
        for (_, p), start in zip(policy.trainable(), first, strict=True):
            p.copy_(start)
    args = row.args | {"group": min(GROUP, row.args["group"])}
    recipe = Recipe(
        policy=PolicySpec(steps=6, noise_head=row.noisy),
        optim=OptimSpec(lr=1e-3),
        sizes=SizesSpec(prompts=2, group=args["group"], slice=8, batch=8),
    )
    rewards = {"shapes:soft": (make("shapes:soft"), 1.0), "dark": (make(darkness, "dark"), 0.0)}
    return Parts(recipe, policy, methods.TABLE[name](**args), rewards, captions(), World(), features=patches)


def begun(of: Parts) -> Session:
    return begin(of, Sizes(slice=8, batch=8))


def rows(of: Parts, state: Session, count: int) -> list[dict[str, float]]:
    found = [iterate(of, state) for _ in range(count)]
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in found]


@pytest.mark.parametrize("name", TABLE)
def test_three_iterations_and_two_then_one_give_the_same_bits(name: str) -> None:
    of = parts(name)
    straight = begun(of)
    first = [p.detach().clone() for p in straight.weights.parameters]
    told = rows(of, straight, 2)
    saved = copy.deepcopy(straight.state())
    told += rows(of, straight, 1)
    whole = copy.deepcopy(straight.weights.state())
    if TABLE[name].ratio:
        assert all(row["ratio/first_max_abs"] == 0 and row["clip/pre_update_fraction"] == 0 for row in told)
    assert all(0 <= row["reward/mean"] <= 1 and row["reward/invalid"] == 0 for row in told)
    assert any(not torch.equal(p, f) for p, f in zip(whole["current"], first, strict=True))

    again = parts(name)
    resumed = begun(again)
    resumed.load(2, saved)
    assert rows(again, resumed, 1) == told[2:]
    other = resumed.weights.state()
    assert whole.keys() == other.keys()
    assert all(torch.equal(a, b) for k in whole for a, b in zip(whole[k], other[k], strict=True))
