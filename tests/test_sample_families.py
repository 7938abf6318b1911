"""flowrl sample calls every pipeline as its family does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import cogview4, flux, flux2, hunyuan, qwen_image, sd, sd3, unnamed, wan, z_image
from families.case import Case
from ldm_file import whole
from PIL import Image
from safetensors.torch import save_file
from tiny import excite, save_sd3, sd3_pipeline

from flowrl import export, settings
from flowrl import sample as sampling
from flowrl.models import load_policy
from flowrl.models.caller import Caller
from flowrl.recipe import EvalSpec, LoraSpec, PolicySpec, Recipe
from flowrl.rewards.videos import read

MODULES = (cogview4, flux, flux2, hunyuan, qwen_image, sd, sd3, wan, z_image)
CASES: dict[str, Case] = {case.name: case for module in MODULES for case in module.CASES}
PROMPT = "a red circle"


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)).save(path)
    return path


def drawn(pipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What is drawn of one prompt, and its row of metadata.jsonl."""
    monkeypatch.setattr(sampling, "load_pipeline", lambda spec, device: pipe)
    pipe.set_progress_bar_config(disable=True)
    sampling.sample("tiny", [PROMPT], seeds=[3], steps=2, out=folder, device="cpu", **how)
    row = json.loads((folder / "metadata.jsonl").read_text())
    file = folder / row["file_name"]
    return (np.asarray(Image.open(file)) if file.suffix == ".png" else read(file).pixels), row


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = CASES[name]
    how = {key: case.spec[key] for key in ("height", "width", "frames") if key in case.spec}
    shown = [picture(tmp_path / "shown.png")] if case.images else []
    made, row = drawn(case.make(), tmp_path / "out", monkeypatch, images=shown, **how)
    assert row["images"] == [str(file) for file in shown]
    if "height" in how:
        assert made.shape[-3:-1] == (how["height"], how["width"])
    assert made.ndim == (4 if "frames" in how else 3) and made.std() > 0


def test_what_a_video_begins_with_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"height": 32, "width": 32, "frames": 5}
    made = [
        drawn(wan.image_pipeline("2.1"), tmp_path / str(i), monkeypatch, images=[picture(tmp_path / f"{i}.png", i)], **size)[0]
        for i in range(2)
    ]
    assert np.abs(made[0].astype(float) - made[1]).mean() > 1


def test_a_column_of_images_goes_before_the_images_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = picture(tmp_path / "own.png"), picture(tmp_path / "other.png", 1)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT, "image": "own.png"}) + "\n")
    prompts = sampling.read_prompts([str(tmp_path / "prompts.jsonl")], "image")
    monkeypatch.setattr(sampling, "load_pipeline", lambda spec, device: wan.image_pipeline("2.1"))
    sampling.sample("tiny", prompts, steps=1, out=tmp_path / "out", device="cpu", images=[other], height=32, width=32, frames=5)
    assert json.loads((tmp_path / "out" / "metadata.jsonl").read_text())["images"] == [str(own)]


def test_two_images_are_the_first_frame_and_the_last(tmp_path: Path) -> None:
    pipe = wan.image_pipeline("last")
    call = Caller(pipe, PolicySpec(height=32, width=32, frames=5))
    files = [picture(tmp_path / f"{i}.png", i) for i in range(2)]
    given = call(PROMPT, files)
    first, last = (np.asarray(Image.open(file)) for file in files)
    assert np.array_equal(given["image"], first) and np.array_equal(given["last_image"], last)


@pytest.mark.parametrize(
    ("make", "count", "said"),
    [
        (lambda: wan.image_pipeline("2.1"), 0, "comes with 0 images, and WanImageToVideoPipeline takes 1"),
        (lambda: hunyuan.skyreels(), 2, "comes with 2 images, and HunyuanSkyreelsImageToVideoPipeline takes 1"),
    ],
)
def test_a_wrong_number_of_images_is_a_sentence(tmp_path: Path, make: Any, count: int, said: str) -> None:
    call = Caller(make(), PolicySpec(height=32, width=32, frames=5))
    with pytest.raises(ValueError, match=said):
        call(PROMPT, [picture(tmp_path / f"{i}.png") for i in range(count)])


def test_a_model_of_texts_is_shown_no_image() -> None:
    with pytest.raises(ValueError, match=r"WanPipeline draws from texts alone; take the images out \(--image\)"):
        Caller(wan.pipeline(), PolicySpec(model="tiny", height=32, width=32, frames=5), pictured=True)


def test_guidance_is_what_the_family_calls_so() -> None:
    asked = {True: Caller(qwen_image.qwen_image(), PolicySpec(guidance=4.0)), False: Caller(qwen_image.qwen_image(), PolicySpec())}
    assert asked[True](PROMPT)["true_cfg_scale"] == 4.0 and asked[True](PROMPT)["negative_prompt"] == ""
    assert "negative_prompt" not in asked[False](PROMPT)
    assert Caller(flux.pipeline(True), PolicySpec(model="tiny"))(PROMPT)["guidance_scale"] == 3.5


def test_a_single_file_is_sampled(tmp_path: Path) -> None:
    pipe = sd.sd()
    pipe.save_pretrained(tmp_path / "folder")
    save_file(whole(pipe), tmp_path / "model.safetensors")
    how: dict[str, Any] = {"steps": 2, "device": "cpu", "height": 32, "width": 32}
    sampling.sample(str(tmp_path / "folder"), [PROMPT], out=tmp_path / "a", **how)
    sampling.sample(str(tmp_path / "model.safetensors"), [PROMPT], out=tmp_path / "b", config=str(tmp_path / "folder"), **how)
    of_folder, of_file = (next((tmp_path / where).glob("0000*.png")).read_bytes() for where in "ab")
    assert of_folder == of_file


@pytest.mark.parametrize("rank", [2, 0])
def test_a_run_is_drawn_from_as_it_was_trained(tmp_path: Path, rank: int) -> None:
    """By its folder alone: the model, every kind of guidance, the negative prompt and the steps are those of its record."""
    folder, run = save_sd3(tmp_path / "model"), tmp_path / "run"
    said: dict[str, Any] = {"guidance": 4.0, "negative": "a blue square", "max_sequence_length": 8, "height": 48, "width": 32}
    spec = PolicySpec(model=str(folder), dtype="float32", lora=LoraSpec(rank=rank), **said)
    policy = load_policy(spec)
    excite(policy.trainable(), 0.1)
    export.save(policy, run / "lora")
    settings.dump(Recipe(policy=spec, evaluate=EvalSpec(steps=3)), run / "run.yaml")
    sampling.sample(None, [PROMPT], lora=run, device="cpu", out=tmp_path / "out")
    made = np.asarray(Image.open(next((tmp_path / "out").glob("0000*.png"))))
    pipe = sampling.load_pipeline(spec, "cpu")
    if rank:
        pipe.load_lora_weights(str(run / "lora"))
    else:
        pipe.transformer = type(pipe.transformer).from_pretrained(run / "lora")
    sizes = {"max_sequence_length": 8, "height": 48, "width": 32}
    call: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a blue square", **sizes}
    right = pipe(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(0), **call).images[0]
    assert np.array_equal(made, np.asarray(right))


def test_a_model_without_a_family_is_drawn_from_with_the_guidance_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "lora").mkdir(parents=True)
    settings.dump(Recipe(policy=PolicySpec(model="owner/learned", negative="a blue square")), run / "run.yaml")
    (run / "result.json").write_text(json.dumps({"protocol": {"guidance": 3.0}}))
    spec, _ = sampling._as_trained(None, run / "lora")
    assert (spec.guidance, spec.negative) == (3.0, "a blue square")
    call = Caller(unnamed.lumina2(), spec)(PROMPT)
    assert call == {"guidance_scale": 3.0, "negative_prompt": "a blue square"}
    assert Caller(unnamed.lumina2(), PolicySpec(model="owner/learned"))(PROMPT) == {}


def test_whole_weights_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd.sd().unet.save_pretrained(tmp_path / "lora")
    with pytest.raises(
        ValueError, match="holds a UNet2DConditionModel, and the transformer of this model is a SD3Transformer2DModel"
    ):
        drawn(sd3_pipeline(), tmp_path / "out", monkeypatch, lora=tmp_path / "lora")
