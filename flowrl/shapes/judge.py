"""A second opinion: a small network that reads pictures, trained on renderings and sharing no code with the verifier.

It maps a picture to densities over a 16 x 16 grid, one map for every (shape, colour) and one for everything else.
A map's sum counts its objects, a map's centre of mass is where they are.
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

WIDTH = 40
GRID = 16
PAIRS = len(SHAPES) * len(COLORS)
SURE = 0.4  # a count is read off a sum that is this close to it
NEAR = 4.0  # pixels by which a relation must exceed the diagonal's share
BATCH = 128


class Reader(nn.Module):
    """Pictures [N, 3, 64, 64] in [-1, 1] to (logits of densities [N, PAIRS + 1, 16, 16], features [N, WIDTH, 16, 16])."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside, stride in ((3, WIDTH // 2, 2), (WIDTH // 2, WIDTH, 2), *((WIDTH, WIDTH, 1),) * 4):
            layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(4, outside), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(WIDTH, PAIRS + 1, 1)
        # Untrained maps are nearly empty.
        nn.init.constant_(self.head.bias, -5.0)  # pyright: ignore[reportArgumentType]

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
def _read(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(densities, features) of pictures [N, 64, 64, 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the judge reads uint8 pictures [N, 64, 64, 3], not {images.dtype} {list(images.shape)}.")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [_reader()(part) for part in pixels.split(BATCH)]
    return torch.cat([p[0] for p in parts]).sigmoid().numpy(), torch.cat([p[1] for p in parts]).numpy()


def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, 4 WIDTH] descriptors of pictures: the trunk's means over the four quarters, so places count as well as kinds."""
    grid = _read(images)[1]
    return grid.reshape(len(grid), WIDTH, 2, GRID // 2, 2, GRID // 2).mean((3, 5)).reshape(len(grid), -1)


def _place(density: NDArray[np.float32]) -> NDArray[np.float64]:
    """Centre of mass (x, y) in pixels of a density [16, 16]."""
    at = (np.arange(GRID) + 0.5) * 64 / GRID
    total = max(float(density.sum()), 1e-6)
    return np.array([(density.sum(0) * at).sum() / total, (density.sum(1) * at).sum() / total])


def _stands(relation: str, it: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether the offset's part along the relation's axis, less NEAR, is more than half the offset's length."""
    x, y = it - other
    along = {"left of": -x, "right of": x, "above": -y, "below": y}[relation]
    return bool(along - NEAR > 0.5 * np.hypot(x, y))


def _right(maps: NDArray[np.float32], row: Row) -> bool:
    """maps [PAIRS + 1, 16, 16] of one picture against a row: exact counts, colours, total and relation."""
    sums = maps.sum((1, 2))
    counts = np.rint(sums).astype(int)
    if np.abs(sums - counts).max() > SURE:
        return False
    table = counts[:PAIRS].reshape(len(SHAPES), len(COLORS))
    include = row["include"]
    if counts.sum() != sum(e["count"] for e in include):
        return False
    by_shape = maps[:PAIRS].reshape(len(SHAPES), len(COLORS), GRID, GRID).sum(1)
    for e in include:
        s = SHAPES.index(e["class"])
        seen = table[s, COLORS.index(e["color"])] if "color" in e else table[s].sum()
        if seen != e["count"]:
            return False
        if "position" in e:
            other = SHAPES.index(include[cast(int, e["position"][1])]["class"])
            if not _stands(cast(str, e["position"][0]), _place(by_shape[s]), _place(by_shape[other])):
                return False
    return True


def judge(images: NDArray[np.uint8], rows: Sequence[Row]) -> NDArray[np.float64]:
    """[N] strict verdicts, 0 or 1, of pictures [N, 64, 64, 3] against their rows.

    Raises: ValueError if the numbers differ or the pictures are of another kind.
    """
    if len(images) != len(rows):
        raise ValueError(f"judge: {len(images)} pictures and {len(rows)} rows; give one row a picture.")
    maps = _read(images)[0]
    return np.array([float(_right(some, row)) for some, row in zip(maps, rows, strict=True)])


def reward(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
    """`judge` in the form the trainer calls; prompts are not read."""
    return [float(value) for value in judge(images, [cast(Row, dict(it)) for it in metadata])]
