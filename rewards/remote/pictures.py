"""Pictures as they travel: PNG in base64, refused by its header before anything is unpacked."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# length and type of a PNG's first chunk, width, height, depth 8, colour RGB, compression, filter
HEADER = struct.Struct(">8sI4sIIBB")
RGB = (b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 8, 2)


@dataclass(frozen=True)
class Limits:
    """What a request may hold. body: bytes;  images: pictures, frames and references counted;  pixels: of all of them together;
    prompt: characters;  metadata: bytes of one image's as JSON;  marks: brackets, braces and commas, which bound parsing.
    """

    body: int = 128 * 2**20
    images: int = 1024
    pixels: int = 2**26
    prompt: int = 10_000
    metadata: int = 65_536
    marks: int = 200_000


class Refused(ValueError):
    """A request that is not scored; says why."""

    status = 400


class TooLarge(Refused):
    """A request above a limit."""

    status = 413


def png(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a PNG in base64: lossless, quick rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getbuffer()).decode()


@dataclass(frozen=True)
class Packed:
    """A PNG as it came, and the size it says it has."""

    data: bytes
    height: int
    width: int


def packed(text: Any, where: str) -> Packed:
    """A picture of a request, by its header alone.

    Raises: Refused where it is no PNG of 8-bit RGB.
    """
    if not isinstance(text, str):
        raise Refused(f"{where} hold {type(text).__name__}; give PNGs in base64, for video a list of them an image")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused(f"{where} hold text that is no base64; give PNGs in base64") from None
    if len(data) < HEADER.size:
        raise Refused(f"{where} hold {len(data)} bytes, which are no PNG")
    signature, length, kind, width, height, depth, colour = HEADER.unpack_from(data)
    if (signature, length, kind, depth, colour) != RGB or not width or not height:
        raise Refused(f"{where} hold something that is no PNG with 8 bits of red, green and blue (no alpha, no palette)")
    return Packed(data, height, width)


def affordable(pictures: Sequence[Packed], limits: Limits) -> None:
    """Hold what will be unpacked against the limits.

    Raises: TooLarge.
    """
    if len(pictures) > limits.images:
        raise TooLarge(f"the request has {len(pictures)} pictures; at most {limits.images} at once")
    pixels = sum(one.height * one.width for one in pictures)
    if pixels > limits.pixels:
        raise TooLarge(f"the pictures have {pixels} pixels together; at most {limits.pixels} at once")


def unpack(given: Packed) -> np.ndarray:
    """uint8 [H, W, 3].

    Raises: Refused where the picture is damaged.
    """
    try:
        with Image.open(io.BytesIO(given.data), formats=("PNG",)) as image:
            # a second header could say another size than the one that was paid for
            if image.size == (given.width, given.height) and image.mode == "RGB":
                return np.asarray(image)
    except Exception:  # Pillow raises a dozen kinds for damaged files
        pass
    raise Refused("a picture is a damaged PNG; send it again")
