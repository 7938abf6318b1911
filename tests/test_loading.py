"""Models from a hub, a folder, a file or a built pipeline; what is in the way of each is a sentence."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ldm_file
import pytest
import torch
from families.sd import sd
from safetensors.torch import save_file
from tiny import PROMPTS, excite, save_sd3, sd3_pipeline

from flowrl import export
from flowrl.export.files import adapters, write_comfy
from flowrl.export.metadata import About
from flowrl.models import load_policy
from flowrl.models.generic.listen import patched
from flowrl.models.lora import attach
from flowrl.recipe import LoraSpec, PolicySpec
from flowrl.said import first_line

TOKEN = "hf_planted_token_1234567890"
ERRORS = {"missing": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "bare": (404, "EntryNotFound")}


SEEN: list[str | None] = []


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that are missing, gated, without a revision, or in another format."""

    def do_HEAD(self) -> None:
        SEEN.append(self.headers.get("authorization"))
        name = self.path.split("/")[2]
        status, code = ERRORS.get(name, (404, "RevisionNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a process that talks to such a hub says of each model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import json, sys\nfrom flowrl.models import load_policy\nfrom flowrl.recipe import PolicySpec\nout = {}\n"
        "for name, revision in json.loads(sys.argv[1]).items():\n"
        "    try:\n        load_policy(PolicySpec(model=f'owner/{name}', revision=revision), token=sys.argv[2])\n"
        "    except ValueError as error:\n        out[name] = str(error)\n"
        "print(json.dumps(out))"
    )
    asked = {"missing": None, "gated": None, "bare": None, "old": "v9"}
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked), TOKEN], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    assert TOKEN not in done.stdout + done.stderr
    yield json.loads(done.stdout.splitlines()[-1])


HUB = {
    "missing": "there is no model 'owner/missing' on the hub, or it is private",
    "gated": "model 'owner/gated' is gated: accept its terms on its page of the hub, then log in",
    "bare": "model 'owner/bare' is not in diffusers format: it has no model_index.json; download its single file",
    "old": "model 'owner/old' has no revision 'v9'",
}


@pytest.mark.parametrize("name", HUB)
def test_what_the_hub_refuses_is_a_sentence(said: dict[str, str], name: str) -> None:
    assert HUB[name] in said[name]
    assert f"Bearer {TOKEN}" in SEEN


@pytest.mark.parametrize("part", ["tokenizer_2", "vae"])
def test_a_folder_that_lacks_a_part_is_a_sentence(folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(ValueError, match=f"model .*model lacks {part}/, which its model_index.json names; complete the folder"):
        load_policy(spec(tmp_path / "model"))


@pytest.mark.parametrize(("name", "of"), [("revision", "a hub model"), ("config", "a single file")])
def test_settings_that_say_nothing_of_a_folder_are_refused(folder: Path, name: str, of: str) -> None:
    with pytest.raises(ValueError, match=f"policy.{name} 'main' is for {of}, and .* is a folder; take policy.{name} out"):
        load_policy(spec(folder, **{name: "main"}))


def test_what_cannot_be_a_hub_name_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"model '\$T/sd3' is neither a folder here nor a hub name"):
        load_policy("$T/sd3")


UNREAD = {
    "guidance_rescale": (0.5, "only StableDiffusionPipeline and StableDiffusionXLPipeline has it"),
    "guidance_cap": (2.0, "only ZImagePipeline has it"),
    "edit": (True, "only Flux2KleinPipeline has it"),
    "true_guidance": (3.0, "the factor between its two predictions is policy.guidance"),
    "guidance_2": (2.0, "the model has one expert"),
}


@pytest.mark.parametrize("setting", UNREAD)
def test_a_setting_that_the_model_does_not_read_is_refused(folder: Path, setting: str) -> None:
    value, why = UNREAD[setting]
    said = f"policy.{setting} {value}: StableDiffusion3Pipeline does not read it, {why}; take policy.{setting} out"
    with pytest.raises(ValueError, match=re.escape(said)):
        load_policy(spec(folder, **{setting: value}))


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(ValueError, match="'owner/large' does not fit on the disk: no space left; free some, or set HF_HOME"):
        load_policy("owner/large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("models") / "model")


def spec(folder: Path, **more: Any) -> PolicySpec:
    own = {"model": str(folder), "dtype": "float32", "max_sequence_length": 8, "lora": LoraSpec(rank=2, alpha=3.0)}
    return PolicySpec(**{**own, **more})


def test_a_variant_that_is_not_there_is_a_sentence(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no variant 'fp16' of its weights; take policy.variant out, or give one that it has"):
        load_policy(spec(folder, variant="fp16"))


def answer(policy: Any, seed: int = 3) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape(), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor([0.7, 0.4]), policy.encode(PROMPTS))


def test_an_adapter_is_gone_on_with_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    first = load_policy(spec(folder))
    excite(first.trainable())
    export.save_lora(first, tmp_path / "lora")
    again = load_policy(spec(folder, lora=LoraSpec(start=str(tmp_path / "lora"))))
    assert torch.equal(answer(again), answer(first))
    names = [name for name, _ in again.trainable()]
    assert names == [name for name, _ in first.trainable()]
    assert again.network.peft_config["default"].lora_alpha == 3.0
    assert not again.adapted  # what it starts from is the file, so a frozen reference keeps a copy


def test_an_adapter_goes_on_from_a_file_too(folder: Path, tmp_path: Path) -> None:
    first = load_policy(spec(folder))
    excite(first.trainable())
    file = export.save_lora(first, tmp_path / "lora") / export.LORA_FILE
    again = load_policy(spec(folder, lora=LoraSpec(start=str(file))))
    assert torch.equal(answer(again), answer(first))


def test_a_pipelines_own_adapter_stays_a_part_of_the_base(folder: Path, tmp_path: Path) -> None:
    first = load_policy(spec(folder))
    excite(first.trainable())
    export.save_lora(first, tmp_path / "lora")
    pipe = sd3_pipeline()
    pipe.load_lora_weights(str(tmp_path / "lora"), adapter_name="style")
    policy = load_policy(pipe, spec=spec(folder))
    assert torch.allclose(answer(policy), answer(first), atol=1e-5)
    assert {name.split(".")[-2] for name, _ in policy.trainable()} == {"default"}
    before = answer(policy)
    excite(policy.trainable(), seed=9)
    assert not torch.allclose(answer(policy), before, atol=1e-3)
    with policy.reference():
        assert torch.equal(answer(policy), before)


WRONG_LORA = {
    "not there": ("nowhere.safetensors", "lora.start .*nowhere.safetensors.*: there is no such file or folder; give a run"),
    "another family": ("other", "adapter of another family|could not be loaded into StableDiffusion3Pipeline"),
}


@pytest.mark.parametrize("case", WRONG_LORA)
def test_a_wrong_adapter_is_a_sentence(folder: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "other").mkdir()
    weights = {f"unet.mid_block.attn.to_q.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    save_file(weights, tmp_path / "other" / export.LORA_FILE)
    start, message = WRONG_LORA[case]
    with pytest.raises(ValueError, match=message):
        load_policy(spec(folder, lora=LoraSpec(start=str(tmp_path / start))))


def shapes_differ(folder: Path) -> Path:
    """An adapter of a narrower SD3."""
    weights = {}
    for block in (0, 1):
        for name in ("to_q", "to_k", "to_v"):
            key = f"transformer.transformer_blocks.{block}.attn.{name}"
            weights |= {f"{key}.lora_A.weight": torch.ones(2, 3), f"{key}.lora_B.weight": torch.ones(3, 2)}
    save_file(weights, folder / export.LORA_FILE)
    return folder


def modules_differ(folder: Path) -> Path:
    """An adapter of a network whose modules are called otherwise."""
    key = "transformer.layers.0.attention.to_q"
    save_file({f"{key}.lora_A.weight": torch.ones(2, 3), f"{key}.lora_B.weight": torch.ones(3, 2)}, folder / export.LORA_FILE)
    return folder


@pytest.mark.parametrize(
    ("other", "why"), [(shapes_differ, "size mismatch for"), (modules_differ, "1 of its 1 layers are not in the transformer")]
)
def test_an_adapter_of_another_model_is_one_sentence_and_nothing_else(
    folder: Path, tmp_path: Path, other: Callable[[Path], Path], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = load_policy(spec(folder, lora=LoraSpec(rank=0)))
    capfd.readouterr()
    said = rf"is an adapter of another model: .*{why}|{why}.*: it is an adapter of another model; give"
    with warnings.catch_warnings(record=True) as warned, pytest.raises(ValueError, match=said) as failed:
        warnings.simplefilter("always")
        attach(policy.pipe, ["transformer"], str(other(tmp_path)), "lora.start")
    assert ":;" not in str(failed.value) and "\n" not in str(failed.value)
    assert not warned and capfd.readouterr() == ("", "")


def test_what_a_library_warns_of_is_kept_where_an_adapter_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = sd3_pipeline()
    export.save_lora(load_policy(sd3_pipeline(), spec=PolicySpec(dtype="float32", lora=LoraSpec(rank=2))), tmp_path)
    right, told = pipe.load_lora_weights, []

    def load(*given: Any, **more: Any) -> None:
        warnings.warn("careful", RuntimeWarning, stacklevel=1)
        logging.getLogger("diffusers.loaders").error("also this")
        right(*given, **more)

    monkeypatch.setattr(pipe, "load_lora_weights", load)
    monkeypatch.setattr(logging.getLogger("diffusers"), "handle", lambda record: told.append(record.getMessage()))
    with pytest.warns(RuntimeWarning, match="careful"):
        attach(pipe, ["transformer"], str(tmp_path), "lora.start")
    assert told[0] == "also this"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Error(s) in loading state_dict for X:\n\tsize mismatch for a: got 3.\n\tsize mismatch for b.",
            "for X: size mismatch for a: got 3",
        ),
        ("no weights here.\nand more", "no weights here"),
        ("it ends here:", "it ends here"),
        ("for X:\n\n  Missing key(s): " + "a, " * 500, "a, …"),
        ("", "ValueError"),
        (" .", "ValueError"),
    ],
)
def test_a_first_line_that_ends_with_a_colon_is_read_on(text: str, said: str) -> None:
    found = first_line(ValueError(text))
    assert found.endswith(said) and len(found) < 300 and not found.endswith(":") and "\n" not in found


def test_an_adapter_of_which_half_would_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    """FLUX.1's and SD3's blocks have layers of the same names and, here, sizes."""
    from safetensors.torch import load_file, save_file

    first = load_policy(spec(folder))
    file = export.save_lora(first, tmp_path / "lora") / export.LORA_FILE
    weights = load_file(file)
    more = {key.replace("transformer_blocks.0", "single_transformer_blocks.0"): value.clone() for key, value in weights.items()}
    save_file({**weights, **more}, tmp_path / "both.safetensors")
    with pytest.raises(
        ValueError, match="adapter of another model: .* of its .* layers are not in the transformer .*single_transf"
    ):
        load_policy(spec(folder, lora=LoraSpec(start=str(tmp_path / "both.safetensors"))))


def test_of_the_file_for_comfyui_the_one_beside_it_is_taken(folder: Path, tmp_path: Path) -> None:
    first = load_policy(spec(folder))
    excite(first.trainable())
    place = export.save_lora(first, tmp_path / "lora")
    about = About("mine", str(folder), "", None, "", "StableDiffusion3Pipeline")
    file = write_comfy(place, adapters(first.modules), about)[0]
    again = load_policy(spec(folder, lora=LoraSpec(start=str(file))))
    assert torch.equal(answer(again), answer(first))


def test_a_run_is_not_its_adapter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    with pytest.raises(ValueError, match="is a run; give the adapter in it: .*lora"):
        load_policy(spec(folder, lora=LoraSpec(start=str(tmp_path))))


def test_sampling_with_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    weights = {f"unet.mid_block.attn.to_q.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    save_file(weights, tmp_path / export.LORA_FILE)
    with pytest.raises(ValueError, match="--lora .* holds nothing for the transformer of StableDiffusion3Pipeline"):
        attach(sd3_pipeline(), ["transformer"], str(tmp_path), "--lora")


def test_a_quantised_base_carries_an_adapter(folder: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    policy = load_policy(spec(folder, quantize="int8", dtype="bfloat16"))
    assert "Int8" in type(policy.network.transformer_blocks[0].attn.to_q.weight).__name__
    plain = load_policy(spec(folder, dtype="bfloat16"))
    gap = (answer(policy) - answer(plain)).abs().mean() / answer(plain).abs().mean()
    assert 0 < gap < 0.05
    x = torch.randn(2, *policy.latent_shape())
    policy.velocity(x, torch.tensor([0.7, 0.4]), policy.encode(PROMPTS)).square().sum().backward()
    assert all(p.grad is not None for name, p in policy.trainable() if "lora_B" in name and "add_q_proj" not in name)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"quantize": "int8", "lora": LoraSpec(rank=0)}, "quantised weights cannot be trained; set a rank above 0"),
        ({"quantize": "nf4"}, "needs (a CUDA device|bitsandbytes)"),
        ({"attention": "flashy"}, r"policy.attention 'flashy' is unknown \(did you mean 'flash'\?\); diffusers has: .*native"),
        ({"attention": "sage"}, "has no backward"),
        ({"attention": "xformers"}, "none of the . attentions of SD3Transformer2DModel can take it"),
    ],
)
def test_what_cannot_be_had_here_is_a_sentence(folder: Path, more: dict[str, Any], said: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("these can be had on a GPU")
    with pytest.raises(ValueError, match=said):
        load_policy(spec(folder, **more))


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends_agree(folder: Path, backend: str) -> None:
    chosen, plain = load_policy(spec(folder, attention=backend)), load_policy(spec(folder))
    assert torch.allclose(answer(chosen), answer(plain), atol=1e-5)


def test_offloaded_parts_come_back_to_the_cpu(folder: Path) -> None:
    policy = load_policy(spec(folder, offload=("encoders", "vae")))
    moved: list[str] = []
    right = policy.pipe.vae.to
    with patched(policy.pipe.vae, "to", lambda *args: (moved.append(str(args[0])), right(*args))[1]):
        policy.decode(torch.randn(1, *policy.latent_shape()))
    assert moved == ["cpu", "cpu"]  # to the policy's device, which is the CPU here, and back


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion as a folder and as files: of everything, of the network, and of the network with the VAE."""
    place = tmp_path_factory.mktemp("files")
    pipe = sd()
    pipe.save_pretrained(place / "folder")
    weights = ldm_file.whole(pipe)
    kept = {"whole": "", "network": "model.", "half": ("model.", "first_stage_model."), "decoder": "first_stage_model."}
    for name, prefix in kept.items():
        save_file({key: value for key, value in weights.items() if key.startswith(prefix)}, place / f"{name}.safetensors")
    return place


def of_file(place: Path, name: str, **more: Any) -> PolicySpec:
    own = {"model": str(place / f"{name}.safetensors"), "config": str(place / "folder"), "dtype": "float32"}
    return PolicySpec(**{**own, "lora": LoraSpec(rank=2), **more})


def parts(pipe: Any) -> dict[str, torch.Tensor]:
    names = ("unet", "vae", "text_encoder")
    found = {name: getattr(pipe, name).state_dict() for name in names}
    return {f"{name}.{key}": value for name, state in found.items() for key, value in state.items() if "lora" not in key}


def test_a_log_has_no_bars_of_what_is_loaded(folder: Path, one_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_policy(spec(folder))
    load_policy(of_file(one_file, "whole"))
    assert "it/s" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["whole", "half", "network"])
def test_a_single_file_is_the_folder_it_was_made_of(one_file: Path, name: str) -> None:
    plain = load_policy(of_file(one_file, "folder", model=str(one_file / "folder"), config=None))
    policy = load_policy(of_file(one_file, name))
    theirs = parts(plain.pipe)
    assert all(torch.equal(value, theirs[key]) for key, value in parts(policy.pipe).items()) and len(theirs) > 100
    assert type(policy.pipe.scheduler) is type(plain.pipe.scheduler)
    assert torch.equal(answer(policy), answer(plain))


def test_what_a_file_lacks_is_its_configs(one_file: Path, tmp_path: Path) -> None:
    sd(seed=7).save_pretrained(tmp_path / "other")
    plain, other = (
        load_policy(of_file(one_file, "", model=str(of), config=None)).pipe for of in (one_file / "folder", tmp_path / "other")
    )
    mixed = load_policy(of_file(one_file, "half", config=str(tmp_path / "other"))).pipe
    right = {name: parts(of) for name, of in (("unet", plain), ("vae", plain), ("text_encoder", other))}
    assert all(torch.equal(value, right[key.partition(".")[0]][key]) for key, value in parts(mixed).items())
    assert not torch.equal(plain.unet.conv_in.weight, other.unet.conv_in.weight)


def test_the_vae_of_a_single_file_is_not_rounded(one_file: Path) -> None:
    plain = load_policy(of_file(one_file, "folder", model=str(one_file / "folder"), config=None)).pipe.vae.state_dict()
    policy = load_policy(of_file(one_file, "whole", dtype="bfloat16"))
    assert policy.network.dtype == policy.pipe.text_encoder.dtype == torch.bfloat16
    assert all(torch.equal(value, plain[key]) for key, value in policy.pipe.vae.state_dict().items())


def test_the_network_of_a_single_file_is_quantised(one_file: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    policy = load_policy(of_file(one_file, "whole", dtype="bfloat16", quantize="int8"))
    plain = load_policy(of_file(one_file, "whole", dtype="bfloat16"))
    assert "Int8" in type(policy.network.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight).__name__
    gap = (answer(policy) - answer(plain)).abs().mean() / answer(plain).abs().mean()
    assert 0 < gap < 0.1


WRONG_FILES = {
    "no network": ({"name": "decoder"}, "could not be loaded as a StableDiffusionPipeline .*it holds no weights of the network"),
    "no such config": (
        {"name": "whole", "config": "nowhere"},
        "policy.config 'nowhere' describes it, and model 'nowhere' is neither a",
    ),
    "offline": (
        {"name": "whole", "config": None},
        "it is taken for a checkpoint of '.*/stable-diffusion-v1-5', and .*; set policy.config .--config of",
    ),
    "another family's config": ({"name": "whole", "config": "sd3"}, "could not be loaded as a StableDiffusion3Pipeline"),
    "other packages": ({"name": "whole", "lora": LoraSpec(rank=0), "quantize": "int8"}, "quantised weights cannot be trained"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_what_a_single_file_lacks_is_a_sentence(one_file: Path, folder: Path, case: str) -> None:
    more, said = WRONG_FILES[case]
    more = {**more, "config": str(folder)} if more.get("config") == "sd3" else more
    with pytest.raises(ValueError, match=said):
        load_policy(of_file(one_file, **more))


def test_a_file_that_was_cut_off_is_a_sentence(one_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes((one_file / "whole.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.safetensors.* is not readable as safetensors .*; download it again"):
        load_policy(of_file(tmp_path, "cut", config=str(one_file / "folder")))
