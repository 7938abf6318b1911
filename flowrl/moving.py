"""Videos as files: animated pictures, films, and strips of their frames."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowrl.rewards import videos

EXACT = 2**22
"""Pixels of all frames up to which a saved video is lossless: 8 MB at worst."""
QUALITY = 90
PAPER = (250, 249, 246)


def webp(frames: np.ndarray, fps: float, quality: int | None = None) -> bytes:
    """uint8 [T, H, W, 3] as an animated WebP that repeats. quality: 0 to 100, None lossless.

    It says its frames and rate itself, so `videos.read` gives exactly these frames back where it is lossless.
    """
    from PIL import Image

    exif, buffer = Image.Exif(), io.BytesIO()
    exif[videos.DESCRIPTION] = videos.note(len(frames), fps)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    lasts = np.diff(videos.starts(len(frames), fps)).tolist()
    # at quality 0 lossless means the least effort: a fifth more bytes in a third of the time
    how: dict[str, Any] = {"lossless": True, "quality": 0} if quality is None else {"quality": quality}
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=lasts, loop=0, method=0, exif=exif, **how)
    return buffer.getvalue()


def save(stem: Path, pixels: np.ndarray, fps: float | None) -> Path:
    """An image [H, W, 3] as STEM.png, a video [T, H, W, 3] as an animated STEM.webp, lossless up to EXACT pixels; the file."""
    from PIL import Image

    if pixels.ndim == 3:
        path = stem.with_name(f"{stem.name}.png")
        Image.fromarray(pixels).save(path)
        return path
    path = stem.with_name(f"{stem.name}.webp")
    path.write_bytes(webp(pixels, fps or videos.RATE, None if pixels[..., 0].size <= EXACT else QUALITY))
    return path


class Step(NamedTuple):
    """How a video is written again: its longer side, the most frames of it, the quality."""

    side: int
    frames: int
    quality: int


STEPS = (Step(360, 32, 75), Step(320, 24, 65), Step(256, 16, 55), Step(192, 12, 45), Step(128, 8, 40))


def light(path: Path, most: int, steps: Sequence[Step] = STEPS) -> tuple[bytes, np.ndarray]:
    """A video file as an animated WebP of about `most` bytes, and its frames. What is left of the frames lasts as long as all did.

    steps: how it is written where it is too heavy or no WebP; the first that is light enough, else the last.

    Raises: OSError, ValueError if it is no video.
    """
    seen = videos.read(path)
    if seen.pixels.ndim == 3:
        raise ValueError(f"{path} does not move; give an animated .webp or .gif, or a film")
    frames, fps, data = seen.pixels, seen.fps or videos.RATE, path.read_bytes()
    if len(data) > most or path.suffix.lower() != ".webp":
        for step in steps:
            at = videos.chosen(len(seen.pixels), step.frames)
            frames = np.stack([smaller(frame, step.side, step.side) for frame in seen.pixels[at]])
            data = webp(frames, fps * len(at) / len(seen.pixels), step.quality)
            if len(data) <= most:
                break
    return data, frames


def encoder() -> str | None:
    """The package that films are written with: imageio_ffmpeg (H.264, plays everywhere) or cv2 (MPEG-4 part 2); None: neither."""
    return next((name for name in ("imageio_ffmpeg", "cv2") if importlib.util.find_spec(name)), None)


def described() -> str:
    """What `film` writes here, in words."""
    return {
        "imageio_ffmpeg": ".mp4 (H.264, by imageio-ffmpeg)",
        "cv2": ".mp4 (MPEG-4 by OpenCV, which browsers do not play; pip install imageio-ffmpeg for H.264)",
        None: "animated .webp (pip install imageio-ffmpeg for .mp4)",
    }[encoder()]


def film(stem: Path, frames: np.ndarray, fps: float) -> Path:
    """A video [T, H, W, 3] as STEM.mp4 where there is an `encoder`, else as an animated STEM.webp; the file.

    H.264 halves the colour and wants even sides: an odd last row or column is repeated.

    Raises: OSError where it cannot be written.
    """
    name = encoder()
    if name is None:
        return save(stem, frames, fps)
    path = stem.with_name(f"{stem.name}.mp4")
    height, width = (side + side % 2 for side in frames.shape[1:3])
    even = np.pad(frames, ((0, 0), (0, height - frames.shape[1]), (0, width - frames.shape[2]), (0, 0)), mode="edge")
    package: Any = importlib.import_module(name)
    if name == "cv2":
        sink = package.VideoWriter(str(path), package.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
        if not sink.isOpened():
            raise OSError(f"{path} cannot be written by OpenCV; choose another folder, or pip install imageio-ffmpeg")
        for frame in even:
            sink.write(np.ascontiguousarray(frame[..., ::-1]))
        sink.release()
        return path
    sink = package.write_frames(str(path), (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=2)
    sink.send(None)
    for frame in even:
        sink.send(np.ascontiguousarray(frame))
    sink.close()
    return path


def strip(frames: np.ndarray, count: int = 4, height: int = 192, gap: int = 2) -> np.ndarray:
    """`count` frames of uint8 [T, H, W, 3] side by side, from the first to the last, no higher than `height`: [H', W', 3].

    Shorter videos show all their frames.
    """
    some = [smaller(frame, height, frame.shape[1]) for frame in frames[videos.chosen(len(frames), count)]]
    between = np.broadcast_to(np.array(PAPER, dtype=np.uint8), (len(some[0]), gap, 3))
    return np.concatenate([part for frame in some for part in (frame, between)][:-1], 1)


def four(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """Four frames of uint8 [T, H, W, 3] in two rows, from the first at the top left to the last: [2 H + gap, 2 W + gap, 3]."""
    height, width = frames.shape[1:3]
    out = np.broadcast_to(np.array(PAPER, dtype=np.uint8), (2 * height + gap, 2 * width + gap, 3)).copy()
    at = np.linspace(0, len(frames) - 1, 4).round().astype(int)
    for place, frame in enumerate(frames[at]):
        top, left = (height + gap) * (place // 2), (width + gap) * (place % 2)
        out[top : top + height, left : left + width] = frame
    return out


def smaller(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] of the same shape, within height x width."""
    from PIL import Image

    if frame.shape[0] <= height and frame.shape[1] <= width:
        return frame
    with Image.fromarray(frame) as picture:
        picture.thumbnail((width, height))
        return np.asarray(picture)
