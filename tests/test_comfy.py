"""A file for ComfyUI has every trained module under a key that ComfyUI accepts, and strength 1 there is the update in diffusers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import comfy_reader
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from tiny_networks import MAKERS, network
from torch import Tensor, nn

from flowrl.export import comfy, merged, names

RANK, ALPHA = 4, 12.0  # different on purpose: where alpha is missing, ComfyUI takes the scale 1


def family(net: nn.Module) -> names.Family:
    found = names.of_network(type(net).__name__)
    assert found is not None
    return found


def trained(net: nn.Module, targets: list[str] | None = None, **more: Any) -> dict[str, LoraLayer]:
    """An adapter on these, or on every linear layer (of a UNet every convolution as well), its matrices all random."""
    kinds = (nn.Linear, nn.Conv2d)
    chosen = targets or [name for name, m in net.named_modules() if isinstance(m, kinds)]
    config = LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, "target_modules": chosen, "init_lora_weights": "gaussian", **more})
    net.add_adapter(config, "default")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".lora_" in name:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == len(chosen) or targets
    return layers


def file_of(net: nn.Module) -> dict[str, Tensor]:
    weights = get_peft_model_state_dict(net, adapter_name="default")
    return comfy.convert(weights, net.peft_config["default"].to_dict(), family(net))


def difference(net: nn.Module, file: dict[str, Tensor], strength: float = 1.0) -> float:
    """Largest difference, over all weights, between ComfyUI's with this file and diffusers' with the adapter; relative."""
    kind, base = family(net), merged.merged(net, "default", 0.0)
    native = merged.native(base, kind, net.config)
    keys = comfy_reader.accepted(native, kind.name, net.config)
    theirs = comfy_reader.back(comfy_reader.apply(native, file, keys, strength), kind.name, net.config)
    ours = dict(base)
    for name, layer in {n: m for n, m in net.named_modules() if isinstance(m, LoraLayer)}.items():
        update = strength * layer.get_delta_weight("default").detach()
        assert update.abs().max() > 0.01
        ours[f"{name}.weight"] = ours[f"{name}.weight"] + update
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).abs().max() / (1 + ours[k].abs().max())) for k in ours)


@pytest.mark.parametrize("name", MAKERS)
def test_diffusers_reads_the_native_layout_back_bit_for_bit(name: str) -> None:
    net = network(name)
    state = merged.merged(net, "default")
    made = comfy_reader.back(merged.native(state, family(net), net.config), family(net).name, net.config)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[k], state[k]) for k in state)


@pytest.mark.parametrize("name", MAKERS)
def test_strength_one_is_the_update_of_the_adapter_in_every_trained_module(name: str) -> None:
    net = network(name)
    trained(net)
    file = file_of(net)
    assert difference(net, file) < 2e-6
    assert difference(net, file, 0.5) < 2e-6


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "hunyuan_video"])
def test_ranks_and_alphas_by_module_keep_their_own_scales(name: str) -> None:
    net = network(name)
    layers = trained(net, rank_pattern={r"to_k": 3, r"to_v": 5}, alpha_pattern={r"to_v": 2.0, r"to_q": 30.0})
    assert len({layer.scaling["default"] for layer in layers.values()}) == 4
    assert difference(net, file_of(net)) < 2e-6


@pytest.mark.parametrize("targets", [["attn.to_q"], ["attn.to_v", "proj_mlp"], ["to_k"], ["proj_mlp"]])
def test_slices_that_were_not_trained_stay_as_they_are(targets: list[str]) -> None:
    net = network("hunyuan_video")
    trained(net, targets)
    assert difference(net, file_of(net)) < 2e-6


def test_rank_stabilised_scales_are_kept() -> None:
    net = network("wan")
    trained(net, ["attn1.to_q", "ffn.net.2"], use_rslora=True)
    assert difference(net, file_of(net)) < 2e-6


def test_matrices_are_those_of_the_adapter_where_comfyui_has_the_module_or_slices_it() -> None:
    for name in set(MAKERS) - {"hunyuan_video", "flux2"}:
        net = network(name)
        trained(net)
        ours = {id_of(v) for v in get_peft_model_state_dict(net, adapter_name="default").values()}
        assert {id_of(v) for k, v in file_of(net).items() if not k.endswith(".alpha")} == ours


def id_of(value: Tensor) -> bytes:
    return value.numpy().tobytes()


def wrong(net: nn.Module, file: dict[str, Tensor]) -> bool:
    """Whether the comparison goes red. Matrices of another shape are left out there with an error in the log."""
    try:
        return difference(net, file) > 0.01
    except RuntimeError as error:
        return "invalid for input of size" in str(error)


@pytest.mark.parametrize("name", ["flux", "sd15", "wan", "hunyuan_video"])
def test_faults_would_be_seen(name: str) -> None:
    """A module left out, alpha left out: each makes another model; and a key unknown there is an error."""
    net = network(name)
    trained(net, ["to_q", "to_k", "to_v", "to_out.0"])
    file = file_of(net)
    assert not wrong(net, file)
    key = next(k for k in file if k.endswith(".alpha")).removesuffix(".alpha")
    assert wrong(net, {k: v for k, v in file.items() if not k.startswith(f"{key}.")})
    assert wrong(net, {k: v for k, v in file.items() if not k.endswith(".alpha")})
    with pytest.raises(AssertionError, match="not loaded"):
        difference(net, {f"x{k}" if k.startswith(key) else k: v for k, v in file.items()})


@pytest.mark.parametrize(("name", "attention"), [("flux", "attn"), ("sd15", "attn1"), ("wan", "attn1")])
def test_q_and_k_changed_over_would_be_seen(name: str, attention: str) -> None:
    net = network(name)
    trained(net, [f"{attention}.to_q", f"{attention}.to_k"])
    over = {"to_q": "to_k", "to_k": "to_q", "attn.q": "attn.k", "attn.k": "attn.q"}
    swapped = {re.sub(r"to_[qk]|attn\.[qk](?=\.)", lambda m: over[m[0]], k): v for k, v in file_of(net).items()}
    assert wrong(net, swapped)


def test_pieces_joined_in_the_wrong_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("hunyuan_video")
    trained(net)
    whole = comfy.fused
    monkeypatch.setattr(comfy, "fused", lambda parts: whole([(replace(p, start=(1, 0, 2, 3)[p.start]), pair) for p, pair in parts]))
    assert difference(net, file_of(net)) > 0.01


def test_every_family_names_the_sources_of_its_keys() -> None:
    for found in names.families().values():
        assert found.sources
        for line in found.sources:
            assert re.fullmatch(r"[\w-]+/[\w.-]+@([0-9a-f]{40}|v[\d.]+) [\w/.]+\.py [\w.]+", line), line


@pytest.mark.parametrize(
    ("weights", "config", "said"),
    [
        ({"x_embedderr.lora_A.weight": 1, "x_embedderr.lora_B.weight": 1}, {}, "knows no flux module for 'x_embedderr'"),
        ({"x_embedder.lora_A.weight": 1}, {}, "'x_embedder' has only one of its two matrices"),
        ({"x_embedder.lora_magnitude_vector": 1}, {}, "not of a plain LoRA"),
        ({"x_embedder.lora_A.weight": 1}, {"use_dora": True}, "not of a plain LoRA"),
    ],
)
def test_what_comfyui_could_not_load_is_a_sentence(weights: dict[str, int], config: dict[str, Any], said: str) -> None:
    tensors = {k: torch.ones(2, 2) for k in weights}
    with pytest.raises(ValueError, match=re.escape(said)):
        comfy.convert(tensors, {"r": 2, "lora_alpha": 4, **config}, names.families()["flux"])


def test_another_shape_than_comfyuis_is_a_sentence() -> None:
    weights = {"single_transformer_blocks.0.proj_mlp.lora_A.weight": torch.ones(2, 8)}
    weights["single_transformer_blocks.0.proj_mlp.lora_B.weight"] = torch.ones(24, 2)
    with pytest.raises(ValueError, match="has 24 rows where ComfyUI's single_blocks.0.linear1 has 4 x 8"):
        comfy.convert(weights, {"r": 2, "lora_alpha": 4}, names.families()["hunyuan_video"])
