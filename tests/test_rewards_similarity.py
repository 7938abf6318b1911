"""Likeness to references: the rule on known features, the encoders on tiny models of the real classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from flowrl import rewards
from flowrl.rewards import Place
from flowrl.rewards.contrastive.encoder import Encoder
from flowrl.rewards.contrastive.prepare import Preparation, exact
from flowrl.rewards.contrastive.similarity import DINOV2_PREPARED, Similarity, similarity, with_references
from flowrl.rewards.forms import Call


def plain(reduce: str = "max") -> Similarity:
    """Features are the mean colour of the picture."""
    seen.clear()

    def mean(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.mean((2, 3)).clamp(min=1e-4)

    return Similarity(Encoder(Place().house(nn.Linear(1, 1)), Preparation(exact((2, 2)), (2, 2), (0,) * 3, (1,) * 3), mean), reduce)


seen: list[int] = []


def flat(*color: int, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), color, np.uint8)


RED, GREEN, ORANGE = (255, 0, 0), (0, 255, 0), (255, 255, 0)


def call(images: list[Any], references: list[list[np.ndarray]]) -> Call:
    count = len(images)
    return Call(np.stack(images), [""] * count, [{}] * count, references, np.zeros(count, np.int64))


@pytest.mark.evidence("arithmetic", "similarity")
@pytest.mark.parametrize(("reduce", "expected"), [("max", [1, math.sqrt(0.5), 1]), ("mean", [0.5, math.sqrt(0.5), 1])])
def test_likeness_is_the_largest_or_the_mean_cosine_and_nothing_without_references(reduce: str, expected: list[float]) -> None:
    both = [flat(*RED, size=7), flat(*GREEN)]
    found = plain(reduce).on(call([flat(*RED), flat(*ORANGE), flat(*GREEN), flat(*RED)], [both, both, [flat(*GREEN)], []]))
    assert found[:3].tolist() == pytest.approx(expected, abs=1e-3) and found[3].isnan()
    # four pictures, and three distinct references: green came at two places
    assert seen == [4, 2]


def test_a_video_is_as_like_as_its_frames_are_in_the_mean() -> None:
    video = np.stack([flat(*RED), flat(*ORANGE)])
    found = plain().on(call([video], [[flat(*RED)]]))
    assert float(found[0]) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-3)


def test_references_of_its_own_are_used_for_every_prompt() -> None:
    found = with_references(plain("mean"), [flat(*RED), flat(*GREEN)]).on(call([flat(*RED), flat(*ORANGE)], [[], [flat(*ORANGE)]]))
    assert found.tolist() == pytest.approx([0.5, math.sqrt(0.5)], abs=1e-3)


FOLDERS = {"clip": "clip-vit-large-patch14", "siglip": "siglip-so400m-patch14-384", "dinov2": "dinov2-base"}


def features(name: str, folder: Path, images: np.ndarray) -> Tensor:
    with torch.no_grad():
        if name == "clip":
            clip = transformers.CLIPModel.from_pretrained(folder)
            return clip.get_image_features(pixel_values=tiny.pixel_values(images)).pooler_output
        if name == "siglip":
            whole = transformers.SiglipModel.from_pretrained(folder).eval()
            return whole.vision_model(pixel_values=tiny.pixel_values(images, "Siglip")).pooler_output
        dino = transformers.Dinov2Model.from_pretrained(folder)
        config = {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}, "resample": 3}
        made = transformers.CLIPImageProcessorPil(**config, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
        pixels = made([Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
        # class token after the last norm
        return dino(pixel_values=torch.as_tensor(np.asarray(pixels))).last_hidden_state[:, 0]


@pytest.mark.evidence("arithmetic", "similarity")
@pytest.mark.parametrize("name", FOLDERS)
def test_features_are_those_of_the_real_classes(name: str, tmp_path: Path) -> None:
    getattr(tiny, name)(tmp_path / FOLDERS[name])
    images, known = tiny.pictures(2), 255 - tiny.pictures(1, 50, 40)
    unit = [nn.functional.normalize(features(name, tmp_path / FOLDERS[name], some).double(), dim=-1) for some in (images, known)]
    made = rewards.make(f"similarity:{name}@{tmp_path}")
    samples = rewards.Samples(
        torch.from_numpy(images)[None], [""], [{}], torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, dtype=torch.long),
        [[known[0]]],
    )  # fmt: skip
    scores, _ = made(samples, made.init())
    torch.testing.assert_close(scores.values[0].double(), (unit[0] @ unit[1].T)[:, 0], rtol=0, atol=1e-4)


def test_a_folder_of_pictures_can_be_the_references(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "models" / FOLDERS["clip"])
    style = tmp_path / "style"
    style.mkdir()
    images = tiny.pictures(2)
    for index, image in enumerate(images):
        Image.fromarray(image).save(style / f"{index}.PNG")
    (style / "notes.txt").write_text("not a picture")
    made = similarity(f"clip:mean:{style}@{tmp_path / 'models'}")
    assert made.reduce == "mean" and made.own is not None and len(made.own) == 2
    near = similarity(f"clip:{style}@{tmp_path / 'models'}")
    assert near.reduce == "max" and near.on(call(list(images), [[], []])).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "kind", "words"),
    [
        ("resnet", ValueError, "no model 'resnet'; give one of clip, siglip, dinov2"),
        ("clip:median", FileNotFoundError, "median is not a folder of reference pictures, nor max or mean"),
        ("clip:max:EMPTY", ValueError, "there is no picture in .*; known are .bmp, .gif"),
        ("dinov2@EMPTY", FileNotFoundError, "there is no .*dinov2-base; fetch it with network access: hf download facebook"),
    ],
)
def test_what_cannot_be_is_a_sentence(variant: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        similarity(variant.replace("EMPTY", str(tmp_path)))
    assert DINOV2_PREPARED.size == (518, 518)
