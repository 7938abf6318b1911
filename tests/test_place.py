"""Where the parts of a pipeline are while it encodes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import hunyuan, sd
from tiny import PROMPTS, sd3_pipeline
from torch import nn

from flowrl.models import load_policy, place
from flowrl.models.place import Places
from flowrl.recipe import LoraSpec, PolicySpec

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Part(nn.Module):
    """Says where it is instead of going there."""

    def __init__(self, name: str, log: list[str], **marks: bool) -> None:
        super().__init__()
        self.name, self.log, self.at = name, log, "cpu"
        self.__dict__.update(marks)

    def to(self, device: torch.device) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if device.type != self.at:
            self.at = device.type
            self.log.append(f"{self.name} {self.at}")
        return self

    def forward(self) -> str:
        return self.at


def places(offload: tuple[str, ...], log: list[str], **marks: bool) -> tuple[Places, dict[str, Part]]:
    parts = {name: Part(name, log, **(marks if name == "net" else {})) for name in ("text", "text_2", "text_3", "vae", "net")}
    made = Places(SimpleNamespace(components=parts), {"net": parts["net"]}, offload, GPU)
    made.settle()
    log.clear()
    return made, parts


def test_several_encoders_are_on_the_device_one_at_a_time() -> None:
    log: list[str] = []
    made, parts = places(("encoders", "vae", "network"), log)
    with made.encoding():
        assert [part.at for part in parts.values()] == ["cpu", "cpu", "cpu", "cuda", "cpu"], "the decoder alone is there by itself"
        for name in ("text", "text_3", "text"):
            assert parts[name]() == "cuda"
            assert [n for n in ("text", "text_2", "text_3") if parts[n].at == "cuda"] == [name]
    assert [part.at for part in parts.values()] == ["cpu", "cpu", "cpu", "cpu", "cuda"]
    assert log.index("net cpu") < log.index("text cuda") < log.index("text cpu") < log.index("text_3 cuda")
    assert parts["text"]() == "cpu", "outside, a call moves nothing"


def test_encoders_that_stay_are_left_where_they_are() -> None:
    log: list[str] = []
    made, parts = places(("vae",), log)
    with made.encoding():
        assert parts["text"]() == "cuda"
    assert log == ["vae cuda", "vae cpu"]


@pytest.mark.parametrize(("mark", "moves"), [("is_loaded_in_4bit", True), ("is_loaded_in_8bit", False), ("_hf_hook", False)])
def test_a_network_in_4_bits_waits_on_the_cpu_as_is_planned(mark: str, moves: bool) -> None:
    log: list[str] = []
    made, parts = places(("encoders", "network"), log, **{mark: True})
    with made.encoding():
        assert parts["net"].at == "cpu"
    assert ("net cpu" in log) == ("net cuda" in log) == moves
    assert parts["net"].at == ("cuda" if moves else "cpu")


PIPES = {
    "sd3": (sd3_pipeline, {"max_sequence_length": 8}, ("text_encoder", "text_encoder_2")),
    "sdxl": (sd.sdxl, {}, ("text_encoder", "text_encoder_2")),
    "hunyuan": (
        hunyuan.pipeline,
        {"height": 32, "width": 32, "frames": 5, "max_sequence_length": 24},
        ("text_encoder", "text_encoder_2"),
    ),
}


@pytest.mark.parametrize("name", PIPES)
def test_every_real_encoder_is_brought_when_it_is_called_and_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, more, encoders = PIPES[name]
    asked = PolicySpec(dtype="float32", lora=LoraSpec(rank=2), offload=("encoders", "network"), **more)
    policy = load_policy(make(), spec=asked)
    stays = load_policy(make(), spec=replace(asked, offload=()))
    seen: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(place, "move", lambda part, device: seen.append((id(part), device)))
    policy.places.device = torch.device("cpu", 0)  # told from "cpu", where parts wait
    rows = policy.encode(PROMPTS).rows
    for row, right in zip(rows, stays.encode(PROMPTS).rows, strict=True):
        assert all(torch.equal(row[key], right[key]) for key in right)
    came = {part for part, device in seen if device.index == 0}
    assert all(id(getattr(policy.pipe, one)) in came for one in encoders)


def test_a_picture_reaches_its_encoder_on_the_device() -> None:
    log: list[str] = []
    made, _ = places(("encoders",), log)
    made.device = torch.device("meta")
    seen: list[str] = []

    class Eye(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
            seen.extend([x.device.type, "none" if mask is None else mask.device.type])

    made.encoders = {"eye": Eye(), "text": nn.Linear(1, 1)}
    with made.encoding():
        made.encoders["eye"](torch.ones(2), mask=torch.ones(2))
    assert seen == ["meta", "meta"]
