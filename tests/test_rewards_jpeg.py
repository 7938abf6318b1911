"""JPEG size as a reward."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import rewards
from flowrl.rewards.rules.jpeg import jpeg_compressibility, jpeg_incompressibility


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_score_is_the_size_of_a_file_of_quality_95_in_thousands_of_bytes() -> None:
    images = noise(3, 32, 48, 3)
    images[1] = 7
    sizes = jpeg_incompressibility(images, ["p"] * 3, [{}] * 3)
    for image, size in zip(images, sizes, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        assert size == len(buffer.getvalue()) / 1000
        read = Image.open(buffer)
        assert read.size == (48, 32)
    assert sizes.shape == (3,) and sizes[1] < sizes[0] and 1 < sizes[0] < 10
    assert np.array_equal(jpeg_compressibility(images, [], []), -sizes)


@pytest.mark.evidence("real", "jpeg_compressibility", "jpeg_incompressibility")
def test_reference_sizes_at_512_pixels() -> None:
    # measured elsewhere: flat 4.7 kB, uniform noise 308 kB (libjpeg 4:2:0; encoders differ by a few percent)
    flat = np.full((1, 512, 512, 3), 128, dtype=np.uint8)
    sizes = jpeg_incompressibility(np.concatenate([flat, noise(1, 512, 512, 3)]), [], [])
    assert sizes == pytest.approx([4.7, 308], rel=0.05)


def test_a_video_scores_the_mean_over_its_frames() -> None:
    video = noise(2, 4, 16, 16, 3)
    video[0, 1:] = 0
    frames = jpeg_incompressibility(video.reshape(8, 16, 16, 3), [], []).reshape(2, 4)
    assert jpeg_incompressibility(video, [], []) == pytest.approx(frames.mean(1))


@pytest.mark.parametrize(("name", "sign"), [("jpeg_compressibility", -1), ("jpeg_incompressibility", 1)])
def test_the_names_give_rewards(name: str, sign: int) -> None:
    pixels = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    samples = rewards.Samples(pixels, ["a", "b"], [{}, {}], torch.ones(2, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    reward = rewards.make(name)
    assert (reward(samples, reward.init())[0].values.sign() == sign).all()
