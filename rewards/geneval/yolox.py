"""YOLOX as an ONNX file: the light detector, boxes only, on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .objects import Detections
from .words import CLASSES

STRIDES = (8, 16, 32)
PADDING = 114


@dataclass(frozen=True)
class Yolox:
    """See `yolox`. network: float32 [1, 3, size, size], BGR 0 to 255 -> float32 [1, M, 85];  floor: scores below are dropped;
    overlap: of two boxes of a class with a larger intersection over union the lower is dropped."""

    network: Callable[[np.ndarray], np.ndarray]
    size: int
    name: str
    floor: float = 0.05
    overlap: float = 0.45

    def __call__(self, images: np.ndarray) -> list[Detections]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        pixels, scale = letterbox(image, self.size)
        boxes, classes = decode(self.network(pixels)[0], self.size)
        label = classes.argmax(1)
        score = classes[np.arange(len(label)), label]
        kept = np.flatnonzero(score > self.floor)
        edges = np.array([width, height, width, height])
        box = np.clip(boxes[kept] / scale, 0, edges)
        label, score = label[kept], score[kept]
        chosen = np.concatenate(
            [np.flatnonzero(label == k)[suppress(box[label == k], score[label == k], self.overlap)] for k in np.unique(label)]
            or [np.zeros(0, dtype=np.int64)]
        )
        return Detections([CLASSES[k] for k in label[chosen].tolist()], box[chosen], score[chosen])


def yolox(file: str | Path) -> Yolox:
    """A YOLOX model trained on COCO as exported to ONNX with raw output (before grids and strides are applied), by onnxruntime.

    One class a box, its score objectness times class probability; boxes cut at the picture's edges. Its name ends in "-boxes":
    there are no masks, so colours are judged with the background in the box.
    YOLOX-Nano seldom says more than 0.9, which GenEval asks for in the counting task: its counts are mostly too low.

    Raises: FileNotFoundError where there is no file; ModuleNotFoundError without onnxruntime; ValueError for another file.

    Source: YOLOX (2107.08430); Megvii-BaseDetection/YOLOX@0076732 `yolox/utils/demo_utils.py`, `boxes.py::postprocess`.
    Differs: overlapping boxes of different classes are all kept, as its evaluation does and its demo does not.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"reward geneval: there is no detector file {str(file)!r}; give geneval:soft@yolox:FILE.onnx")
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"reward geneval: {path.name} is not an ONNX file that onnxruntime can read: {error}") from error
    given, told = session.get_inputs()[0], session.get_outputs()[0]
    size = given.shape[-1] if isinstance(given.shape[-1], int) else 0
    rows = sum((size // stride) ** 2 for stride in STRIDES)
    if list(given.shape) != [1, 3, size, size] or size % STRIDES[-1] or list(told.shape) != [1, rows, 5 + len(CLASSES)]:
        raise ValueError(
            f"reward geneval: {path.name} takes {given.shape} and gives {told.shape}; a raw YOLOX of COCO's 80 classes takes "
            "[1, 3, S, S], S a multiple of 32, and gives [1, M, 85], M = 3549 for S = 416"
        )
    return Yolox(lambda pixels: session.run(None, {given.name: pixels})[0], size, f"{path.stem}-boxes")


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """(BGR float32 [1, 3, size, size] in 0 to 255, scale): the picture uint8 [H, W, 3] resized into the top left, the rest grey."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    inner = max(int(height * scale), 1), max(int(width * scale), 1)
    pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float()[None]
    small = nn.functional.interpolate(pixels, inner, mode="bilinear", align_corners=False).round()
    out = np.full((1, 3, size, size), PADDING, dtype=np.float32)
    out[:, :, : inner[0], : inner[1]] = small.numpy()
    return out, scale


def decode(raw: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(boxes float64 [M, 4], left, top, right, bottom in network pixels; scores float64 [M, 80]) of raw output [M, 85].

    Row by row of the grids of strides 8, 16, 32: centre = (raw_xy + cell) stride, size = exp(raw_wh) stride.
    """
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size // stride, : size // stride]
        cells.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((x.size, 1), stride))
    stride = np.concatenate(strides)
    raw = raw.astype(np.float64)
    centre, half = (raw[:, :2] + np.concatenate(cells)) * stride, np.exp(raw[:, 2:4]) * stride / 2
    return np.concatenate([centre - half, centre + half], 1), raw[:, 4:5] * raw[:, 5:]


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Indices of boxes [K, 4] that no box of a higher score overlaps by more, the highest first."""
    order = np.lexsort((*boxes.T[::-1], -scores))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        common = np.clip(shared, 0, None).prod(1)
        order = order[common <= overlap * (area[best] + area[order] - common)]
    return np.array(kept, dtype=np.int64)


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ModuleNotFoundError('reward geneval@yolox needs the package onnxruntime; pip install "onnxruntime"') from error
