"""Stage `judge`: trains the second opinion on degraded renderings, half of them decoded from their latents."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.shapes.loop import Job, run, warm_cosine
from flowrl.shapes.render import JITTER, PALETTE
from flowrl.shapes.world import COLORS, SHAPES
from flowrl.shapes_video.augment import degrade, free
from flowrl.shapes_video.autoencoder import decode, prescribed, to_tensor
from flowrl.shapes_video.judge import ELSE, EMPTY, OTHER, STANDS, Watcher
from flowrl.shapes_video.render import FRAMES, SIZE, Scene, paint, scene
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, captions

POOL = 4000
BATCH = 48
RATE = 2e-3
STEPS = 900
IGNORE = -100
SIZES = (9.5, 14.5)  # of the object in pixels
# Pixels a frame that are certainly a motion of the world; what lies between is not asked about.
CERTAIN = {"slowly": (0.55, 1.1), "fast": (1.5, 2.4)}
STANDING = 0.2
BENT = 1.5  # greatest distance in pixels of the true path from its chord that may count as uniform; half of it certainly does


def motion(centres: NDArray[np.float64]) -> int:
    """The class of a true path [9, 2], IGNORE where it is between two."""
    step = (centres[-1] - centres[0]) / (FRAMES - 1)
    bend = float(np.abs(centres - np.linspace(centres[0], centres[-1], FRAMES)).max())
    if bend > BENT:
        return ELSE
    long, short = float(np.abs(step).max()), float(np.abs(step).min())
    if long < STANDING:
        return STANDS if bend < BENT / 2 else IGNORE
    if short > 0.7 * long and long > 0.5:
        return ELSE
    speed = next((k for k, name in enumerate(SPEEDS) if CERTAIN[name][0] <= long <= CERTAIN[name][1]), None)
    if speed is None or short > 0.35 * long or bend > BENT / 2:
        return IGNORE
    direction = [int(np.sign(v)) if abs(v) == long else 0 for v in step]
    return len(SPEEDS) * list(DIRECTIONS.values()).index((direction[0], direction[1])) + speed


def _kind(it: Scene) -> int:
    """The content of a frame that shows this object whole."""
    distance = [float(np.abs(it.rgb - np.array(PALETTE[color])).max()) for color in COLORS]
    color = int(np.argmin(distance))
    return len(COLORS) * SHAPES.index(it.shape) + color if distance[color] <= 2 * JITTER else OTHER


def example(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """A video, each frame's content [9], and its motion's class; of a video without one object throughout, IGNORE."""
    it = free(rng) if rng.random() < 0.5 else scene(captions("train")[rng.integers(len(captions("train")))], rng)
    # No caption asks for a size: a judge that had seen one size only took a third of the videos of another for right.
    it = replace(it, size=float(rng.uniform(*SIZES)), background=float(rng.uniform(215, 255)))
    video = paint(it)
    whole = np.abs(it.centres - SIZE / 2).max(-1) <= SIZE / 2 - 5
    content = np.where(whole, _kind(it), IGNORE)
    moved = motion(it.centres) if whole.all() else IGNORE
    if rng.random() > 0.25:
        return degrade(video, rng), content, moved
    # From some frame on it is another object, two in one, half a colour, or none.
    first = int(rng.integers(FRAMES))
    match rng.integers(4):
        case 0:
            video[first:], content[first:] = int(it.background), EMPTY
        case 1:
            color = np.array(PALETTE[COLORS[rng.integers(len(COLORS))]])
            second = replace(it, shape=SHAPES[rng.integers(len(SHAPES))], rgb=color)
            video[first:] = paint(second)[first:]
            content[first:] = np.where(whole, _kind(second), IGNORE)[first:]
        case 2:
            centres = SIZE - it.centres
            apart = np.abs(centres - it.centres).max(-1) > 10
            other = paint(replace(it, shape=SHAPES[rng.integers(len(SHAPES))], centres=centres))
            video[first:] = np.minimum(video, other)[first:]
            content[first:] = np.where(apart, OTHER, IGNORE)[first:]
        case _:
            pale = (it.rgb + np.array(PALETTE[COLORS[rng.integers(len(COLORS))]]) + it.background) / 3
            video[first:] = paint(replace(it, rgb=pale))[first:]
            content[first:] = OTHER
    return degrade(video, rng), content, moved if first == 0 else IGNORE


def examples(model: AutoencoderKLWan, n: int, seed: int) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    """Videos [n, 9, 32, 32, 3], contents [n, 9] and motions [n]; even ones are decoded from their latents."""
    made = [example(np.random.default_rng((seed, 3, i))) for i in range(n)]
    videos = np.stack([one[0] for one in made])
    for i in range(0, n, 256):
        videos[i : i + 256 : 2] = decode(model, prescribed(np.ascontiguousarray(videos[i : i + 256 : 2])))
    return videos, torch.from_numpy(np.stack([one[1] for one in made])), torch.tensor([one[2] for one in made])


def train(folder: Path, assets: Path, model: AutoencoderKLWan, steps: int, seed: int) -> None:
    """Trains and writes `assets/shapes-video-judge`."""
    torch.manual_seed(seed + 1)
    net = Watcher()
    videos, contents, motions = examples(model, POOL, seed)

    def loss(step: int) -> Tensor:
        rows = torch.randint(POOL, (BATCH,), generator=torch.Generator().manual_seed(seed * 2**33 + 2**34 + step))
        content, moved, _ = net(to_tensor(videos[rows.numpy()]))
        seen = nn.functional.cross_entropy(content.flatten(0, 1), contents[rows].flatten(), ignore_index=IGNORE)
        return seen + nn.functional.cross_entropy(moved, motions[rows], ignore_index=IGNORE)

    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    run(Job(nn.ModuleDict({"judge": net}), [optimizer], loss, warm_cosine(steps), steps), folder, "judge")
    target = assets / "shapes-video-judge"
    target.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, target / "model.safetensors")
    classes = "frames: shape-major pairs of shape and colour, empty, something else; motions: direction-major pairs, still, else"
    (target / "config.json").write_text(json.dumps({"frames": FRAMES, "classes": classes}, indent=2) + "\n")
