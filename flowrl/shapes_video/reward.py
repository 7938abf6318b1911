"""The verifier as a reward of the trainer."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes_video.verify import Kind, moves, score
from flowrl.shapes_video.world import Row, asked

KINDS = ("soft", "strict")
Reward = Callable[[NDArray[np.uint8], Sequence[str], Sequence[Mapping[str, object]]], list[float]]


def row_of(prompt: str, metadata: Mapping[str, object]) -> Row | None:
    """What is asked for: metadata with "shape" and "motion", or else what the caption says; None where neither does."""
    return cast(Row, dict(metadata)) if {"shape", "motion"} <= set(metadata) else asked(prompt)


def shapes_video(kind: str = "soft") -> Reward:
    """f(videos uint8 [N, T, 32, 32, 3], prompts, metadata) -> N floats in [0, 1], NaN for a caption of another world.

    See `verify.score`. A video without an object is wrong, not unscorable: 0.

    Raises: ValueError for a kind that is neither "soft" nor "strict"; f raises it for images and for videos of another size.
    """
    if kind not in KINDS:
        raise ValueError(f"shapes_video:{kind} does not exist; there are shapes_video:soft and shapes_video:strict.")
    chosen = cast(Kind, kind)

    def reward(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
        return _where_known(lambda videos, rows: score(videos, rows, chosen), images, prompts, metadata)

    return reward


def motion(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
    """1 where the motion is what is asked for, whatever it is that moves, else 0; NaN for a caption of another world."""
    return _where_known(moves, images, prompts, metadata)


def _where_known(
    judge: Callable[[NDArray[np.uint8], Sequence[Row]], NDArray[np.float64]],
    images: NDArray[np.uint8],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, object]],
) -> list[float]:
    """The judge's numbers, NaN where nobody knows what is asked for."""
    rows = [row_of(prompt, it) for prompt, it in zip(prompts, metadata, strict=True)]
    known = [i for i, row in enumerate(rows) if row is not None]
    out = np.full(len(rows), np.nan)
    if known:
        out[known] = judge(images[known], [row for row in rows if row is not None])
    return [float(value) for value in out]
