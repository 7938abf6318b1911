"""Pictures from files, as rewards see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read(path: Path) -> np.ndarray:
    """A picture file as uint8 RGB [H, W, 3].

    Turned as its EXIF orientation says; 16-bit grey scaled to 8 bits; transparency laid over white.

    Raises: OSError, PIL.UnidentifiedImageError for what is no picture.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16") or image.mode == "I":
            grey = np.asarray(image).astype(np.float64) / 257
            return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        if image.has_transparency_data:
            whole = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", whole.size, (255, 255, 255, 255)), whole)
        return np.asarray(image.convert("RGB"))
