"""Preparation of pictures against the reference libraries' own transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowrl.rewards.contrastive.prepare import (
    CLIP_MEAN,
    CLIP_STD,
    Preparation,
    covering,
    exact,
    long_side,
    of_open_clip,
    of_processor,
    short_side,
)

transform = pytest.importorskip("open_clip").transform
transformers = pytest.importorskip("transformers")
SIZES = [(48, 48), (96, 48), (50, 81), (81, 50), (1, 1), (1, 9), (7, 1), (37, 200), (33, 47)]
CLIP_CONFIG = {
    "size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, "resample": 3, "do_center_crop": True,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
SIGLIP_CONFIG = {"size": {"height": 48, "width": 40}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127.5 + 110 * np.sin(x / 9 + c) * np.cos(y / 7 + c) for c in range(3)], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("window", [48, (48, 48), (48, 32), (30, 64)])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_prepared_exactly_as_open_clip_does(mode: str, window: Any, filter: str, size: tuple[int, int]) -> None:
    config = transform.PreprocessCfg(size=window, resize_mode=mode, interpolation=filter, fill_color=17)
    if mode == "longest" and min(size) * 48 < max(size):
        pytest.skip("open_clip fails where a side rounds to 0")
    picture, theirs = noise(*size), transform.image_transform_v2(config, is_train=False)
    ours = of_open_clip(vars(config))([picture])[0]
    assert torch.equal(ours, theirs(Image.fromarray(picture)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "config"), [("CLIP", CLIP_CONFIG), ("Siglip", SIGLIP_CONFIG)])
def test_pictures_are_prepared_as_transformers_does(kind: str, config: dict[str, Any], size: tuple[int, int]) -> None:
    """Its Pillow processor to rounding in float32; its torch one, which resizes 8 bits otherwise, to a level or two."""
    slow, fast = (getattr(transformers, f"{kind}ImageProcessor{name}")(**config) for name in ("Pil", ""))
    ours = of_processor(config)
    picture = noise(*size)
    asked = slow(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours([picture])[0], torch.as_tensor(asked), rtol=0, atol=2e-6)
    calm = waves(*size)
    off = (ours([calm])[0] - fast(Image.fromarray(calm), return_tensors="pt")["pixel_values"][0]).abs()
    assert off.max() * min(config["image_std"]) * 255 <= 2.01


def test_a_processor_that_is_not_known_is_refused() -> None:
    for other in ({"resample": 1}, {"crop_size": 40}, {"size": {"longest_edge": 48}}, {"do_center_crop": False}):
        with pytest.raises(ValueError, match="known are a shortest edge"):
            of_processor({**CLIP_CONFIG, **other})
    # the oldest files write plain numbers
    old = of_processor({**CLIP_CONFIG, "size": 48, "crop_size": 48})
    assert torch.equal(old([noise(50, 81)]), of_processor(CLIP_CONFIG)([noise(50, 81)]))


@pytest.mark.evidence("arithmetic", "hpsv2", "hpsv2.1")
@pytest.mark.parametrize("size", [(224, 224), (512, 512), (300, 900), (901, 300), (225, 450), (100, 224), (10, 3000)])
def test_the_long_side_is_224_and_black_lies_around_it(size: tuple[int, int]) -> None:
    """HPSv2's rule, worked from its words: scale by 224 / longest, round, half of the missing rows above."""
    plain = Preparation(long_side((224, 224)), (224, 224), (0, 0, 0), (1, 1, 1))
    white = plain([np.full((*size, 3), 255, np.uint8)])[0]
    rows, columns = (max(1, round(side * (224 / max(size)))) for side in size)
    top, left = (224 - rows) // 2, (224 - columns) // 2
    expected = torch.zeros(3, 224, 224)
    expected[:, top : top + rows, left : left + columns] = 1
    assert torch.equal(white, expected)
    grey = plain.with_graph(torch.ones(1, 3, *size))[0]
    torch.testing.assert_close(grey, expected, rtol=0, atol=1e-6)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400))
def test_every_window_lies_where_its_rule_says(height: int, width: int, size: int) -> None:
    cut = short_side(size)(height, width)
    assert min(cut.height, cut.width) == size and 0 <= cut.top <= cut.height - size and 0 <= cut.left <= cut.width - size
    assert abs(2 * cut.top - (cut.height - size)) <= 1 and abs(2 * cut.left - (cut.width - size)) <= 1
    padded = long_side((size, size))(height, width)
    assert max(padded.height, padded.width) == size and padded.top <= 0 and padded.left <= 0
    assert exact((size, 7))(height, width) == (size, 7, 0, 0)
    both = covering((size, 2 * size))(height, width)
    assert both.height >= size and both.width >= 2 * size and (both.height == size or both.width == 2 * size)


@pytest.mark.parametrize("fit", [short_side(48), long_side((48, 48)), exact((48, 48))])
@pytest.mark.parametrize("size", [(48, 48), (96, 64), (30, 41), (1, 1)])
def test_float_images_are_prepared_as_their_pixels_are(fit: Any, size: tuple[int, int]) -> None:
    plain = Preparation(fit, (48, 48), (0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    picture = waves(*size)
    exactly = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    off = (plain.with_graph(exactly) - plain([picture])).abs()
    assert off.max() * 0.7 * 255 < (1e-3 if size == (48, 48) else 3)


@pytest.mark.parametrize("fit", [short_side(6), long_side((6, 6)), exact((6, 6))])
def test_the_differentiable_path_has_the_gradient_it_should(fit: Any) -> None:
    image = torch.rand(1, 3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    prepared = Preparation(fit, (6, 6))
    assert torch.autograd.gradcheck(prepared.with_graph, image.requires_grad_(), atol=1e-7)
