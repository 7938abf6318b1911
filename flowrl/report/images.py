"""Pictures inside the page, as data URIs: small files as they are, large ones shrunk so that the page stays light."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

SIDE, BYTES = 512, 120_000
PNG = b"\x89PNG\r\n\x1a\n"


def embed(path: Path, side: int = SIDE) -> tuple[str, int]:
    """(data URI, width in pixels) of a PNG, made no larger than side x side if it is heavy. Raises: OSError if it is no picture."""
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big") if data.startswith(PNG) else 0
    if not width or len(data) > BYTES:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            picture.thumbnail((side, side))
            width, buffer = picture.width, io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), width
    return "data:image/png;base64," + base64.b64encode(data).decode(), width


def tag(path: Path | None, alt: str, side: int = SIDE) -> str:
    """An img, or a grey tile where there is no picture."""
    try:
        if path is None:
            raise FileNotFoundError
        source, width = embed(path, side)
    except OSError:
        return f'<div class="gone" role="img" aria-label="{escape(alt)}: missing">missing</div>'
    return f'<img src="{source}" alt="{escape(alt)}"{" class=tiny" if width <= 128 else ""} loading="lazy">'
