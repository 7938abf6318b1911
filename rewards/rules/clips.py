"""Videos, for rewards that compare frames."""

from __future__ import annotations

import numpy as np


def clips(images: np.ndarray, name: str) -> np.ndarray:
    """uint8 [N, T, H, W, 3], T >= 2.

    Raises: ValueError for images, and for videos of one frame.
    """
    shape = list(images.shape)
    if images.ndim != 5:
        raise ValueError(f"reward {name} compares the frames of a video, but was given images {shape}; give [N, T, H, W, 3]")
    if shape[1] < 2:
        raise ValueError(f"reward {name} compares neighbouring frames, but the videos {shape} have {shape[1]}; give at least 2")
    return images
