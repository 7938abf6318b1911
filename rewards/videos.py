"""Videos in files as rewards see them, and which of their frames are looked at."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = frozenset({".mp4", ".webm", ".mov", ".mkv", ".avi"})
"""Files that OpenCV reads; .webp, .gif and .png may move as well."""
ANIMATED = frozenset({"WEBP", "GIF", "PNG"})
RATE = 8.0
"""Frames a second where nobody says."""
MOST = 2**30
"""Pixels of all frames: 3 GB."""
NOTE = re.compile(r"(\d+) frames at (\d+(?:\.\d+)?(?:e[+-]?\d+)?) a second")
DESCRIPTION = 0x010E


@dataclass(frozen=True)
class Seen:
    """What a file shows. pixels: uint8 [H, W, 3], of what moves [T, H, W, 3];  fps: its frames a second, None where it is still."""

    pixels: np.ndarray
    fps: float | None = None


def moves(path: str | Path) -> bool:
    """Whether a file holds a video, by its name or its header; a file that cannot be read holds none."""
    from PIL import Image, UnidentifiedImageError

    if Path(path).suffix.lower() in SUFFIXES:
        return True
    try:
        with Image.open(path) as image:
            return _moving(image)
    except (UnidentifiedImageError, OSError, SyntaxError):
        return False


def read(path: str | Path) -> Seen:
    """A picture, an animated .webp, .gif or .png, or a film (SUFFIXES). Stills are as in `pictures.read`.

    Of frames that last for different times the rate is their mean one; of what `flowrl` wrote it is exact, and frames that are
    equal to the one before, which files keep once, are there again.

    Raises: FileNotFoundError where there is no file; ModuleNotFoundError for a film without OpenCV; ValueError for what cannot be
    read, or has more than 2^30 pixels.
    """
    # rewards that only choose frames need no Pillow
    from PIL import Image, UnidentifiedImageError

    from . import pictures

    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return _film(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as image:
            if _moving(image):
                return _animated(image, path, _noted(image))
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return Seen(pictures.read(path))


def chosen(total: int, count: int) -> np.ndarray:
    """Numbers of `count` of `total` frames, evenly spread, the first and the last among them; one: the middle; all if there are no
    more.

    >>> chosen(33, 5).tolist(), chosen(33, 1).tolist(), chosen(3, 8).tolist()
    ([0, 8, 16, 24, 32], [16], [0, 1, 2])
    """
    if total <= count:
        return np.arange(total)
    return np.array([total // 2]) if count == 1 else np.linspace(0, total - 1, count).round().astype(np.int64)


def starts(count: int, fps: float) -> np.ndarray:
    """When frames begin and the last ends, in whole milliseconds: [count + 1]."""
    return np.round(np.arange(count + 1) * 1000 / fps).astype(np.int64)


def note(count: int, fps: float) -> str:
    """What a file written by flowrl says of itself: its EXIF description."""
    return f"{count} frames at {float(fps)!r} a second"


def _noted(image: Any) -> re.Match[str] | None:
    return NOTE.fullmatch(str(image.getexif().get(DESCRIPTION, "")))


def _moving(image: Any) -> bool:
    return image.format in ANIMATED and (getattr(image, "n_frames", 1) > 1 or _noted(image) is not None)


def _animated(image: Any, path: Path, told: re.Match[str] | None) -> Seen:
    from . import pictures

    # of a PNG the first picture may be for those who show no animation
    shown = range(int(bool(getattr(image, "default_image", False))), getattr(image, "n_frames", 1))
    count = int(told[1]) if told else len(shown)
    _affordable(path, max(count, len(shown)), image.height, image.width)
    frames, lasts = list[np.ndarray](), list[float]()
    for i in shown:
        image.seek(i)
        image.load()
        frames.append(np.asarray(pictures.rgb(image, path)))
        # browsers take 10 ms and less for 100
        ms = float(image.info.get("duration") or 0)
        lasts.append(ms if ms > 10 or told else 100.0)
    if told is None:
        return Seen(np.stack(frames), 1000 * len(frames) / sum(lasts))
    fps = float(told[2])
    if not count or not 0 < fps < 1e6:
        raise ValueError(f"{path} says that it has {told[0]}, which cannot be; write it again")
    begun = np.cumsum([0.0, *lasts[:-1]])
    at = np.searchsorted(begun, starts(count, fps)[:-1] + 0.5) - 1
    return Seen(np.stack(frames)[np.clip(at, 0, len(frames) - 1)], fps)


def _film(path: Path) -> Seen:
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs the package cv2 to be read; pip install opencv-python-headless, or give an animated .webp or .gif"
        ) from error
    film, frames = cv2.VideoCapture(str(path)), list[np.ndarray]()
    try:
        rate = float(film.get(cv2.CAP_PROP_FPS))
        while (got := film.read())[0]:
            frames.append(got[1][..., ::-1])
            _affordable(path, len(frames), *got[1].shape[:2])
    finally:
        film.release()
    if not frames:
        raise ValueError(f"{path} cannot be read as a video; write it as .mp4 (H.264) or as an animated .webp")
    return Seen(np.stack(frames), rate if 0 < rate < 1e6 else None)


def _affordable(path: Path, count: int, height: int, width: int) -> None:
    if count * height * width > MOST:
        raise ValueError(f"{path} has {count} frames of {width} x {height}, more than {MOST} pixels; cut it or make it smaller")
