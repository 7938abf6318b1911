"""How much a video that should stand still flickers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from flowrl.rewards.forms import Metadata

from .clips import clips


def flicker(images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> np.ndarray:
    """Mean over neighbouring frames of (255 - their mean absolute difference) / 255: float64 [N] in [0, 1].

    images: uint8 [N, T, H, W, 3], T >= 2. 1: no pixel changes. It cannot tell flicker from motion, so VBench asks it of prompts for
    still scenes, and of videos whose motion is small; elsewhere it rewards a frozen picture.

    Raises: ValueError for images, and for videos of one frame.

    Source: VBench (2311.17982), temporal flickering; Vchitect/VBench@00c4b29 `vbench/temporal_flickering.py`.
    """
    del prompts, metadata
    videos = clips(images, "flicker")
    return np.array([np.mean([_likeness(a, b) for a, b in pairwise(video)]) for video in videos])


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    # uint8 would wrap
    return 1 - float(np.abs(a.astype(np.int16) - b).mean()) / 255
