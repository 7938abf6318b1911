"""Scores of image and prompt: scales by name, PickScore and HPSv2 on tiny models of the real classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import transformers
from PIL import Image

from flowrl import rewards
from flowrl.rewards import Place
from flowrl.rewards.contrastive import clip as clips
from flowrl.rewards.contrastive import preference
from flowrl.rewards.contrastive.clip import PRESETS, clipscore
from flowrl.rewards.contrastive.preference import hpsv2, hpsv2_1, pickscore
from flowrl.rewards.contrastive.weights import Shelf, shelved

open_clip = pytest.importorskip("open_clip")
PROMPTS = ["a red dog", "two cats", "a red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    tiny.clip(path / "PickScore_v1")
    tiny.clip(path / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    return path


@pytest.mark.evidence("arithmetic", "pickscore")
def test_pickscore_is_the_logit_of_each_image_with_its_own_prompt(folder: Path) -> None:
    images, place = tiny.pictures(3), Place(batch=2)
    model = transformers.CLIPModel.from_pretrained(folder / "PickScore_v1")
    words = transformers.AutoTokenizer.from_pretrained(folder / "PickScore_v1")(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=tiny.pixel_values(images), **words).logits_per_image.diagonal()
    raw = pickscore(f"raw@{folder}", place)(images, PROMPTS, [{}] * 3)
    torch.testing.assert_close(raw, logits, rtol=0, atol=2e-5)
    assert raw.std() > 1e-2 and raw.dtype == torch.float32
    torch.testing.assert_close(pickscore(f"@{folder}")(images, PROMPTS, [{}] * 3), raw, rtol=0, atol=2e-5)
    torch.testing.assert_close(pickscore(f"/26@{folder}")(images, PROMPTS, [{}] * 3), logits / 26, rtol=0, atol=1e-6)
    cosines = logits / model.logit_scale.detach().exp()
    torch.testing.assert_close(pickscore(f"cosine@{folder}")(images, PROMPTS, [{}] * 3), cosines, rtol=0, atol=1e-6)


def test_the_gradient_of_a_preference_is_its_slope(folder: Path) -> None:
    scorer = pickscore(f"raw@{folder}")
    images = (torch.from_numpy(tiny.pictures(2)).float() / 255).clamp(0.1, 0.9).requires_grad_()
    score = scorer.with_graph(images, PROMPTS[:2], [{}] * 2)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    norm = gradient.flatten(1).norm(dim=1)
    assert (norm > 0).all()
    step = 1e-2 * gradient / norm.view(-1, 1, 1, 1)
    with torch.no_grad():
        risen = scorer.with_graph(images + step, PROMPTS[:2], [{}] * 2) - scorer.with_graph(images - step, PROMPTS[:2], [{}] * 2)
    torch.testing.assert_close(risen, 2e-2 * norm, rtol=0.05, atol=1e-5)
    made = rewards.make(f"pickscore:/26@{folder}")
    assert isinstance(made, rewards.DifferentiableReward) and rewards.parse(f"pickscore:/26@{folder}=0.5")[1] == 0.5


def test_half_precision_of_the_network_leaves_the_cosine_in_float32(folder: Path) -> None:
    images = tiny.pictures(3)
    whole = pickscore(f"cosine@{folder}")(images, PROMPTS, [{}] * 3)
    half = pickscore(f"cosine@{folder}", Place(dtype="bfloat16"))(images, PROMPTS, [{}] * 3)
    assert half.dtype == torch.float32 and (half - whole).abs().max() < 0.05


def test_weights_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(folder / "PickScore_v1")
    held = model.state_dict()
    held.pop("visual_projection.weight")
    (tmp_path / "CLIP-ViT-H-14-laion2B-s32B-b79K").symlink_to(folder / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    model.save_pretrained(tmp_path / "PickScore_v1", state_dict={**held, "odd.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"PickScore_v1 in CLIPModel .*1 missing \(visual_projection.weight\); 1 unexpected \(odd"):
        pickscore(f"@{tmp_path}")


@pytest.mark.parametrize(
    ("variant", "kind", "words"),
    [
        ("best", ValueError, "no variant 'best'; give one of raw, /26, cosine"),
        ("raw@/nowhere", FileNotFoundError, "/nowhere is not a folder"),
        ("raw@EMPTY", FileNotFoundError, "there is no .*PickScore_v1; fetch it with network access: hf download yuvalkirstain"),
        ("raw", RuntimeError, "could not load yuvalkirstain/PickScore_v1: .*without network access download it elsewhere"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(variant: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        pickscore(variant.replace("EMPTY", str(tmp_path)))


# cosines -1, 0, 0.25 and 0.3 under a model whose own factor is 100, by each name
SCALED = {
    "hessel": [0, 0, 0.625, 0.75],
    "cosine": [-1, 0, 0.25, 0.3],
    "torchmetrics": [0, 0, 25, 30],
    "flow_grpo": [-100 / 30, 0, 25 / 30, 1],
    "diffusion_nft": [-1, 0, 0.25, 0.3],
    "pref_grpo": [-1, 0, 0.25, 0.3],
}


@pytest.mark.evidence("arithmetic", "clipscore")
@pytest.mark.parametrize("variant", SCALED)
def test_each_clip_score_has_its_authors_scale_and_model(variant: str) -> None:
    found = PRESETS[variant].scale(torch.tensor([-1, 0, 0.25, 0.3], dtype=torch.float64), 100.0)
    assert found.tolist() == pytest.approx(SCALED[variant], abs=1e-12)
    name, weights = clips._resolve("clipscore", PRESETS[variant].model)
    expected = {"hessel": "ViT-B-32", "pref_grpo": "ViT-H-14"}.get(variant, "ViT-L-14")
    assert name == expected and weights in open_clip.list_pretrained_tags_by_model(name)
    assert set(SCALED) == set(PRESETS)


def test_only_hessels_score_changes_the_prompt(tmp_path: Path) -> None:
    embedded = f"local-dir:{clips._embedded()}"
    images = tiny.pictures(2)
    raw = clips.clip()(images, ["A photo depicts a red circle", "A photo depicts a blue square"], [{}] * 2)
    prompts = ["a red circle", "a blue square"]
    found = clipscore(f"hessel@{embedded}")(images, prompts, [{}] * 2)
    torch.testing.assert_close(found, 2.5 * raw.clamp(min=0))
    plain = clips.clip()(images, prompts, [{}] * 2)
    factor = clips.clip().encoder.factor
    torch.testing.assert_close(clipscore(f"flow_grpo@{embedded}")(images, prompts, [{}] * 2), plain * factor / 30)
    with pytest.raises(ValueError, match="no variant 'best'; give one of hessel, cosine"):
        clipscore("best")
    with pytest.raises(FileNotFoundError, match="reward clipscore: /nowhere is not a folder"):
        clipscore("hessel@local-dir:/nowhere")


@pytest.fixture(scope="module")
def hps() -> Any:
    """A small open_clip model by the structure of ViT-H-14, under a name of its own."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return tiny.shaken(open_clip.model.CLIP(**config)), config


@pytest.fixture
def small(hps: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def smaller(name: str, pretrained: str | None = None, precision: str = "") -> Any:
        assert (name, pretrained, precision) == ("ViT-H-14", None, "fp32")
        made = open_clip.model.CLIP(**hps[1])
        made.visual.preprocess_cfg = {**create_cfg, "size": 32}
        return made

    create_cfg = dataclasses.asdict(open_clip.transform.PreprocessCfg())
    monkeypatch.setattr(open_clip, "create_model", smaller)
    return hps[0]


def stored(model: Any, folder: Path, file: str = "HPS_v2_compressed.pt", **more: Any) -> str:
    (folder / "HPSv2").mkdir(exist_ok=True)
    half = {key: value.half() for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**half, **more}, "epoch": 1}, folder / "HPSv2" / file)
    return f"@{folder}"


@pytest.mark.evidence("arithmetic", "hpsv2", "hpsv2.1")
@pytest.mark.parametrize(("factory", "file"), [(hpsv2, "HPS_v2_compressed.pt"), (hpsv2_1, "HPS_v2.1_compressed.pt")])
@pytest.mark.parametrize("size", [(40, 56), (64, 64), (9, 33)])
def test_hps_is_the_cosine_of_the_padded_picture(small: Any, tmp_path: Path, factory: Any, file: str, size: Any) -> None:
    images = tiny.pictures(3, *size)
    scores = factory(stored(small, tmp_path, file))(images, PROMPTS, [{}] * 3)
    tokens = open_clip.get_tokenizer("ViT-H-14")
    rows, columns = (round(side * 32 / max(size)) for side in size)
    mean, std = (torch.tensor(some).view(3, 1, 1) for some in (clips.package("").OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    for image, prompt, score in zip(images, PROMPTS, scores, strict=True):
        padded = np.zeros((32, 32, 3), np.uint8)
        inner = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
        top, left = (32 - rows) // 2, (32 - columns) // 2
        padded[top : top + rows, left : left + columns] = inner
        pixels = (torch.from_numpy(padded).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            x, y = small.encode_image(pixels[None])[0].double(), small.encode_text(tokens([prompt]))[0].double()
        # the checkpoint is in half precision, as theirs is
        assert float(score) == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=2e-3)
    assert scores.std() > 1e-2


def test_an_hps_checkpoint_loads_key_for_key_and_never_unpickles(small: Any, tmp_path: Path) -> None:
    scorer = hpsv2(stored(small, tmp_path))
    assert all(p.dtype == torch.float32 for p in scorer.encoder.network.model.parameters())
    with pytest.raises(ValueError, match=r"HPS_v2_compressed.pt in ViT-H-14 .*1 unexpected \(score_predictor.weight\)"):
        hpsv2(stored(small, tmp_path, **{"score_predictor.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 of another shape \(logit_scale \[2\] for \[\]\)"):
        hpsv2(stored(small, tmp_path, logit_scale=torch.ones(2)))
    torch.save({"model": 1}, tmp_path / "HPSv2" / "HPS_v2_compressed.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        hpsv2(f"@{tmp_path}")
    torch.save(small, tmp_path / "HPSv2" / "HPS_v2_compressed.pt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        hpsv2(f"@{tmp_path}")
    with pytest.raises(ValueError, match="hpsv2.1 has no variant 'best'"):
        hpsv2_1("best")
    with pytest.raises(RuntimeError, match=r"could not load xswu/HPSv2 \(HPS_v2.1_compressed.pt\)"):
        hpsv2_1()


@pytest.mark.evidence("arithmetic", "hpsv2", "hpsv2.1")
def test_vit_h_14_has_the_names_and_sizes_that_the_checkpoint_is_said_to_hold() -> None:
    with torch.device("meta"):
        model = open_clip.create_model(preference.HPS_MODEL, pretrained=None, device="meta")
    held = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 986_109_441
    assert held["visual.transformer.resblocks.31.mlp.c_fc.weight"] == [5120, 1280]
    assert held["transformer.resblocks.23.attn.in_proj_weight"] == [3072, 1024]
    assert held["visual.proj"] == [1280, 1024] and held["text_projection"] == [1024, 1024] and held["logit_scale"] == []
    assert held["token_embedding.weight"] == [49408, 1024] and held["positional_embedding"] == [77, 1024]
    assert model.visual.image_size == (224, 224) and "visual.transformer.resblocks.32.ln_1.bias" not in held


def test_a_file_by_address_comes_from_the_folder_or_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a+b.pth").write_text("")
    assert Shelf("x", tmp_path).url("https://host/raw/a%2Bb.pth") == tmp_path / "a+b.pth"
    with pytest.raises(FileNotFoundError, match="fetch it with network access: curl -L https://host/c.pth -o"):
        Shelf("x", tmp_path).url("https://host/c.pth")

    def fetch(url: str, kept: str, sha256: str | None, progress: bool) -> None:
        assert (url, sha256, progress) == ("https://host/c.pth", "00", False)
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(RuntimeError, match=r"reward x could not load https://host/c.pth: invalid hash value; .*x:…@FOLDER"):
        Shelf("x").url("https://host/c.pth", "00")
    assert shelved("x", None) == ("", Shelf("x")) and shelved("x", f"a@{tmp_path}") == ("a", Shelf("x", tmp_path))
