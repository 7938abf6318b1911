"""A second opinion: a small network that watches videos, trained on renderings and sharing no code with the verifier.

It says of every frame which shape of which colour is in it, nothing, or something else; and of the video how that moves.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from flowrl.shapes.paths import asset
from flowrl.shapes.world import COLORS, SHAPES
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, STILL, Row

WIDTH = 32
FRAMES = 9
SIZE = 32
EMPTY = len(SHAPES) * len(COLORS)
OTHER = EMPTY + 1
# Motions are (direction, speed) pairs, direction-major, then standing still, then anything else.
STANDS = len(DIRECTIONS) * len(SPEEDS)
ELSE = STANDS + 1
DOUBTED = 1  # frames of a video that may be misread
BATCH = 64


class Watcher(nn.Module):
    """Videos [N, 3, 9, 32, 32] in [-1, 1] to logits of each frame's content [N, 9, 26], of the motion [N, 10], and features."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH)):
            layers += [nn.Conv2d(inside, outside, 3, 2, 1), nn.GroupNorm(4, outside), nn.SiLU()]
        layers += [nn.Flatten(), nn.Linear(2 * WIDTH * 16, 2 * WIDTH), nn.SiLU()]
        self.frame = nn.Sequential(*layers)
        self.content = nn.Linear(2 * WIDTH, OTHER + 1)
        self.film = nn.Sequential(nn.Linear(FRAMES * 2 * WIDTH, 2 * WIDTH), nn.SiLU())
        self.motion = nn.Linear(2 * WIDTH, ELSE + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, c, t, h, w = pixels.shape
        frames = self.frame(pixels.transpose(1, 2).reshape(n * t, c, h, w)).view(n, t, -1)
        film = self.film(frames.flatten(1))
        return self.content(frames), self.motion(film), torch.cat([frames.mean(1), film], -1)


@lru_cache(maxsize=1)
def _watcher() -> Watcher:
    model = Watcher()
    weights = load_file(asset("shapes-video-judge") / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


@torch.no_grad()
def _read(videos: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(content of every frame [N, 9], motion [N], features [N, 4 WIDTH]) of videos [N, 9, 32, 32, 3]."""
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[1:] != (FRAMES, SIZE, SIZE, 3):
        raise ValueError(
            f"the judge watches uint8 videos [N, {FRAMES}, {SIZE}, {SIZE}, 3], not {videos.dtype} {list(videos.shape)}."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    content, motion, features = zip(*(_watcher()(part) for part in pixels.split(BATCH)), strict=True)
    return torch.cat(content).argmax(-1).numpy(), torch.cat(motion).argmax(-1).numpy(), torch.cat(features).numpy()


def features(videos: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, 4 WIDTH] descriptors of videos: what is in them, and how it moves."""
    return _read(videos)[2]


def _motions(row: Row) -> set[int]:
    """The motions a row accepts."""
    if row["motion"] == STILL:
        return {STANDS}
    first = len(SPEEDS) * list(DIRECTIONS).index(row["motion"])
    return {first + k for k, speed in enumerate(SPEEDS) if row.get("speed", speed) == speed}


def _contents(row: Row) -> list[int]:
    """The contents of a frame that a row accepts; whichever it is, it must stay."""
    first = len(COLORS) * SHAPES.index(row["shape"])
    return [first + k for k, color in enumerate(COLORS) if row.get("color", color) == color]


def judge(videos: NDArray[np.uint8], rows: Sequence[Row]) -> NDArray[np.float64]:
    """[N] strict verdicts, 0 or 1, of videos [N, 9, 32, 32, 3] against their rows; DOUBTED frames may show something else.

    Raises: ValueError if the numbers differ or the videos are of another kind.
    """
    if len(videos) != len(rows):
        raise ValueError(f"judge: {len(videos)} videos and {len(rows)} rows; give one row a video.")
    content, motion, _ = _read(videos)
    seen = [max(int((frames == kind).sum()) for kind in _contents(row)) for frames, row in zip(content, rows, strict=True)]
    moved = [int(m) in _motions(row) for m, row in zip(motion, rows, strict=True)]
    return np.array([float(n >= FRAMES - DOUBTED and right) for n, right in zip(seen, moved, strict=True)])


def reward(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
    """`judge` in the form the trainer calls; prompts are not read."""
    return [float(value) for value in judge(images, [cast(Row, dict(it)) for it in metadata])]
