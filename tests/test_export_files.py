"""The files a run leaves for others: which is whose, what they say of themselves, and that each loads where it is meant to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy_reader
import pytest
import tiny_networks
import tinyrun
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    WanPipeline,
)
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from test_comfy import difference, family, trained
from torch import nn

from flowrl import export, settings
from flowrl.cli.app import main
from flowrl.export import files, merged, metadata
from flowrl.export.diffusers import adapter, read_lora, saved
from flowrl.export.run import about, export_run
from flowrl.models import load_policy
from flowrl.models.lora import strength
from flowrl.recipe import LoraSpec, PolicySpec, Recipe, StyleSpec
from flowrl.recipes.run import train

ABOUT = metadata.About("my-style", "black-forest-labs/FLUX.1-dev", "ohwx style", (1024, 768), "Trained by flowrl.", "FluxPipeline")
TARGETS = {"sd15": ["attn1.to_q", "ff.net.2"], "wan": ["attn1.to_q", "ffn.net.2"]}


def updates(net: nn.Module, name: str) -> dict[str, torch.Tensor]:
    layers = {n: m for n, m in net.named_modules() if isinstance(m, LoraLayer)}
    return {n: m.get_delta_weight(name).detach() for n, m in layers.items() if name in m.lora_A}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return bool(a) and a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-6, atol=1e-7) for k in a)


def said(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def flux(seed: int = 0) -> files.Adapter:
    net = tiny_networks.network("flux", seed)
    trained(net, ["attn.to_q", "proj_out"])
    return files.Adapter("FluxTransformer2DModel", *adapter(net))


def test_a_file_says_what_interfaces_ask_for(tmp_path: Path) -> None:
    (path,) = files.write_comfy(tmp_path, {"transformer": flux()}, ABOUT)
    assert path.name == "my-style.safetensors" and path.stat().st_mode & 0o044
    told = said(path)
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.title": "my-style",
        "modelspec.trigger_phrase": "ohwx style",
        "modelspec.resolution": "1024x768",
        "ss_sd_model_name": "black-forest-labs/FLUX.1-dev",
        "ss_base_model_version": "flux1",
        "ss_network_dim": "4",
        "ss_network_alpha": "12.0",
        "flowrl.network": "FluxTransformer2DModel",
    }
    assert {k: told[k] for k in expected} == expected
    assert json.loads(told["ss_tag_frequency"]) == {"my-style": {"ohwx style": 1}}
    data = path.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert told["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}"


def test_sdxl_is_told_from_sd15_by_its_deeper_attention() -> None:
    kinds = {}
    for name in ("sd15", "sdxl"):
        net = tiny_networks.network(name)
        trained(net, ["attn2.to_q"])
        weights, config = adapter(net)
        told = metadata.describe(ABOUT, family(net), ("unet", "UNet2DConditionModel"), files.comfy.pairs(weights, config), config)
        kinds[name] = (told["modelspec.architecture"], told["ss_base_model_version"])
    assert kinds == {"sd15": ("stable-diffusion-v1/lora", "sd_v1"), "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0")}


def test_a_weaker_and_a_smaller_file(tmp_path: Path) -> None:
    """strength is in the weights; bfloat16 rounds them and leaves alpha as it is."""
    net = tiny_networks.network("flux")
    trained(net, ["attn.to_q"])
    given = {"transformer": files.Adapter("FluxTransformer2DModel", *adapter(net))}
    (half,) = files.write_comfy(tmp_path / "half", given, ABOUT, strength=0.5)
    native = merged.native(merged.merged(net, "default", 0.0), family(net), net.config)
    keys = comfy_reader.accepted(native, "flux", net.config)
    once = comfy_reader.apply(native, load_file(half), keys, 2.0)
    (full,) = files.write_comfy(tmp_path / "full", given, ABOUT)
    whole = comfy_reader.apply(native, load_file(full), keys, 1.0)
    assert same(once, whole) and not same(native, whole)
    (small,) = files.write_comfy(tmp_path / "small", given, ABOUT, torch.bfloat16)
    types = {k.rpartition(".")[2]: v.dtype for k, v in load_file(small).items()}
    assert types == {"weight": torch.bfloat16, "alpha": torch.float32}


def test_values_that_a_dtype_cannot_hold_are_a_sentence(tmp_path: Path) -> None:
    one = flux()
    loud = {k: v * 1e6 for k, v in one.weights.items()}
    with pytest.raises(ValueError, match="float16 cannot hold; use --dtype bf16 or fp32"):
        files.write_comfy(tmp_path, {"transformer": files.Adapter(one.kind, loud, one.config)}, ABOUT, torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_known_layout_is_a_sentence(tmp_path: Path) -> None:
    one = flux()
    said = "^how ComfyUI names the modules of OtherTransformer is not known; use the file for diffusers$"
    with pytest.raises(ValueError, match=said):
        files.write_comfy(tmp_path, {"transformer": files.Adapter("OtherTransformer", one.weights, one.config)}, ABOUT)


@pytest.mark.parametrize(
    ("title", "modules", "expected"),
    [
        ("my style/2", ["transformer"], ["my-style-2.safetensors"]),
        ("x", ["transformer", "transformer_2"], ["x_high_noise.safetensors", "x_low_noise.safetensors"]),
        ("pytorch_lora_weights", ["unet"], ["pytorch_lora_weights-comfyui.safetensors"]),
        ("..", ["unet"], ["flowrl.safetensors"]),
    ],
)
def test_file_names(title: str, modules: list[str], expected: list[str]) -> None:
    assert list(files.file_names(title, modules).values()) == expected


def test_diffusers_finds_its_own_file_beside_the_other(tmp_path: Path) -> None:
    policy = load_policy(PolicySpec(model=tinyrun.model(), dtype="float32", lora=LoraSpec(rank=4, alpha=12.0)))
    folder = export.save(policy, tmp_path / "lora")
    mine = load_file(folder / export.LORA_FILE)
    for title in ("a", "zz_pytorch_lora_weights"):
        files.write_comfy(folder, files.adapters(policy.modules), metadata.About(title, "m"))
    assert len(list(folder.glob("*.safetensors"))) == 3
    theirs = type(policy.pipe).lora_state_dict(str(folder))
    assert theirs.keys() == mine.keys() and all(torch.equal(theirs[k], mine[k]) for k in mine)


def stand_in(pipe: Any, modules: tuple[str, ...]) -> Any:
    """What export asks of a policy."""
    spec = PolicySpec(lora=LoraSpec(rank=4, alpha=12.0))
    return SimpleNamespace(pipe=pipe, spec=spec, head=None, modules={name: getattr(pipe, name) for name in modules})


def wan22() -> WanPipeline:
    experts = {"transformer": tiny_networks.network("wan_t2v", 1), "transformer_2": tiny_networks.network("wan_t2v", 2)}
    return WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(), **experts)


def test_both_experts_are_saved_and_each_finds_its_own(tmp_path: Path) -> None:
    pipe, plain = wan22(), wan22()
    for i, net in enumerate((pipe.transformer, pipe.transformer_2)):
        trained(net, TARGETS["wan"])
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.mul_(1 + i if ".lora_" in name else 1)
    policy = stand_in(pipe, ("transformer", "transformer_2"))
    folder = export.save_lora(policy, tmp_path / "lora")
    assert all(p.stat().st_mode & 0o044 for p in folder.rglob("*"))
    assert saved(folder) == ["transformer", "transformer_2"]
    plain.load_lora_weights(folder)
    plain.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)
    one, two = updates(pipe.transformer, "default"), updates(pipe.transformer_2, "default")
    assert not same(one, two)
    assert same(one, updates(plain.transformer, "default_0")) and same(
        two, updates(plain.transformer_2, next(iter(plain.transformer_2.peft_config)))
    )
    other = wan22()  # and diffusers reads the file for ComfyUI as well
    other.load_lora_weights(files.write_comfy(tmp_path, files.adapters({"transformer": pipe.transformer}), ABOUT)[0])
    assert same(one, updates(other.transformer, next(iter(other.transformer.peft_config))))
    again = wan22()
    for net in (again.transformer, again.transformer_2):
        trained(net, ["attn2.to_v"])
    export.load_lora(stand_in(again, ("transformer", "transformer_2")), folder)
    assert same(one, updates(again.transformer, "default")) and same(two, updates(again.transformer_2, "default"))
    written = files.write_comfy(folder, files.adapters(policy.modules), metadata.About("wan", "Wan-AI/Wan2.2"))
    assert [p.name for p in written] == ["wan_high_noise.safetensors", "wan_low_noise.safetensors"]
    assert difference(pipe.transformer, load_file(written[0])) < 2e-6 < difference(pipe.transformer, load_file(written[1]))
    assert difference(pipe.transformer_2, load_file(written[1])) < 2e-6


def sd() -> StableDiffusionPipeline:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    unet = tiny_networks.network("sd15")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_a_unets_adapter_loads_into_a_plain_pipeline(tmp_path: Path) -> None:
    pipe, plain = sd(), sd()
    trained(pipe.unet, TARGETS["sd15"])
    folder = export.save_lora(stand_in(pipe, ("unet",)), tmp_path / "lora")
    plain.load_lora_weights(folder)
    assert same(updates(pipe.unet, "default"), updates(plain.unet, "default_0"))
    # and the file for ComfyUI is kohya's form, which diffusers reads as well
    (path,) = files.write_comfy(tmp_path, files.adapters({"unet": pipe.unet}), metadata.About("sd", "sd"))
    other = sd()
    other.load_lora_weights(path)
    assert same(updates(pipe.unet, "default"), updates(other.unet, "default_0"))


def test_a_pipeline_that_loads_no_adapters_is_a_sentence(tmp_path: Path) -> None:
    net = tiny_networks.network("sd15")
    trained(net, TARGETS["sd15"])
    policy: Any = SimpleNamespace(pipe=DDPMPipeline(net, None), spec=PolicySpec(), head=None, modules={"unet": net})
    with pytest.raises(ValueError, match="DDPMPipeline has no loader of adapters"):
        export.save_lora(policy, tmp_path / "lora")
    policy.pipe, policy.modules = sd(), {"vae": net}
    with pytest.raises(ValueError, match="StableDiffusionPipeline loads no adapter into 'vae'"):
        export.save_lora(policy, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_run_whose_adapter_could_not_be_saved_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StableDiffusion3Pipeline, "save_lora_weights", None)
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has no loader of adapters"):
        train(tinyrun.recipe(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_merged_weights_are_base_and_update_in_both_layouts(tmp_path: Path) -> None:
    net = tiny_networks.network("sd3")
    base = merged.merged(net, "default")
    trained(net, ["attn.to_q", "ff.net.2"])
    folder, file = merged.write_merged(tmp_path, {"transformer": net}, metadata.About("m", "base"), strength=0.5)
    state = SD3Transformer2DModel.from_pretrained(folder).state_dict()
    for name, update in updates(net, "default").items():
        assert torch.allclose(state.pop(f"{name}.weight"), base[f"{name}.weight"] + 0.5 * update, atol=1e-6)
    assert all(torch.equal(value, base[name]) for name, value in state.items())
    whole = comfy_reader.back(load_file(file), "sd3", net.config)
    assert all(torch.equal(v, whole[k]) for k, v in SD3Transformer2DModel.from_pretrained(folder).state_dict().items())
    assert file.name == "m-merged.safetensors" and said(file)["modelspec.merged_from"] == "base"


def test_strength_scales_the_update_and_leaves_no_trace() -> None:
    net = tiny_networks.network("wan_t2v")
    given = {
        "hidden_states": torch.randn(1, 4, 1, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 3, 12),
    }

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return net(**given, return_dict=False)[0]

    base = answer()
    layers = trained(net, TARGETS["wan"])
    full = answer()
    before = get_peft_model_state_dict(net, adapter_name="default")
    with strength(net, 0.0):
        assert torch.equal(answer(), base)
    with strength(net, 1.0):
        assert torch.equal(answer(), full)
    with strength(net, 1.5):
        assert all(layer.scaling["default"] == 4.5 for layer in layers.values())
        assert not torch.equal(answer(), full)
    assert torch.equal(answer(), full) and not torch.equal(full, base)
    assert all(torch.equal(v, before[k]) for k, v in get_peft_model_state_dict(net, adapter_name="default").items())
    with pytest.raises(ValueError, match="an adapter of strength nan"), strength(net, float("nan")):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a tiny SD3, as far as export looks."""
    recipe = tinyrun.recipe(tmp_path / "my-run", {"policy.lora.alpha": 12.0})
    (tmp_path / "my-run").mkdir()
    settings.dump(recipe, tmp_path / "my-run" / "run.yaml")
    policy = load_policy(recipe.policy)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_(0, 0.1)
    export.save(policy, tmp_path / "my-run" / "lora")
    return tmp_path / "my-run"


def call(*words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_a_run_is_exported_for_everyone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "out"
    assert not call("export", str(run), "--comfy", "--diffusers", "--merged", "--out", str(out), "--dtype", "bf16")
    said_paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {p.name for p in said_paths} == {"my-run.safetensors", "my-run-diffusers", "transformer", "my-run-merged.safetensors"}
    weights, config = read_lora(out / "my-run-diffusers", "transformer")
    first, _ = read_lora(run / "lora", "transformer")
    assert (config["r"], config["lora_alpha"]) == (4, 12.0)
    assert weights.keys() == first.keys() and all(torch.equal(weights[k], first[k].bfloat16()) for k in first)
    for file in (out / "my-run-merged" / "transformer" / "diffusion_pytorch_model.safetensors", out / "my-run-merged.safetensors"):
        assert {v.dtype for v in load_file(file).values()} == {torch.bfloat16}


def test_without_a_word_it_is_the_file_for_comfyui(run: Path) -> None:
    assert not call("export", str(run))
    (path,) = (run / "export").iterdir()
    assert said(path)["modelspec.title"] == said(path)["ss_output_name"] == "my-run"
    assert path.name == "my-run.safetensors" and len(load_file(path)) == 3 * len(read_lora(run / "lora", "transformer")[0]) // 2


def test_a_run_that_was_moved_is_exported_under_its_present_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = run.rename(run.with_name("bicycle"))
    monkeypatch.chdir(moved)
    assert [p.name for p in export_run(".", ["comfy"])] == ["bicycle.safetensors"]


def test_what_the_run_wrote_itself_stands_in_for_the_base_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own file names the classes and the resolution, so that the model need not be there any more."""
    policy = load_policy(PolicySpec(model=tinyrun.model(), dtype="float32", lora=LoraSpec(rank=4, alpha=12.0)))
    recipe = settings.load(run / "run.yaml")
    files.write_comfy(run / "lora", files.adapters(policy.modules), about(recipe, "StableDiffusion3Pipeline", 3, (32, 48)))
    monkeypatch.setattr("flowrl.export.run._index", lambda model: pytest.fail("the model was asked"))
    written = export_run(run, ["comfy", "diffusers"])
    assert said(written[0])["modelspec.resolution"] == "32x48"


@pytest.mark.parametrize(
    ("words", "spoiled", "expected"),
    [
        ([], "lora", "holds no adapter"),
        ([], "model", "its index says which network the adapter is of"),
        ([], "rank", "trained the whole network (lora.rank 0)"),
        (["--strength", "inf"], "", "--strength inf is no number"),
        ([], "cut", "cannot be read"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(
    run: Path, words: list[str], spoiled: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "run.yaml").read_text()
    if spoiled == "lora":
        (run / "lora" / export.LORA_FILE).unlink()
    elif spoiled == "model":
        (run / "run.yaml").write_text(text.replace(tinyrun.model(), "nobody/nothing"))
    elif spoiled == "rank":
        (run / "run.yaml").write_text(text.replace("rank: 4", "rank: 0"))
    elif spoiled == "cut":
        (run / "lora" / export.LORA_FILE).write_bytes(b"12345678")
    assert call("export", str(run), *words) == 2
    assert expected in capsys.readouterr().err


def test_a_runs_trigger_word_is_in_its_file() -> None:
    recipe = Recipe()
    styled = replace(recipe, data=replace(recipe.data, style=StyleSpec("images", " ohwx ")))
    sized = replace(styled, policy=replace(styled.policy, width=640, height=512))
    told = about(sized, "FluxPipeline", 7, (1, 1))
    assert (told.title, told.trigger, told.resolution) == (recipe.run.name, "ohwx", (640, 512)) and "7 iterations" in told.told
    assert about(replace(recipe, run=replace(recipe.run, folder="runs/bicycle"))).title == "bicycle"
    assert about(recipe).trigger == "" and about(recipe).resolution is None
