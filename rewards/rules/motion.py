"""How much moves in a video, and whether it is motion."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from flowrl.rewards.forms import Detailed, Metadata

from .clips import clips

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Frames a, b uint8 [H, W, 3] -> where each pixel of a went in b, in pixels (x, y): [H, W, 2]."""
FAST = 0.05
"""Share of an image whose speed stands for it: VBench's fastest 5 %."""
SHIFT = 6 / 256
"""Pixels between frames from which a pair moves, of the shorter side."""
RATE = 8
"""Frames a second that are looked at, as VBench does."""
WRONG = 24.0
"""Grey levels by which a pixel may differ from where it went."""


class Pair(NamedTuple):
    """Two neighbouring frames. raw: speed in pixels of the fastest 5 %;  true: the same of what was verified, beside the camera's
    motion;  consistent: share of the pixels that were verified."""

    raw: float
    true: float
    consistent: float


@dataclass(frozen=True)
class Motion:
    """f(videos uint8 [N, T, H, W, 3], prompts, metadata) -> N numbers with parts. Built by `motion`."""

    flow: Flow
    guarded: bool

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        del prompts
        told = [self._one(video, said) for video, said in zip(clips(images, "motion"), metadata, strict=True)]
        columns = {name: [row[name] for row in told] for name in ("motion", "dynamic", "pixels", "consistent")}
        return Detailed(columns["motion" if self.guarded else "dynamic"], columns)

    def _one(self, video: np.ndarray, said: Metadata) -> dict[str, float]:
        fps = _fps(said)
        # of a short video the ends remain
        frames = video[:: min(max(1, round(fps / RATE)), len(video) - 1)]
        pairs = [pair(self.flow, a, b) for a, b in pairwise(frames)]
        threshold = SHIFT * min(video.shape[1:3]) * max(1, RATE / fps)
        return {
            "motion": float(np.mean([one.consistent * min(one.true / threshold, 1) for one in pairs])),
            "dynamic": float(dynamic([one.raw for one in pairs], threshold)),
            "pixels": float(np.mean([one.raw for one in pairs])),
            "consistent": float(np.mean([one.consistent for one in pairs])),
        }


def motion(variant: str | None = None, flow: Flow | None = None) -> Motion:
    """Speed of what moves in a video, in [0, 1]: mean over neighbouring frames of c min(m / (6 min(H, W) / 256), 1).

    m: mean speed of the fastest 5 % of the pixels, in pixels a frame, where only motion counts that was verified, beside the
    camera's (`pair`);  c: share of all pixels that were verified. So flashes, noise, cuts and a panned still have next to nothing,
    and more speed than the threshold pays no more.
    Frames are 1/8 s apart: each (fps / 8)th is looked at where metadata has "fps", else every frame. Below 8 fps the threshold is
    higher by 8 / fps.
    Parts: motion; dynamic, VBench's 0 or 1 (`dynamic`), unguarded; pixels, the unguarded m; consistent, the mean c.

    variant: "vbench", whose score is `dynamic`;  flow: an estimator, `dis()` if none is given.

    Raises: ValueError for another variant, for images, videos of one frame, frames below 16 pixels, and an fps that is no rate.

    Source: VBench (2311.17982), dynamic degree; Vchitect/VBench@11abda9 `vbench/dynamic_degree.py` for m, rate and threshold.
    Differs: VBench estimates flow by RAFT; the guard and the smooth form are ours.
    """
    if variant not in (None, "vbench"):
        raise ValueError(f"reward motion has no variant {variant!r}; write motion or motion:vbench")
    return Motion(flow or dis(), variant is None)


def dynamic(speeds: Sequence[float], threshold: float) -> bool:
    """Whether round(4 T / 16) of the T - 1 pairs of T frames, and one at least, are faster than the threshold.

    Source: Vchitect/VBench@11abda9 `vbench/dynamic_degree.py::check_move`.
    Differs: there a video of two frames is dynamic even if they are equal, as none of its pairs need be fast.
    """
    return sum(speed > threshold for speed in speeds) >= max(1, round(4 * (len(speeds) + 1) / 16))


def dis() -> Flow:
    """OpenCV's dense inverse search of grey frames, medium preset: 15 ms a pair of 256 x 256.

    Raises: ModuleNotFoundError without OpenCV.
    """
    cv2 = _cv2()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if min(a.shape[:2]) < 16:
            raise ValueError(f"reward motion: frames of {a.shape[1]} x {a.shape[0]} pixels are too small; give at least 16 x 16")
        return search.calc(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), None)

    return flow


def pair(flow: Flow, a: np.ndarray, b: np.ndarray) -> Pair:
    """What moved from frame a to b.

    A pixel is verified if it comes back, |f + f'|^2 < 0.01 (|f|^2 + |f'|^2) + 0.5 with f' the flow back where f leads, and if it
    looks there as it did, within 24 grey levels. What is not verified has speed 0. The camera's motion, the pan, zoom and roll of
    most verified pixels, is taken off.

    Source: Sundaram, Brox, Keutzer, Dense point trajectories by GPU-accelerated large displacement optical flow, 2010, for the way
    back and its constants.
    """
    forth, back = flow(a, b).astype(np.float32), flow(b, a).astype(np.float32)
    grid = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float32) for size in a.shape[1::-1])), -1)
    led = grid + forth
    returned = _sampled(back, led)
    gap = _squared(forth + returned)
    close = gap < 0.01 * (_squared(forth) + _squared(returned)) + 0.5
    alike = np.abs(_sampled(b.astype(np.float32), led) - a).mean(-1) < WRONG
    inside = ((led >= 0) & (led <= np.array(a.shape[1::-1]) - 1)).all(-1)
    verified = close & alike & inside
    own = np.where(verified, np.sqrt(_squared(forth - _camera(forth, grid, verified))), 0)
    return Pair(_fast(np.sqrt(_squared(forth))), _fast(own), float(verified.mean()))


def _camera(flow: np.ndarray, grid: np.ndarray, verified: np.ndarray) -> np.ndarray:
    """The pan, zoom and roll most verified pixels share to half a pixel, [H, W, 2]; none where too few are verified."""
    every = max(1, min(flow.shape[:2]) // 32)
    chosen = verified[::every, ::every]
    starts, ends = grid[::every, ::every][chosen], (grid + flow)[::every, ::every][chosen]
    matrix = _cv2().estimateAffinePartial2D(starts, ends, ransacReprojThreshold=0.5)[0] if len(starts) >= 16 else None
    if matrix is None:
        return np.zeros_like(flow)
    return grid @ matrix[:, :2].T.astype(np.float32) + matrix[:, 2].astype(np.float32) - grid


def _sampled(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    """field at places (x, y), bilinear; outside, its border."""
    cv2 = _cv2()
    return cv2.remap(field, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _squared(field: np.ndarray) -> np.ndarray:
    return (field**2).sum(-1)


def _fast(speed: np.ndarray) -> float:
    """Mean of the fastest pixels."""
    count = max(1, int(FAST * speed.size))
    return float(np.partition(speed.ravel(), -count)[-count:].mean())


def _fps(said: Metadata) -> float:
    fps = said.get("fps", RATE)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise ValueError(f"metadata 'fps' is {fps!r}; give the frames a second of the video, above 0")
    return fps


def _cv2() -> Any:
    try:
        return importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise ModuleNotFoundError('reward motion needs the package cv2; pip install "opencv-python-headless"') from error
