"""Pictures inside the page, as data URIs: small files as they are, large ones shrunk so that the page stays light."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, BYTES = 512, 120_000
PNG = b"\x89PNG\r\n\x1a\n"
MOVING = 240_000
"""Bytes of a video. One that is heavier is written again, smaller."""


def embed(path: Path, side: int = SIDE) -> tuple[str, int]:
    """(data URI, width in pixels) of a PNG, made no larger than side x side if it is heavy. Raises: OSError if it is no picture."""
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big") if data.startswith(PNG) else 0
    if not width or len(data) > BYTES:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            picture.thumbnail((side, side))
            return _jpeg(picture), picture.width
    return _uri("png", data), width


def film(path: Path) -> tuple[str, str, int]:
    """(data URI of a video as an animated WebP of about MOVING bytes, of four of its frames as a still, width in pixels).

    Raises: OSError, ValueError if it is no video.
    """
    from PIL import Image

    from flowrl import moving

    data, frames = moving.light(path, MOVING)
    return _uri("webp", data), _jpeg(Image.fromarray(moving.four(frames))), frames.shape[2]


def tag(path: Path | None, alt: str, side: int = SIDE) -> str:
    """An img, or a grey tile where there is no picture. A video moves, and stands still as four frames on paper and for those who
    ask for less motion."""
    try:
        if path is None:
            raise FileNotFoundError
        if path.suffix.lower() == ".webp":
            source, still, width = film(path)
            small = " tiny" if width <= 128 else ""
            return (
                f'<img src="{source}" alt="{escape(alt)}" class="moving{small}" loading="lazy">'
                f'<img src="{still}" alt="{escape(alt)}, four frames" class="still{small}">'
            )
        source, width = embed(path, side)
    except (OSError, ValueError):
        return f'<div class="gone" role="img" aria-label="{escape(alt)}: missing">missing</div>'
    return f'<img src="{source}" alt="{escape(alt)}"{" class=tiny" if width <= 128 else ""} loading="lazy">'


def _jpeg(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return _uri("jpeg", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
