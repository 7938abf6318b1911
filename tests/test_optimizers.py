"""The 8-bit optimizer: what it is on which device, and that a run resumes with it to the bit."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch
from torch import nn

from flowrl import optimizers
from flowrl.recipe import OptimSpec
from flowrl.recipes.run import train

TORCHAO = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao is not installed")
SPECS = [OptimSpec(lr=1e-2), pytest.param(OptimSpec("adamw8bit", lr=1e-2), marks=TORCHAO)]


@TORCHAO
def test_a_first_step_of_minutes_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    optimizers.make(OptimSpec(), parameters())
    assert not caplog.messages
    optimizers.make(OptimSpec("adamw8bit"), parameters())
    assert caplog.messages == [
        "adamw8bit is compiled by torch at the first optimizer step, which takes minutes without a CUDA device"
    ]


def parameters() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((64, 128), (8, 16))]


def descend(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for p in weights:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizers.set_rate(optimizer, 1e-2 / (1 + step))
        optimizer.step()


def halves(make: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights after six steps in one go, and in two with a file between them."""
    whole = parameters()
    descend(make(whole), whole, range(6))
    first = parameters()
    optimizer = make(first)
    descend(optimizer, first, range(3))
    file = io.BytesIO()
    torch.save({"weights": [p.detach() for p in first], "optimizer": optimizers.state(optimizer)}, file)
    file.seek(0)
    told = torch.load(file, weights_only=True)
    second = [nn.Parameter(p) for p in told["weights"]]
    again = make(second)
    optimizers.load(again, told["optimizer"]["state"])
    descend(again, second, range(3, 6))
    return whole, second


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_two_halves_are_the_whole_to_the_bit(spec: OptimSpec) -> None:
    whole, second = halves(lambda weights: optimizers.make(spec, weights))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_two_halves_of_bitsandbytes_are_the_whole_to_the_bit() -> None:
    kind = pytest.importorskip("bitsandbytes").optim.AdamW8bit
    whole, second = halves(lambda weights: kind(weights, lr=1e-2))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_eight_bits_are_a_byte_a_moment_and_move_the_weights_nearly_as_float32_does() -> None:
    pytest.importorskip("torchao")
    ends = []
    for name in ("adamw", "adamw8bit"):
        weights = parameters()
        optimizer = optimizers.make(OptimSpec(name, lr=1e-2), weights)
        descend(optimizer, weights, range(6))
        ends.append([p.detach() - q for p, q in zip(weights, parameters(), strict=True)])
    large, small = (optimizers.state(optimizer)["state"][i]["exp_avg"] for i in (0, 1))
    assert large["codes"].dtype == torch.uint8 and large["scale"].numel() == 64 * 128 // 256
    assert small.dtype == torch.float32, "fewer than 4096 values"
    # differences of float32 weights of the order of 1
    assert (ends[0][1] - ends[1][1]).abs().max() < 1e-6
    # a moment of 8 bits is right to a few per cent
    assert 0 < (ends[0][0] - ends[1][0]).norm() < 0.1 * ends[0][0].norm()


def test_a_run_in_two_pieces_is_the_whole_run(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    changes = {"optim.name": "adamw8bit", "run.iterations": 3, "optim.warmup": 2, "policy.lora.rank": 256}
    with tinyrun.one_thread():
        train(tinyrun.recipe(tmp_path / "whole", changes))
        train(tinyrun.recipe(tmp_path / "run", {**changes, "run.iterations": 1}))
        train(resume=tmp_path / "run", overrides={"run.iterations": 3})
    tinyrun.same_run(tmp_path / "whole", tmp_path / "run")
    held = tinyrun.final(tmp_path / "run")[1]["optimizer"]["state"].values()
    assert any(isinstance(one["exp_avg"], dict) for one in held), "some moments are in 8 bits"


@pytest.mark.parametrize(("device", "package"), [("cpu", "torchao"), ("cuda", "bitsandbytes")])
def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch, device: str, package: str) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    p = nn.Parameter(torch.zeros(2))
    monkeypatch.setattr(type(p), "device", torch.device(device), raising=False)
    with pytest.raises(ValueError, match=f"needs the package {package}, which is not installed; pip install {package}"):
        optimizers.make(OptimSpec("adamw8bit"), [p])


def test_moments_of_another_optimizer_are_refused() -> None:
    weights = parameters()
    plain = optimizers.make(OptimSpec(), weights)
    descend(plain, weights, range(1))
    packed = {0: {"exp_avg": dict.fromkeys(optimizers.PACKED, torch.zeros(1))}}
    with pytest.raises(ValueError, match="holds moments of torchao, and the run is now given adamw"):
        optimizers.load(plain, packed)
    optimizers.load(plain, optimizers.state(plain)["state"])
