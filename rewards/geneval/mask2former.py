"""Mask2Former of transformers: GenEval's own kind of detector, without mmdet."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.base import NotLoaded
from flowrl.rewards.place import Housed, Place

from .objects import Detections
from .words import labels

DEFAULT = "facebook/mask2former-swin-small-coco-instance"
MEAN, SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, RGB in 0 to 255."""
DIVISOR = 32


class Frame(NamedTuple):
    """Sizes (height, width) of a picture as it is, as the network sees it, and with the padding at its right and bottom."""

    whole: tuple[int, int]
    inner: tuple[int, int]
    padded: tuple[int, int]


@dataclass(frozen=True)
class Mask2Former:
    """See `mask2former`. labels: class number -> GenEval's class;  short, long: pictures are resized so that the shorter side is
    `short`, or the longer `long` if it would be longer;  floor: scores below are dropped."""

    network: Housed[nn.Module]
    labels: Mapping[int, str]
    name: str
    short: int = 800
    long: int = 1333
    floor: float = 0.05

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> list[Detections]:
        found: list[Detections] = []
        with self.network.ready() as model:
            for start in range(0, len(images), self.network.batch):
                pixels, frame = self._prepare(images[start : start + self.network.batch])
                told: Any = model(pixel_values=pixels.to(next(model.parameters()).dtype))
                for classes, masks in zip(told.class_queries_logits, told.masks_queries_logits, strict=True):
                    found.append(instances(classes.float(), masks.float(), frame, self.labels, self.floor))
        return found

    def _prepare(self, images: np.ndarray) -> tuple[Tensor, Frame]:
        height, width = images.shape[1:3]
        scale = min(self.short / min(height, width), self.long / max(height, width))
        inner = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
        padded = -(-inner[0] // DIVISOR) * DIVISOR, -(-inner[1] // DIVISOR) * DIVISOR
        x = torch.from_numpy(images).to(self.network.device).permute(0, 3, 1, 2).float()
        x = nn.functional.interpolate(x, inner, mode="bilinear", align_corners=False, antialias=True)
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(SPREAD).view(3, 1, 1)
        # zeros after normalising, as in training
        return nn.functional.pad(x, (0, padded[1] - inner[1], 0, padded[0] - inner[0])), Frame((height, width), inner, padded)


def mask2former(model: str | None = None, place: Place | None = None) -> Mask2Former:
    """transformers' Mask2Former for instances, with the weights of facebook/mask2former-swin-small-coco-instance, or those of
    another repository or folder of the same class with COCO's things.

    Raises: ModuleNotFoundError without transformers; NotLoaded if loading fails or weights are missing in the file; ValueError
    for a model that lacks a class.

    Source: Mask2Former (2112.01527); resizing and scores as mmdet's (open-mmlab/mmdetection `maskformer_fusion_head.py`).
    Differs: GenEval's own weights are mmdet's training of the same network on the same data, which transformers cannot read. Scores
    near a threshold differ, most of all at 0.9 in the counting task; by how much has not been measured here.
    The picture's size (800, at most 1333) is the one of mmdet's and detectron2's tests, not that of the repository's preprocessor.
    """
    where = model or DEFAULT
    transformers = _transformers()
    try:
        network, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(where, output_loading_info=True)
    except Exception as error:
        raise NotLoaded(
            f"reward geneval could not load the detector {where!r}: {error}; without network access give a folder with config.json "
            "and model.safetensors: geneval:soft@mask2former:FOLDER"
        ) from error
    wrong = sorted({str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]})
    if wrong:
        raise NotLoaded(
            f"reward geneval: {where!r} lacks {len(wrong)} weights of the network, such as {wrong[0]}; it is another kind of model"
        )
    known = labels({int(number): str(name) for number, name in network.config.id2label.items()}, f"detector {where!r}")
    return Mask2Former((place or Place()).house(network, batch=4), known, where.rstrip("/").rpartition("/")[2])


def instances(classes: Tensor, masks: Tensor, frame: Frame, known: Mapping[int, str], floor: float) -> Detections:
    """Detections of one picture. classes: logits [Q, C + 1], the last "nothing";  masks: logits [Q, h, w] of the padded picture.

    The Q highest class probabilities of all queries and classes; score = that times the mean of sigmoid(mask) inside the mask,
    which is where the logit, resized to the picture, is above 0; box = the mask's. A query may be objects of several classes.
    """
    count = classes.shape[1] - 1
    top, index = classes.softmax(-1)[:, :-1].flatten().topk(len(classes))
    names = [known.get(number) for number in (index % count).tolist()]
    rows = [i for i, score in enumerate(top.tolist()) if score > floor and names[i] is not None]
    if not rows:
        return _none(frame)
    logits = nn.functional.interpolate(masks[index[rows] // count][None], frame.padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, : frame.inner[0], : frame.inner[1]]
    logits = nn.functional.interpolate(logits, frame.whole, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    scores = top[rows] * (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    kept = [i for i, score in enumerate(scores.tolist()) if score > floor]
    if not kept:
        return _none(frame)
    shapes = inside[kept].cpu().numpy()
    boxes = np.array([_box(shape) for shape in shapes], dtype=np.float64)
    return Detections([str(names[rows[i]]) for i in kept], boxes, scores[kept].double().cpu().numpy(), shapes)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def _none(frame: Frame) -> Detections:
    return Detections([], np.zeros((0, 4)), np.zeros(0), np.zeros((0, *frame.whole), dtype=bool))


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError('reward geneval needs the package transformers; pip install "transformers"') from error
