"""Rule rewards by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]
JPEG = {
    "licence": "Apache-2.0",
    "hacks": "blind to the prompt: noise is the largest file, a flat colour the smallest",
    "source": "DDPO (2305.13301)",
}

ROWS: dict[str, Row] = {
    "jpeg_compressibility": Row(
        f"{HERE}.jpeg:jpeg_compressibility", "minus the size of the JPEG file in kB (DDPO)", range="-310 to -5 at 512 x 512", **JPEG
    ),
    "jpeg_incompressibility": Row(
        f"{HERE}.jpeg:jpeg_incompressibility", "size of the JPEG file in kB (DDPO)", range="5 to 310 at 512 x 512", **JPEG
    ),
}
