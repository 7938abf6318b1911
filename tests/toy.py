"""A 2-D policy that runs the real loop in a second: the exact velocity of Gaussian data plus a small network that is trained.

Pixels are the latents themselves (one pixel, red = x, green = y), so a reward reads them back; prompts are directions to go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.collect import Collected, collect
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.models.noise_head import NoiseHead
from flowrl.rewards import differentiable, make
from flowrl.samplers import Plan, chains, comb, laws, paths, schedules, tree
from flowrl.samplers.noise import Source
from flowrl.sizes import Block, Sizes, cut

PROMPTS = ("east", "north", "west", "south")
METADATA: tuple[dict[str, float], ...] = tuple({"angle": k * math.pi / 2} for k in range(4))
TEXTS = Prompts(PROMPTS, METADATA, (None,) * 4)
SIZES = Sizes(slice=5, batch=7)
WORLD = World()
SCALE = 30.0
STEPS = 6


@dataclass(frozen=True)
class Directions:
    """One angle a prompt, as (cos, sin)."""

    angle: Tensor

    def take(self, slots: Tensor) -> Directions:
        return Directions(self.angle[slots])

    def to(self, device: str) -> Directions:
        return Directions(self.angle.to(device))


class Policy:
    """u = the exact velocity for data N(0, 1) + a network's correction, zero at the start."""

    path = paths.flow
    adapted = False

    def __init__(
        self, dtype: torch.dtype = torch.float32, width: int = 24, seed: int = 0, excited: bool = False, noisy: bool = False
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network: nn.Module = nn.Sequential(
                nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
            ).to(dtype)
            if not excited:
                nn.init.zeros_(self.network[4].weight)
                nn.init.zeros_(self.network[4].bias)
        self.dtype = dtype
        self.calls = 0
        self.head = NoiseHead(2, width=8, seed=seed) if noisy else None

    def encode(self, prompts: Sequence[str], guidance: float | None = None, images: object = None) -> Directions:
        angles = torch.tensor([METADATA[PROMPTS.index(p)]["angle"] for p in prompts])
        return Directions(torch.stack([angles.cos(), angles.sin()], 1))

    def predict(self, x: Tensor, sigma: Tensor, cond: Directions) -> Tensor | tuple[Tensor, Tensor]:
        self.calls += 1
        level = sigma[:, None]
        exact = x * (2 * level - 1) / ((1 - level) ** 2 + level**2)
        u = exact + self.network(torch.cat([x, level, cond.angle], 1).to(self.dtype)).float()
        return u if self.head is None else (u, self.head(x, u, sigma))

    def sigmas(self, steps: int) -> Tensor:
        return schedules.linear_shift(steps)

    def latent_shape(self) -> tuple[int, ...]:
        return (2,)

    def decode(self, x0: Tensor, cond: object = None) -> Tensor:
        return (self.images(x0) * 255).round().to(torch.uint8)

    def images(self, x0: Tensor, cond: object = None) -> Tensor:
        pixels = ((128 + SCALE * x0) / 255).clamp(0, 1)
        return torch.cat([pixels, torch.zeros_like(pixels[:, :1])], 1)[:, None, None]

    def decode_rows(self) -> int:
        return 12

    def lane(self, sigma: float) -> int:
        return 0

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        head = [] if self.head is None else list(self.head.named_parameters())
        return [*self.network.named_parameters(), *head]

    def rows_that_fit(self) -> int:
        return 32

    @contextmanager
    def reference(self) -> Iterator[None]:
        raise AssertionError("the toy has no adapter to switch off")
        yield


def direction(images: np.ndarray, prompts: list[str], metadata: list[dict[str, float]]) -> list[float]:
    """How far an image lies in its prompt's direction."""
    at = (images[:, 0, 0, :2].astype(float) - 128) / SCALE
    return [x * math.cos(m["angle"]) + y * math.sin(m["angle"]) for (x, y), m in zip(at, metadata, strict=True)]


def slope(images: Tensor, prompts: list[str], metadata: list[dict[str, float]]) -> Tensor:
    """`direction`, of float images and with a graph."""
    at = (images[:, 0, 0, :2] * 255 - 128) / SCALE
    angle = torch.tensor([m["angle"] for m in metadata], dtype=at.dtype)
    return (at * torch.stack([angle.cos(), angle.sin()], 1)).sum(1)


REWARD = make(direction, "toy")


SHRINK = 0.125


def success(images: np.ndarray, prompts: list[str], metadata: list[dict[str, float]]) -> list[float]:
    """`direction`, brought into [0, 1]."""
    return [min(max(0.5 + SHRINK * d, 0.0), 1.0) for d in direction(images, prompts, metadata)]


SUCCESS = make(success, "toy")


def nearness(images: np.ndarray, prompts: list[str], metadata: list[dict[str, float]]) -> list[float]:
    """How close an image lies to the origin: what the other reward holds against going far."""
    return (-(((images[:, 0, 0, :2].astype(float) - 128) / SCALE) ** 2).sum(1)).tolist()


OTHER = make(nearness, "other")


def features(images: np.ndarray) -> np.ndarray:
    """Where an image lies, away from the origin so that directions differ."""
    return images[:, 0, 0, :2].astype(np.float32) + 1


SMOOTH = make(differentiable(slope), "toy")


def plan(kind: Literal["chains", "tree", "comb", "ode"], group: int = 3) -> Plan:
    """The smallest plan of a kind that has its structure."""
    grid = schedules.linear_shift(STEPS)
    if kind == "chains":
        return chains(grid, laws.flow_sde(0.7), range(STEPS - 1), group)
    if kind == "ode":
        return chains(grid, laws.ode(), (), group)
    if kind == "tree":
        return tree(grid, laws.dance_sde(0.5), range(STEPS), {0: group, 2: 2})
    return comb(grid, laws.flow_sde(0.7), [0, 2, 3], group, strides=(1, 2))


def collected(
    policy: Policy, of: Plan, seed: int = 0, iteration: int = 0, sizes: Sizes = SIZES, updates: int = 1
) -> tuple[Collected, list[Block]]:
    """One iteration's experience of all prompts, and how it was cut."""
    blocks = cut(of, len(PROMPTS), sizes, updates, 1)
    slots = torch.arange(len(PROMPTS))
    return collect(
        policy,
        of,
        TEXTS,
        slots,
        {"toy": REWARD},
        {"toy": 1.0},
        {"toy": REWARD.init()},
        blocks,
        sizes,
        Source(seed, iteration),
        WORLD,
    ), blocks


@contextmanager
def seen(policy: Policy) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Inputs of every call while inside: (x, sigma, directions)."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    predict = policy.predict

    def watching(x: Tensor, sigma: Tensor, cond: Directions) -> Tensor:
        calls.append((x.clone(), sigma.clone(), cond.angle.clone()))
        return predict(x, sigma, cond)

    policy.predict = watching  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield calls
    finally:
        del policy.predict
