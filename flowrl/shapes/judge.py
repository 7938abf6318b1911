"""A second opinion: a small network that reads pictures, trained on renderings and sharing no code with the verifier.

It says of every cell of the renderer's 4 x 4 grid which shape of which colour stands in it, nothing, or something else.
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
from flowrl.shapes.world import COLORS, SHAPES, Row

WIDTH = 48
GRID = 4
EMPTY = len(SHAPES) * len(COLORS)
OTHER = EMPTY + 1
BATCH = 128


class Reader(nn.Module):
    """Pictures [N, 3, 64, 64] in [-1, 1] to (logits of each cell's content [N, 26, 4, 4], features [N, WIDTH, 4, 4])."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside, stride in ((3, WIDTH // 2, 2), (WIDTH // 2, WIDTH, 2), (WIDTH, WIDTH, 2), (WIDTH, WIDTH, 2)):
            layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(4, outside), nn.SiLU()]
            if outside == WIDTH:
                layers += [nn.Conv2d(outside, outside, 3, 1, 1), nn.GroupNorm(4, outside), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(WIDTH, OTHER + 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(pixels)
        return self.head(features), features


@lru_cache(maxsize=1)
def _reader() -> Reader:
    model = Reader()
    weights = load_file(asset("shapes-judge") / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


@torch.no_grad()
def _read(images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(class of every cell [N, 4, 4], features [N, WIDTH, 4, 4]) of pictures [N, 64, 64, 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the judge reads uint8 pictures [N, 64, 64, 3], not {images.dtype} {list(images.shape)}.")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [_reader()(part) for part in pixels.split(BATCH)]
    return torch.cat([p[0] for p in parts]).argmax(1).numpy(), torch.cat([p[1] for p in parts]).numpy()


def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, 4 WIDTH] descriptors of pictures: the trunk's means over the four quarters, so places count as well as kinds."""
    grid = _read(images)[1]
    return grid.reshape(len(grid), WIDTH, 2, GRID // 2, 2, GRID // 2).mean((3, 5)).reshape(len(grid), -1)


def _stands(relation: str, it: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether the offset of cells (row, column) is longer along the relation's axis than across, and in its direction."""
    y, x = it - other
    along, across = (x, y) if relation in ("left of", "right of") else (y, x)
    return bool((-along if relation in ("left of", "above") else along) > abs(across))


def _right(cells: NDArray[np.int64], row: Row) -> bool:
    """Cells [4, 4] of one picture against a row: exact counts, colours, total and relation."""
    include = row["include"]
    if (cells != EMPTY).sum() != sum(e["count"] for e in include) or (cells == OTHER).any():
        return False
    shapes = np.where(cells < EMPTY, cells // len(COLORS), -1)
    for e in include:
        mine = shapes == SHAPES.index(e["class"])
        seen = mine & (cells % len(COLORS) == COLORS.index(e["color"])) if "color" in e else mine
        if seen.sum() != e["count"]:
            return False
        if "position" in e:
            other = shapes == SHAPES.index(include[cast(int, e["position"][1])]["class"])
            places = [np.argwhere(some) for some in (mine, other)]
            if any(len(some) != 1 for some in places) or not _stands(cast(str, e["position"][0]), places[0][0], places[1][0]):
                return False
    return True


def judge(images: NDArray[np.uint8], rows: Sequence[Row]) -> NDArray[np.float64]:
    """[N] strict verdicts, 0 or 1, of pictures [N, 64, 64, 3] against their rows.

    Raises: ValueError if the numbers differ or the pictures are of another kind.
    """
    if len(images) != len(rows):
        raise ValueError(f"judge: {len(images)} pictures and {len(rows)} rows; give one row a picture.")
    return np.array([float(_right(cells, row)) for cells, row in zip(_read(images)[0], rows, strict=True)])


def reward(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
    """`judge` in the form the trainer calls; prompts are not read."""
    return [float(value) for value in judge(images, [cast(Row, dict(it)) for it in metadata])]
