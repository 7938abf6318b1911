"""Photographs with known content (scikit-image's own, in its wheel), put together, and the real light detector."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from outside import SHARED, wanted
from PIL import Image

from flowrl.rewards.geneval.yolox import Yolox, yolox

WEIGHTS = SHARED / "weights" / "detector" / "yolox_nano_416_coco80.onnx"
FILES = {"person": "astronaut.png", "cat": "chelsea.png", "cup": "coffee.png", "motorcycle": "motorcycle_left.png"}
Placed = tuple[np.ndarray, tuple[int, int], tuple[int, int]]


@functools.cache
def photo(name: str) -> np.ndarray:
    """uint8 [H, W, 3] of one of FILES."""
    # found, not imported: only its pictures are wanted
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-image, whose photographs are scored here, is not installed")
    return np.asarray(Image.open(Path(found.submodule_search_locations[0]) / "data" / FILES[name]).convert("RGB"))


def cup() -> np.ndarray:
    """The cup alone, without most of its table."""
    return photo("cup")[:320, 130:450]


def dyed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The picture in shades of one colour, its brightest tenth the full colour."""
    grey = image.mean(-1, keepdims=True)
    return (np.clip(grey / np.percentile(grey, 90), 0, 1) * np.array(colour)).astype(np.uint8)


def composite(height: int, width: int, *placed: Placed) -> np.ndarray:
    """(picture, (left, top), (width, height)) each, on grey."""
    out = np.full((height, width, 3), 128, dtype=np.uint8)
    for image, (x, y), size in placed:
        out[y : y + size[1], x : x + size[0]] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return out


@functools.cache
def detector() -> Yolox:
    pytest.importorskip("onnxruntime")
    return yolox(wanted("weights/detector/yolox_nano_416_coco80.onnx"))
