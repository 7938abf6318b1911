"""Picture files as rewards see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def read(path: str | Path) -> np.ndarray:
    """A picture file as uint8 [H, W, 3], upright (EXIF orientation), its first frame if it has several.

    What is transparent lies over white. 16-bit grey is divided by 257; of 16-bit colour Pillow keeps the high byte, at most one
    level away. Palettes, CMYK and the like are converted; colour profiles are ignored.

    Raises: FileNotFoundError where there is no file; ValueError for a file that is no picture, or whose numbers have no white.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as image:
            return np.asarray(rgb(ImageOps.exif_transpose(image), path))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """A picture or a frame in 8 bits, over white. Raises: ValueError where its numbers have no white."""
    if image.mode == "F" or (image.mode == "I" and not _within(image)):
        raise ValueError(f"{path} has {image.mode!r} pixels, whose white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        # Pillow premultiplies nothing here: straight alpha over white, rounded once
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return image.convert("RGB")


def _within(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return float(str(low)) >= 0 and float(str(high)) <= 65535


def _grey(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
