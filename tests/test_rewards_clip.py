"""CLIP score against open_clip itself, on a random tiny model."""

from __future__ import annotations

import importlib.resources
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import rewards
from flowrl.rewards import Place
from flowrl.rewards.contrastive import clip as module
from flowrl.rewards.contrastive.clip import clip

open_clip = pytest.importorskip("open_clip")
ROOT = Path(__file__).resolve().parent.parent
PREPROCESS = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random open_clip model of 0.4 M parameters, as open_clip stores local ones."""
    path = tmp_path_factory.mktemp("tiny-clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    }
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(open_clip.model.CLIP(**config).state_dict(), path / "open_clip_pytorch_model.bin")
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def cosines(folder: Path, images: np.ndarray, prompts: list[str]) -> torch.Tensor:
    """Image by image with open_clip's own functions, in float64 after the towers."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    out = []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            x = model.encode_image(preprocess(Image.fromarray(image))[None])[0].double()
            y = model.encode_text(tokenizer([prompt]))[0].double()
            out.append(x @ y / (x.norm() * y.norm()))
    return torch.stack(out)


PROMPTS = ["a red circle", "two blue squares", "a red circle", "a word " * 40, ""]


@pytest.mark.evidence("arithmetic", "clip")
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 56), (20, 30)])
@pytest.mark.parametrize("batch", [2, 64])
def test_the_score_is_the_cosine_of_open_clips_own_features(folder: Path, size: tuple[int, int], batch: int) -> None:
    images = noise(5, *size, 3)
    scores = clip(f"local-dir:{folder}", place=Place(batch=batch))(images, PROMPTS, [{}] * 5)
    assert scores.dtype == torch.float32 and scores.shape == (5,) and not scores.requires_grad
    # float32 through two layers against float64 of the last step: a few ulp
    torch.testing.assert_close(scores.double(), cosines(folder, images, PROMPTS), atol=1e-6, rtol=0)
    assert scores.std() > 1e-3


def test_images_are_prepared_exactly_as_open_clip_does(folder: Path) -> None:
    _, _, expected = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    scorer = clip(f"local-dir:{folder}")
    for size in ((32, 32), (64, 64), (40, 56)):
        image = Image.fromarray(noise(*size, 3))
        assert torch.equal(scorer.encoder.preparation([np.asarray(image)])[0], expected(image))
    grey = scorer.encoder.preparation([np.full((32, 32, 3), 102, np.uint8)])[0]
    assert grey[:, 0, 0].tolist() == pytest.approx([0, -0.4, -2 / 3], abs=1e-6)


def test_long_prompts_are_cut_by_the_models_own_tokenizer(folder: Path) -> None:
    scorer = clip(f"local-dir:{folder}")
    assert scorer.encoder.tokenize(["a word " * 40]).shape == (1, 12)
    one, two = scorer(noise(1, 32, 32, 3).repeat(2, 0), ["word " * 40, "word " * 50], [{}, {}])
    assert one == two


def test_a_video_scores_the_mean_over_its_frames(folder: Path) -> None:
    video = noise(2, 3, 32, 32, 3)
    scorer = clip(f"local-dir:{folder}", place=Place(batch=2))
    frames = scorer(video.reshape(6, 32, 32, 3), ["a"] * 3 + ["b"] * 3, [{}] * 6).reshape(2, 3)
    torch.testing.assert_close(scorer(video, ["a", "b"], [{}, {}]), frames.mean(1))


def test_a_trainers_autocast_does_not_reach_the_score(folder: Path) -> None:
    images = noise(3, 32, 32, 3)
    scorer = clip(f"local-dir:{folder}")
    plain = scorer(images, PROMPTS[:3], [{}] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = scorer(images, PROMPTS[:3], [{}] * 3)
    assert torch.equal(plain, inside)


def test_the_name_gives_a_reward(folder: Path) -> None:
    reward = rewards.make(f"clip:local-dir:{folder}")
    pixels = torch.from_numpy(noise(2, 2, 32, 32, 3))
    samples = rewards.Samples(
        pixels, ["a", "b"], [{}, {}], torch.tensor([[True, False], [True, True]]), torch.zeros(2, dtype=torch.long)
    )
    scores, _ = reward(samples, reward.init())
    expected = cosines(folder, pixels.reshape(4, 32, 32, 3).numpy(), ["a", "a", "b", "b"]).float()
    torch.testing.assert_close(scores.values[scores.valid], expected[[0, 2, 3]], atol=1e-6, rtol=0)
    assert scores.valid.tolist() == [[True, False], [True, True]]


def test_weights_trained_with_quick_gelu_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    create = open_clip.create_model

    def spy(name: str, **options: Any) -> Any:
        seen.append({"name": name, **options})
        return create(f"local-dir:{folder}")

    monkeypatch.setattr(open_clip, "create_model", spy)
    for variant in ("ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-B/32/openai"):
        clip(variant)
    assert [(s["name"], s["pretrained"], s["force_quick_gelu"]) for s in seen] == [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "openai", True),
    ]
    assert all(s["precision"] == "fp32" and s["require_pretrained"] for s in seen)


def test_a_model_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(RuntimeError, match=r"reward clip could not load 'local-dir:.*': .*could not be loaded"):
        clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("variant", "kind", "message"),
    [
        ("ViT-B-32", ValueError, "'ViT-B-32' is not MODEL/PRETRAINED, such as"),
        ("ViT-B-33/openai", ValueError, "open_clip has no model 'ViT-B-33'; did you mean ViT-B-32"),
        ("ViT-B-32/openia", ValueError, "no weights 'openia' for ViT-B-32; it has openai, laion400m_e31"),
        ("local-dir:/nowhere", FileNotFoundError, "/nowhere is not a folder with open_clip_config.json"),
    ],
)
def test_an_unknown_model_is_a_sentence(variant: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rewards.make(f"clip:{variant}")


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch is 0; give at least 1"):
        clip(place=Place(batch=0))


def test_weights_that_cannot_be_had_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(RuntimeError, match="could not load 'ViT-B-32/openai': no network; without network access give a folder"):
        clip("ViT-B-32/openai")


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match='reward clip needs the package open_clip; pip install "open_clip_torch"'):
        clip()


def test_a_missing_embedded_model_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EMBEDDED", "no-such-model")
    with pytest.raises(FileNotFoundError, match=r"embedded CLIP model is missing: there is no .*no-such-model; reinstall flowrl"):
        clip()


@pytest.mark.skipif(
    not (ROOT / "assets" / "shapes-clip" / "open_clip_config.json").exists(), reason="the embedded model is not trained yet"
)
@pytest.mark.evidence("real", "clip")
def test_the_embedded_model_prefers_the_right_colour() -> None:
    scorer = clip()
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8) + np.uint8(30)
    yy, xx = np.mgrid[:64, :64]
    disc = (yy - 32) ** 2 + (xx - 32) ** 2 < 14**2
    images[0, disc], images[1, disc] = (220, 40, 40), (40, 80, 220)
    red = scorer(images, ["a photo of a red circle"] * 2, [{}] * 2)
    blue = scorer(images, ["a photo of a blue circle"] * 2, [{}] * 2)
    assert red[0] > red[1] and blue[1] > blue[0]


def test_the_embedded_model_is_found_without_installing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.resources, "files", absent)
    with pytest.raises(FileNotFoundError) as caught:
        monkeypatch.setattr(module, "EMBEDDED", "no-such-model")
        clip()
    assert str(Path(str(module.__file__)).resolve().parents[2] / "assets" / "no-such-model") in str(caught.value)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 56), (20, 30)])
def test_float_images_score_as_their_rounded_pixels_do(folder: Path, tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    """Pillow rounds and clamps to 8 bits after each of its two passes and torch does not: half a level of 255 in most pixels,
    two and a half beside the hard edge."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({**config, "preprocess_cfg": {**PREPROCESS, "resize_mode": mode}}))
    (tmp_path / "open_clip_pytorch_model.bin").symlink_to(folder / "open_clip_pytorch_model.bin")
    scorer, images = clip(f"local-dir:{tmp_path}"), smooth(5, *size)
    exact = torch.from_numpy(images).float() / 255
    for image, float_image in zip(images, exact, strict=True):
        expected = scorer.encoder.preparation([image])[0]
        found = scorer.encoder.preparation.with_graph(float_image.permute(2, 0, 1)[None])[0]
        off = (found - expected).abs() * 255 * 0.2  # levels, at the smallest std
        assert off.max() < 2.5 and off.mean() < 0.5
    torch.testing.assert_close(
        scorer.with_graph(exact, PROMPTS, [{}] * 5),
        scorer(images, PROMPTS, [{}] * 5),
        rtol=0,
        atol=1e-6 if size == (32, 32) else 2e-3,
    )


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Pictures with slopes and one hard edge."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (4 + i) + c) * np.cos(y / (5 + c)) for i in range(count) for c in range(3)]
    out = (127.5 + 120 * np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)).astype(np.uint8)
    out[:, height // 3 :, : width // 2] = (250, 10, 40)
    return out


def test_the_gradient_of_a_score_is_its_slope(folder: Path) -> None:
    """Along its own gradient the score rises as fast as the gradient says."""
    scorer = clip(f"local-dir:{folder}")
    images = (torch.from_numpy(smooth(2, 40, 56)).float() / 255).clamp(0.1, 0.9).requires_grad_()
    score = scorer.with_graph(images, PROMPTS[:2], [{}] * 2)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert score.requires_grad and gradient.shape == images.shape
    norm = gradient.flatten(1).norm(dim=1)
    assert (norm > 0).all() and not any(p.requires_grad for p in scorer.encoder.network.model.parameters())
    step = 1e-2 * gradient / norm.view(-1, 1, 1, 1)
    with torch.no_grad():
        risen = scorer.with_graph(images + step, PROMPTS[:2], [{}] * 2) - scorer.with_graph(images - step, PROMPTS[:2], [{}] * 2)
    torch.testing.assert_close(risen, 2e-2 * norm, rtol=0.05, atol=1e-6)


def test_a_video_scores_the_mean_of_its_frames_with_a_graph(folder: Path) -> None:
    scorer = clip(f"local-dir:{folder}")
    frames = torch.from_numpy(smooth(6, 32, 32)).float() / 255
    whole = scorer.with_graph(frames.unflatten(0, (2, 3)), PROMPTS[:2], [{}] * 2)
    each = scorer.with_graph(frames, [p for p in PROMPTS[:2] for _ in range(3)], [{}] * 6)
    torch.testing.assert_close(whole, each.unflatten(0, (2, 3)).mean(1), rtol=0, atol=1e-6)


def test_clip_is_a_differentiable_reward(folder: Path) -> None:
    made = rewards.make(f"clip:local-dir:{folder}")
    assert isinstance(made, rewards.DifferentiableReward) and made.name == f"clip:local-dir:{folder}"
    assert not isinstance(rewards.make("jpeg_compressibility"), rewards.DifferentiableReward)
