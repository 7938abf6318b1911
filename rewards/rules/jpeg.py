"""File size as a reward: needs no weights and no prompt, so it shows quickly whether a trainer works."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def jpeg_incompressibility(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
    """Size of each image as a JPEG file of quality 95, in kB of 1000 bytes: float64 [N].

    images: uint8 [N, H, W, 3]; of video [N, T, H, W, 3], the mean over frames. Chroma is halved (4:2:0, Pillow's default).
    At 512 x 512 a flat image has about 5 kB, a photograph 80 to 100, noise 300.

    Source: DDPO (2305.13301) appendix; kvablack/ddpo-pytorch@1958463 `ddpo_pytorch/rewards.py::jpeg_incompressibility`.
    """
    del prompts, metadata
    frames = images[:, None] if images.ndim == 4 else images
    return np.array([np.mean([_kilobytes(frame) for frame in video]) for video in frames], dtype=np.float64)


def jpeg_compressibility(images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
    """Minus the size of each image as a JPEG file, in kB: float64 [N], see `jpeg_incompressibility`.

    Source: DDPO (2305.13301) appendix; kvablack/ddpo-pytorch@1958463 `ddpo_pytorch/rewards.py::jpeg_compressibility`.
    Differs: flow_grpo divides by a further 500; DDPO does not.
    """
    return -jpeg_incompressibility(images, prompts, metadata)


def _kilobytes(frame: np.ndarray) -> float:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=95)
    return buffer.tell() / 1000
