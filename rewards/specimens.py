"""Six drawn pairs of pictures a kind of reward, of each of which anybody prefers the first."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

SIZE = 256
COLORS = {
    "red": (214, 48, 44),
    "green": (40, 160, 70),
    "blue": (44, 84, 208),
    "yellow": (240, 206, 50),
    "purple": (140, 60, 180),
}


class Pair(NamedTuple):
    """Two pictures uint8 [SIZE, SIZE, 3] for one prompt.  differ: what is told apart;  references: those it should resemble."""

    differ: str
    prompt: str
    better: np.ndarray
    worse: np.ndarray
    references: tuple[np.ndarray, ...] = ()


def agreement() -> tuple[Pair, ...]:
    """One plain shape on white, against another colour or another shape, for rewards that read the prompt."""
    told = (
        ("red", "circle", "blue", "circle"),
        ("green", "square", "purple", "square"),
        ("blue", "triangle", "yellow", "triangle"),
        ("red", "square", "green", "circle"),
        ("yellow", "circle", "red", "triangle"),
        ("blue", "square", "red", "circle"),
    )
    return tuple(Pair(f"{a} {b} / {c} {d}", f"a picture of a {a} {b}", _shape(a, b), _shape(c, d)) for a, b, c, d in told)


def quality() -> tuple[Pair, ...]:
    """One drawn landscape, against itself blurred, noisy, blocky, pale, dark and torn, for rewards of looks."""
    scene = _scene(0)
    spoilt: tuple[tuple[str, Callable[[Image.Image], Image.Image]], ...] = (
        ("sharp / blurred", lambda picture: picture.filter(ImageFilter.GaussianBlur(6))),
        ("clean / noisy", _noisy),
        ("clean / blocky", _blocky),
        ("clear / pale", lambda picture: ImageEnhance.Contrast(picture).enhance(0.15)),
        ("lit / dark", lambda picture: ImageEnhance.Brightness(picture).enhance(0.12)),
        ("whole / shuffled", _shuffled),
    )
    prompt = "a house on a green hill under a blue sky with a sun"
    return tuple(Pair(differ, prompt, _pixels(scene), _pixels(spoil(scene))) for differ, spoil in spoilt)


def reference() -> tuple[Pair, ...]:
    """A picture a little off its reference, against another picture, for rewards of likeness."""
    known = [_pixels(_scene(0)), _pixels(_scene(1)), *(_shape(a, b) for a, b in (("red", "circle"), ("blue", "square")))]
    names = ("hill", "sea", "circle", "square")
    rows = ((0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (3, 1))
    return tuple(
        Pair(f"its {names[at]} / a {names[other]}", f"a picture of a {names[at]}", _nudged(known[at]), known[other], (known[at],))
        for at, other in rows
    )


def text() -> tuple[Pair, ...]:
    """A word, against it misspelt or missing, for rewards that read."""
    rows = (("OPEN", "OPFN"), ("HELLO", "HOLE"), ("COFFEE", "CAFE"), ("Welcome", "Wecome"), ("STOP", ""), ("Sunday", "Monday"))
    return tuple(
        Pair(f"{word} / {other or 'nothing'}", f'a sign that says "{word}"', _sign(word), _sign(other)) for word, other in rows
    )


KINDS: dict[str, Callable[[], tuple[Pair, ...]]] = {
    "agreement": agreement,
    "quality": quality,
    "reference": reference,
    "text": text,
}


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def _shape(color: str, shape: str) -> np.ndarray:
    # four times as large, then reduced: smooth edges
    side = 4 * SIZE
    picture = Image.new("RGB", (side, side), "white")
    draw, low, high = ImageDraw.Draw(picture), side // 4, side - side // 4
    match shape:
        case "circle":
            draw.ellipse((low, low, high, high), fill=COLORS[color])
        case "square":
            draw.rectangle((low, low, high, high), fill=COLORS[color])
        case _:
            draw.polygon(((side // 2, low), (low, high), (high, high)), fill=COLORS[color])
    return _pixels(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _scene(number: int) -> Image.Image:
    """0: a house on a hill; 1: a boat at sea under a red sky."""
    side = 4 * SIZE
    high = np.linspace(0, 1, side)[:, None, None]
    top, bottom = (((90, 150, 235), (200, 225, 250)), ((120, 40, 70), (250, 170, 90)))[number]
    sky = np.broadcast_to(np.array(top) * (1 - high) + np.array(bottom) * high, (side, side, 3)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(sky))
    draw = ImageDraw.Draw(picture)
    if number == 0:
        draw.ellipse((760, 90, 910, 240), fill=(255, 225, 90))
        draw.ellipse((-300, 560, 1324, 1700), fill=(80, 160, 70))
        draw.rectangle((400, 400, 680, 640), fill=(225, 200, 165), outline=(90, 60, 40), width=8)
        draw.polygon(((370, 410), (540, 250), (710, 410)), fill=(170, 60, 50))
        draw.rectangle((510, 500, 580, 640), fill=(100, 65, 40))
        for x in (435, 610):
            draw.rectangle((x, 450, x + 45, 505), fill=(130, 190, 230), outline=(90, 60, 40), width=6)
    else:
        draw.rectangle((0, 620, side, side), fill=(30, 60, 110))
        for y in range(650, side, 60):
            draw.arc((-100 + y % 90, y, 300 + y % 90, y + 60), 200, 340, fill=(110, 150, 200), width=6)
            draw.arc((500 + y % 70, y, 950 + y % 70, y + 60), 200, 340, fill=(110, 150, 200), width=6)
        draw.polygon(((330, 640), (700, 640), (640, 740), (390, 740)), fill=(110, 70, 40))
        draw.polygon(((520, 250), (520, 610), (730, 610)), fill=(245, 240, 225))
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 60, (SIZE, SIZE, 3))
    return Image.fromarray((_pixels(picture) + noise).clip(0, 255).astype(np.uint8))


def _blocky(picture: Image.Image) -> Image.Image:
    held = io.BytesIO()
    picture.save(held, format="JPEG", quality=2)
    return Image.open(held).convert("RGB")


def _shuffled(picture: Image.Image) -> Image.Image:
    tiles = _pixels(picture).reshape(8, SIZE // 8, 8, SIZE // 8, 3).swapaxes(1, 2).reshape(64, SIZE // 8, SIZE // 8, 3)
    tiles = tiles[np.random.default_rng(0).permutation(64)]
    return Image.fromarray(tiles.reshape(8, 8, SIZE // 8, SIZE // 8, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 3))


def _nudged(pixels: np.ndarray) -> np.ndarray:
    """A little darker, moved by 4 pixels."""
    moved = np.roll(pixels, 4, axis=1).astype(np.float64)
    return (moved * 0.95).round().astype(np.uint8)


def _sign(word: str) -> np.ndarray:
    picture = Image.new("RGB", (SIZE, SIZE), (245, 245, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((16, 84, 240, 172), outline=(40, 40, 40), width=4)
    draw.text((SIZE / 2, SIZE / 2), word, fill=(20, 20, 20), anchor="mm", font=ImageFont.load_default(46))
    return _pixels(picture)
