"""What stands in an image: engines that read it, and the orders in which a person may."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from flowrl.rewards.base import NotLoaded


class Line(NamedTuple):
    """A line of text an engine found. confidence: 0 to 1;  box: four corners (x, y) in pixels."""

    text: str
    confidence: float
    box: Any


Engine = Callable[[np.ndarray], Sequence[tuple[str, float, Any]]]
"""image uint8 [H, W, 3], RGB -> its lines as (text, confidence, box), in any order; none where it has no text. What it raises means
that the image could not be read."""
Extent = tuple[float, float, float, float]
"""left, top, right, bottom."""


@dataclass(frozen=True)
class Rapid:
    """RapidOCR as an `Engine`. Built by `rapid`."""

    network: Any

    def __call__(self, image: np.ndarray) -> list[Line]:
        # arrays are BGR to it
        found = self.network(np.ascontiguousarray(image[..., ::-1]))
        if found.boxes is None:
            return []
        if getattr(found, "txts", None) is None:
            raise RuntimeError(f"rapidocr found {len(found.boxes)} lines and read none")
        return [Line(text, float(sure), box) for text, sure, box in zip(found.txts, found.scores, found.boxes, strict=True)]


def rapid(threads: int | None = None) -> Rapid:
    """RapidOCR with the models of its package, PP-OCRv6 small in version 3.10, on the CPU; it has read once when this returns.

    Text that stands on its head is read as it stands: the classifier that turns it is off, as in flow_grpo.
    threads: of one image; None: as many as torch uses.

    Raises: ModuleNotFoundError without rapidocr and onnxruntime; NotLoaded where its models do not load.
    """
    for name in ("rapidocr", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ModuleNotFoundError(f'reward ocr needs the package {name}; pip install "flowrl-toolkit[rewards]"') from error
    count = threads or torch.get_num_threads()
    settings = {
        "Global.log_level": "error",
        "Global.use_cls": False,
        "Global.text_score": 0.0,
        "EngineConfig.onnxruntime.intra_op_num_threads": count,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    sample = Image.new("RGB", (96, 48), "white")
    ImageDraw.Draw(sample).text((20, 12), "text", "black", font_size=24)
    try:
        engine = Rapid(importlib.import_module("rapidocr").RapidOCR(params=settings))
        engine(np.asarray(sample))
    except Exception as error:
        raise NotLoaded(
            f"reward ocr could not load rapidocr's models: {error}; they come with the package: pip install -U rapidocr"
        ) from error
    return engine


def orders(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines row by row, and block by block (a block's lines are less than a line's height apart): without columns the same."""
    extents = [_extent(line.box) for line in lines]
    blocks = _blocks(extents)
    bounds = [_bound([extents[index] for index in block]) for block in blocks]
    by_block = [block[n] for at in _rows(bounds) for block in [blocks[at]] for n in _rows([extents[index] for index in block])]
    return [[lines[index] for index in order] for order in (_rows(extents), by_block)]


def _extent(box: Any) -> Extent:
    corners = np.asarray(box, dtype=np.float64).reshape(-1, 2)
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return left, top, right, bottom


def _bound(extents: Sequence[Extent]) -> Extent:
    left, top, right, bottom = zip(*extents, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _rows(extents: Sequence[Extent]) -> list[int]:
    """Indices from top to bottom, and in a row from left to right. One row: half of the lower one's height is beside the first."""
    rows: list[list[int]] = []
    for index in sorted(range(len(extents)), key=lambda i: extents[i][1] + extents[i][3]):
        _, top, _, bottom = extents[index]
        first = extents[rows[-1][0]] if rows else (0.0, 0.0, 0.0, 0.0)
        shared = min(bottom, first[3]) - max(top, first[1])
        if rows and shared > min(bottom - top, first[3] - first[1]) / 2:
            rows[-1].append(index)
        else:
            rows.append([index])
    return [index for row in rows for index in sorted(row, key=lambda i: extents[i][0])]


def _blocks(extents: Sequence[Extent]) -> list[list[int]]:
    blocks: list[list[int]] = []
    for index, extent in enumerate(extents):
        near = [block for block in blocks if any(_near(extent, extents[other]) for other in block)]
        blocks = [block for block in blocks if block not in near] + [[i for block in near for i in block] + [index]]
    return blocks


def _near(a: Extent, b: Extent) -> bool:
    height = min(a[3] - a[1], b[3] - b[1])
    return max(a[0], b[0]) - min(a[2], b[2]) < height and max(a[1], b[1]) - min(a[3], b[3]) < height
