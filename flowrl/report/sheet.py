"""Contact sheets: a grid of samples with captions and scores, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SIDE, GAP, LINE, LINES = 128, 14, 16, 3
PAPER, INK, SOFT, EDGE = (250, 249, 246), (34, 38, 43), (106, 111, 118), (214, 211, 204)
LOW, MIDDLE, HIGH = (180, 71, 47), (176, 130, 40), (14, 118, 110)


def contact_sheet(
    images: NDArray[np.uint8],
    captions: Sequence[str],
    columns: int,
    scores: Sequence[float | None] | None = None,
    titles: Sequence[str] = (),
) -> Image:
    """Images [N, H, W, 3] in rows of `columns`, captions wrapped below, scores coloured from the worst to the best.

    Images under 128 pixels are enlarged by whole factors with hard pixels. Scores in [0, 1] are coloured on that range, others on
    their own; None or NaN shows as a dash. titles: over the first rows.

    Raises: ValueError if numbers do not match or there is no image.
    """
    from PIL import Image, ImageDraw, ImageFont

    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"a contact sheet needs uint8 images [N, H, W, 3], at least one, got {images.dtype} {images.shape}.")
    if len(captions) != len(images) or (scores is not None and len(scores) != len(images)) or columns < 1:
        raise ValueError(
            f"a contact sheet of {len(images)} images got {len(captions)} captions, "
            f"{'no' if scores is None else len(scores)} scores and {columns} columns: give one of each an image."
        )
    factor = max(1, math.ceil(SIDE / min(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = images.shape[1:3]
    font = ImageFont.load_default(12)
    texts = [_wrap(caption, width, font) for caption in captions]
    above, below = LINE * bool(titles), LINE * (max(map(len, texts)) + (scores is not None)) + 6
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    whole = above + height + below + GAP
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * whole), PAPER)
    draw = ImageDraw.Draw(sheet)
    colours = None if scores is None else _colours(scores)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left, top = GAP + i % columns * (width + GAP), GAP + above + i // columns * whole
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=EDGE)
        sheet.paste(Image.fromarray(image), (left, top))
        _label(
            draw,
            (left, top + height + 5),
            lines,
            font,
            None if scores is None or colours is None else (_text(scores[i]), colours[i]),
        )
    for row, title in enumerate(titles):
        draw.text((GAP, GAP - 4 + row * whole), title, fill=INK, font=font)
    return sheet


def _label(
    draw: ImageDraw,
    at: tuple[int, int],
    lines: Sequence[str],
    font: FreeTypeFont | ImageFont,
    score: tuple[str, tuple[int, ...]] | None,
) -> None:
    left, top = at
    if score is not None:
        draw.text((left, top), score[0], fill=score[1], font=font)
        top += LINE
    for line in lines:
        draw.text((left, top), line, fill=INK if score is None else SOFT, font=font)
        top += LINE


def _known(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _text(score: float | None) -> str:
    return f"{score:.3f}" if _known(score) else "–"


def _colours(scores: Sequence[float | None]) -> list[tuple[int, ...]]:
    valid = [s for s in scores if s is not None and math.isfinite(s)]
    low, high = min(valid, default=0.0), max(valid, default=1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    out: list[tuple[int, ...]] = []
    for score in scores:
        if score is None or not math.isfinite(score):
            out.append(SOFT)
            continue
        share = 0.5 if high == low else (score - low) / (high - low)
        a, b, t = (LOW, MIDDLE, 2 * share) if share < 0.5 else (MIDDLE, HIGH, 2 * share - 1)
        out.append(tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True)))
    return out


def _wrap(text: str, width: int, font: FreeTypeFont | ImageFont) -> list[str]:
    """Lines that fit the width; words that do not are broken; more than LINES lines end in an ellipsis."""
    lines = [""]
    for word in text.split():
        trial = f"{lines[-1]} {word}".strip()
        if font.getlength(trial) <= width:
            lines[-1] = trial
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > LINES:
        last = lines[LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: LINES - 1], last + "…"]
    return lines
