"""The planner: counts on meta are those of a real run, phases add up, presets fit, and the table is what the networks say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import sd3_pipeline
from torch import Tensor, nn

from flowrl import footprint as module
from flowrl.cli.app import main
from flowrl.footprint import Live, footprint, rows_that_fit
from flowrl.memory import CARDS, SIZES, Settings, card, fits, measured, meta, overrides, peak, plan, preset, table
from flowrl.memory.card import Part
from flowrl.memory.presets import LADDER, rungs, settings
from flowrl.models import load_policy
from flowrl.models.lora import add_lora
from flowrl.recipe import LoraSpec, PolicySpec

GB = 10**9
SMALL: dict[str, tuple[dict[str, Any], Callable[[Callable[..., Tensor]], dict[str, Any]], tuple[str, ...]]] = {
    "SD3Transformer2DModel": (
        {
            "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32,
            "joint_attention_dim": 24, "pooled_projection_dim": 20, "pos_embed_max_size": 16, "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda new: {
            "hidden_states": new(16, 16, 16), "encoder_hidden_states": new(5, 24), "pooled_projections": new(20), "timestep": new(),
        },
        ("attn.to_q", "attn.to_out.0", "attn.add_k_proj"),
    ),
    "FluxTransformer2DModel": (
        {
            "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6),
        },
        lambda new: {
            "hidden_states": new(9, 16), "encoder_hidden_states": new(5, 24), "pooled_projections": new(20), "timestep": new(),
            "img_ids": new(9, 3)[0], "txt_ids": new(5, 3)[0],
        },
        ("to_q", "to_v"),
    ),
    "WanTransformer3DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "num_layers": 2, "text_dim": 24, "freq_dim": 16},
        lambda new: {"hidden_states": new(16, 3, 4, 6), "encoder_hidden_states": new(5, 24), "timestep": new()},
        ("to_q", "to_out.0"),
    ),
}  # fmt: skip


def small(kind: str, device: str, checkpointing: bool) -> Any:
    import diffusers

    config, _, names = SMALL[kind]
    with torch.device(device):
        made = getattr(diffusers, kind)(**config)
    add_lora(made, LoraSpec(rank=4), names, 0)
    if checkpointing:
        made.enable_gradient_checkpointing()
    return made.eval()


def spent(kind: str, device: str, rows: int, checkpointing: bool = False) -> module.Footprint:
    """Of a call with `rows` rows; on a CPU with the attention kernel that is there."""
    made = small(kind, device, checkpointing)
    given = SMALL[kind][1](lambda *shape: torch.zeros(rows, *shape, device=device))
    return footprint(lambda: made(**given, return_dict=False)[0], made, given.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_a_count_on_meta_is_that_of_a_real_run_to_the_byte(kind: str, checkpointing: bool) -> None:
    one, real = spent(kind, "meta", 2, checkpointing), spent(kind, "cpu", 2, checkpointing)
    assert one.saved == real.saved > 0
    # where a block is run again a kernel of the CPU lays a few gradients out otherwise
    assert one.peak == pytest.approx(real.peak, rel=0.005 if checkpointing else 0)
    whole = spent(kind, "meta", 2) if checkpointing else one
    assert whole.saved >= one.saved and whole.peak >= one.peak


@pytest.mark.parametrize("kind", SMALL)
def test_bytes_grow_in_proportion_to_rows(kind: str) -> None:
    two, five = (spent(kind, "meta", rows).peak for rows in (2, 5))
    # what does not grow (positions) is a small part
    assert 0.98 * 2.5 * two <= five <= 2.5 * two


def test_live_bytes_rise_and_fall_with_the_tensors() -> None:
    known = torch.zeros(100)
    with Live([known]) as live:
        a = known + 1
        b = a * 2
        view = b[:10]
        assert (live.now, live.peak) == (800, 800)
        del a, b
        assert (live.now, live.peak) == (400, 800), "a view holds the whole of its storage"
        del view
        known.add_(1)
    assert (live.now, live.peak) == (0, 800)


def test_counting_leaves_gradients_and_attention_as_they_were() -> None:
    net, attend = nn.Linear(4, 4), nn.functional.scaled_dot_product_attention
    net(torch.ones(1, 4)).sum().backward()
    assert net.weight.grad is not None
    kept = net.weight.grad.clone()
    footprint(lambda: net(torch.ones(3, 4)), net)
    assert torch.equal(net.weight.grad, kept) and nn.functional.scaled_dot_product_attention is attend


def test_rows_that_fit_are_what_memory_divided_by_a_row_gives() -> None:
    made = small("SD3Transformer2DModel", "cpu", False)

    def call(rows: int) -> Tensor:
        given = SMALL["SD3Transformer2DModel"][1](lambda *shape: torch.zeros(rows, *shape))
        return made(**given, return_dict=False)[0]

    row = footprint(lambda: call(8), made).peak / 8
    assert [rows_that_fit(call, made, n * row / module.SLACK) for n in (0.5, 3.6, 10.6, 1000)] == [1, 3, 10, 32]

    def short(rows: int) -> Tensor:
        raise torch.OutOfMemoryError("injected")

    assert rows_that_fit(short, made, 1e12) == 1


@pytest.mark.parametrize("name", CARDS)
def test_every_network_has_as_many_parameters_as_published(name: str) -> None:
    made = meta.build(CARDS[name].network)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(1e9 * CARDS[name].billions, rel=0.01)


def test_quantised_bytes_are_values_and_their_constants() -> None:
    body = meta.Body(linear=6400, outputs=80, layers=2, largest=3200, other=100, features={})
    at = Settings((64, 64, 1))
    assert plan.weights(body, at) == 2 * 6500 and plan.weights(body, replace(at, dtype="float32")) == 4 * 6500
    assert plan.weights(body, replace(at, quantize="int8")) == 6400 + 4 * 80 + 2 * 100
    assert plan.weights(body, replace(at, quantize="nf4")) == 3200 + 4 * 100 + 2 * 64 + 2 * 100


def test_moments_are_those_of_the_real_optimizer() -> None:
    sizes = {4096: 2, 128: 3}
    params = [nn.Parameter(torch.zeros(size)) for size, count in sizes.items() for _ in range(count)]
    optimizer = torch.optim.AdamW(params)
    sum(p.sum() for p in params).backward()
    optimizer.step()
    held = sum(x.nbytes for one in optimizer.state_dict()["state"].values() for key, x in one.items() if key != "step")
    assert plan.moments(sizes, "adamw") == held
    assert plan.moments(sizes, "adamw8bit") == 2 * (2 * 4096 + 8 * 16) + 3 * 8 * 128


def test_a_folder_is_planned_as_its_real_policy_is() -> None:
    one = card("shapes")
    assert one.shapes == ((64, 64, 1),) and one.pipeline == "StableDiffusion3Pipeline"
    policy: Any = load_policy(PolicySpec(model="shapes", dtype="float32", lora=LoraSpec(rank=8)))
    at = Settings(one.shapes[0], dtype="float32", rank=8, slice=2)
    told = peak(one, at)
    network = policy.pipe.transformer
    base = [p for n, p in network.named_parameters() if "lora" not in n]
    assert told.weights == sum(p.nbytes for p in base) + network.pos_embed.pos_embed.nbytes
    assert told.adapter == told.gradients == sum(p.nbytes for _, p in policy.trainable())
    encoders = (policy.pipe.text_encoder, policy.pipe.text_encoder_2, policy.pipe.text_encoder_3)
    assert told.encoders == sum(p.nbytes for e in encoders if e is not None for p in e.parameters())
    assert told.vae == sum(p.nbytes for p in policy.pipe.vae.parameters())
    x, sigma = torch.zeros(2, *policy.latent_shape()), torch.full((2,), 0.5)
    cond = policy.encode(["a red circle"]).take(torch.tensor([0, 0]))
    given = [x, sigma, *(part for row in cond.rows for part in row.values())]
    real = footprint(lambda: policy.predict(x, sigma, cond), network, given)
    assert told.activations == pytest.approx(real.peak, rel=0.02)
    decoded = footprint(lambda: policy.images(x), policy.pipe.vae, [x], backward=False).peak
    assert told.decode == pytest.approx(decoded * 3, rel=0.05), "six images fit one decoder call"


BASE = Settings((512, 512, 1), guided=True, reward=5 * GB)


def of(**changes: Any) -> plan.Peak:
    return peak(CARDS["sd3.5-medium"], replace(BASE, **changes))


def test_every_saving_saves() -> None:
    plain = of()
    for changes in (
        {"checkpointing": True}, {"offload": ("vae",)}, {"offload": ("encoders",)}, {"optim": "adamw8bit"}, {"quantize": "int8"},
        {"reward_offload": True}, {"guided": False}, {"batch": 1},
    ):  # fmt: skip
        smaller = of(**changes)
        assert sum(smaller.phases.values()) < sum(plain.phases.values()), changes
        assert smaller.total <= plain.total, changes
    assert of(quantize="nf4").weights < of(quantize="int8").weights < plain.weights
    assert of(slice=2).activations == 2 * plain.activations and of(copies=1).adapter == 2 * plain.adapter
    assert of(guided=False).activations * 2 == plain.activations


def test_phases_follow_one_another_and_share_what_stays() -> None:
    plain = of()
    always = plain.weights + plain.adapter + plain.optimizer
    stay = plain.encoders + plain.vae + plain.reward
    assert plain.phases["train"] == always + stay + plain.gradients + plain.activations
    assert plain.phases["rollout"] == always + stay + plain.sampling
    assert plain.phases["reward"] == always + stay, "its weights are not counted twice"
    away = of(offload=("encoders", "vae", "network"), reward_offload=True)
    assert away.phases["train"] == always + away.gradients + away.activations
    assert away.phases["decode"] == always + away.vae + away.decode
    assert away.phases["reward"] == always + away.reward
    assert away.phases["encode"] == away.adapter + away.optimizer + away.vae + away.encoding, "the decoder comes along"
    assert of(offload=("encoders",)).phases["encode"] == always + plain.vae + plain.reward + away.encoding
    assert away.encoding < plain.encoders, "one encoder at a time (tests/test_place.py)"
    assert away.total == max(away.phases.values()) + away.overhead > plan.CONTEXT + max(away.phases.values())


def test_the_whole_network_is_float32_and_refuses_what_that_excludes() -> None:
    with pytest.raises(ValueError, match="rank 0 trains the whole network, in float32"):
        of(rank=0)
    with pytest.raises(ValueError, match="slice 0"):
        of(slice=0)
    one = card("shapes")
    whole = peak(one, Settings(one.shapes[0], dtype="float32", rank=0))
    assert whole.adapter == 0 and whole.optimizer == 2 * whole.weights == 2 * whole.gradients


@pytest.mark.parametrize("name", CARDS)
def test_a_preset_fits_and_the_rung_before_it_does_not(name: str) -> None:
    one = CARDS[name]
    found = {size: preset(one, size) for size in SIZES}
    assert found[80] is not None or name in ("wan2.2-t2v-a14b", "hunyuanvideo")
    for size, chosen in found.items():
        if chosen is None:
            assert not any(fits(one, rung, size) for shape in one.shapes for rung, _ in rungs(settings(one, shape)))
            continue
        assert chosen.peak == peak(one, chosen.settings) and chosen.peak.total <= size * GB
        more = replace(chosen.settings, slice=chosen.settings.slice + 1, batch=chosen.settings.slice + 1)
        assert chosen.settings.slice == 32 or not fits(one, more, size)
    sizes = [chosen.settings.shape[0] * chosen.settings.shape[2] for chosen in found.values() if chosen is not None]
    assert sizes == sorted(sizes), "a larger GPU never makes smaller pictures"


def test_the_ladder_is_climbed_from_what_is_free() -> None:
    one = CARDS["sd3.5-medium"]
    told = [preset(one, size) for size in (12, 24, 80)]
    assert all(told)
    small, middle, large = (chosen.settings for chosen in told if chosen is not None)
    assert not large.checkpointing and not large.offload and middle.checkpointing and middle.quantize is None
    assert "encoders" in small.offload and small.optim == "adamw", "a saving that is not needed is not made"
    assert [set(rung.changes) for rung in LADDER][-1] == {"quantize"}


@pytest.mark.parametrize("name", ["sd3.5-medium", "z-image", "flux.2-klein-4b"])
def test_24_gb_suffice_at_512_without_quantising(name: str) -> None:
    chosen = preset(CARDS[name], 24)
    assert chosen is not None and chosen.settings.shape == (512, 512, 1) and chosen.settings.quantize is None
    set_to = overrides(CARDS[name].hub, 24)
    assert set_to["policy.checkpointing"] is True and set_to["sizes.slice"] == chosen.settings.slice >= 2
    assert "optim.name" not in set_to and set_to["policy.height"] == 512 and "policy.frames" not in set_to


@pytest.mark.ci
@pytest.mark.parametrize("name", ["flux.2-klein-4b", "sd3.5-medium", "z-image"])
def test_the_table_is_what_the_networks_say(name: str) -> None:
    one, told = CARDS[name], table.table()[name]
    assert meta.body(one) == told.body
    # what a network makes on its first call and keeps (Z-Image's positions) is counted with that call alone
    assert meta.training(one, (512, 512, 1), True) == pytest.approx(told.at[512, 512, 1].checkpointed, rel=0.005)
    assert meta.decode(one, (512, 512, 1)) == told.at[512, 512, 1].decode
    assert meta.values(meta.build(one.vae)) == told.vae


def test_the_table_holds_every_card_and_comes_back_from_its_file(tmp_path: Path) -> None:
    assert set(table.table()) == set(CARDS)
    assert all(set(told.at) == set(CARDS[name].shapes) for name, told in table.table().items())
    for name, told in table.table().items():
        assert table._facts(json.loads(json.dumps(table._told(told)))) == told, name


def test_other_shapes_and_ranks_are_counted_at_once() -> None:
    one = card("shapes")
    low, high = (peak(one, Settings(one.shapes[0], rank=rank)) for rank in (4, 16))
    assert 4 * low.adapter == high.adapter and low.activations < high.activations
    flat = peak(one, Settings((32, 64, 1)))
    assert flat.activations < peak(one, Settings(one.shapes[0])).activations


def test_models_are_found_by_name_hub_and_folder(tmp_path: Path) -> None:
    assert card("Z-Image") is card("Tongyi-MAI/Z-Image") is CARDS["z-image"]
    with pytest.raises(ValueError, match="nearest: z-image"):
        card("zimage")
    sd3_pipeline().save_pretrained(tmp_path / "mine")
    mine = card(str(tmp_path / "mine"))
    assert mine.network.kind == "SD3Transformer2DModel" and mine.vae.kind == "AutoencoderKL"
    assert overrides(str(tmp_path / "mine"), 12)["sizes.slice"] == 32
    index = tmp_path / "mine" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusion3Pipeline", "OddPipeline"))
    with pytest.raises(ValueError, match="holds a OddPipeline, which the planner does not know"):
        card(str(tmp_path / "mine"))
    index.unlink()
    with pytest.raises(ValueError, match=r"model_index.json is missing"):
        card(str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="cannot be trained on a GPU of 12 GB, whatever is set; it needs"):
        overrides("qwen-image", 12)


def test_a_real_device_is_measured_phase_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PolicySpec(model="shapes", dtype="float32", guidance=2.0, lora=LoraSpec(rank=4), max_sequence_length=10)
    with pytest.raises(ValueError, match="no CUDA device to measure on"):
        measured.measured(spec, 2)
    done: list[str] = []
    peaks = iter((11, 22, 33))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: done.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    policy: Any = load_policy(spec)
    monkeypatch.setattr("flowrl.models.load_policy", lambda *a: policy)
    assert measured.measured(spec, 2, "cpu") == {"encode": 11, "train": 22, "decode": 33}
    assert done == ["empty", "reset"] * 3
    assert all(p.grad is not None for _, p in policy.trainable()), "a real backward pass was run"


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


def test_models_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--plain") == 0
    head, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert set(rows) == set(CARDS) and all(row["licence"] and row["hub"] for row in rows.values())
    assert rows["sd3.5-medium"]["24 GB"].startswith("512 ck x") and rows["qwen-image"]["12 GB"] == "-"
    assert call("models") == 0 and "Videos" in capsys.readouterr().out
    assert call("models", "z-image") == 0 and "largest phase" in capsys.readouterr().out
    assert call("models", "sd3.5-medium", "--vram", "24") == 0
    said = capsys.readouterr().out
    assert "phase train" in said and "--set policy.checkpointing=true" in said and "--reward pickscore=1" in said
    assert "flowrl train --model stabilityai/stable-diffusion-3.5-medium --prompts prompts.txt" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("models sd3.5-medium --resolution big", "resolution 'big': give a side such as 512"),
        ("models sd3.5-medium --resolution 500", "both sides must be multiples of 16 for sd3.5-medium"),
        ("models sd3.5-medium --frames 5", "sd3.5-medium makes images; leave --frames out"),
        ("models wan2.1-t2v-1.3b --frames 16", "one more than a multiple of 4"),
        ("models sd3.5-large --vram 8", "sd3.5-large does not fit 8 GB: with everything saved"),
        ("models sd4", "model 'sd4' is neither in the planner's table nor a folder here"),
        ("models --vram 24", "explain one model: flowrl models NAME --vram 24"),
        ("models sd3.5-medium --measure", "add --vram"),
        ("models sd3.5-medium --vram 24 --measure", "no CUDA device to measure on"),
        ("models sd3.5-medium --reward pikscore", "did you mean pickscore"),
    ],
)
def test_bad_questions_are_answered_with_a_sentence(capsys: pytest.CaptureFixture[str], words: str, told: str) -> None:
    assert call(*words.split()) == 2
    assert told in capsys.readouterr().err


def test_what_does_not_fit_is_one_sentence_and_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "wan2.2-t2v-a14b", "--vram", "24") == 2
    said = capsys.readouterr()
    assert "with everything saved, the phase 'reward' still comes to" in said.err and not said.out


def test_an_embedded_model_is_checked_as_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl import conformance

    seen: list[PolicySpec] = []
    monkeypatch.setattr(conformance, "subject_of", lambda spec, *_: seen.append(spec))
    monkeypatch.setattr(conformance, "examine", lambda subject: [])
    assert call("models", "check", "shapes_video") == 0
    assert call("models", "check", "shapes_video", "--set", "policy.frames=5") == 0
    assert call("models", "check", "mine") == 0
    assert [(s.height, s.width, s.frames) for s in seen] == [(32, 32, 9), (32, 32, 5), (None, None, None)]


def test_an_unknown_class_is_not_built() -> None:
    with pytest.raises(AttributeError, match="NoSuchModel"):
        meta.build(Part("NoSuchModel"))
