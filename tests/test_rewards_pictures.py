"""Picture files of every sort as 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowrl.rewards.pictures import read


def png(path: Path, pixels: np.ndarray, color: int, depth: int, chunks: bytes = b"") -> Path:
    """A PNG written by hand: Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


RAMP = np.linspace(0, 65535, 3 * 5 * 7).round().astype(np.uint16).reshape(5, 7, 3)


def test_eight_bits_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = (RAMP // 257).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), pixels) and read(str(tmp_path / "a.png")).dtype == np.uint8


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    grey = read(png(tmp_path / "grey.png", RAMP[..., 0], 0, 16))
    assert np.array_equal(grey, np.repeat(np.round(RAMP[..., :1] / 257).astype(np.uint8), 3, 2))
    color = read(png(tmp_path / "color.png", RAMP, 2, 16))
    assert np.abs(color.astype(int) - RAMP / 257).max() <= 1 and color.max() == 255 and color.min() == 0
    Image.fromarray(RAMP[..., 0]).save(tmp_path / "grey.tif")
    assert np.array_equal(read(tmp_path / "grey.tif"), grey)
    Image.fromarray(RAMP[..., 0].astype(np.int32)).save(tmp_path / "wide.tif")
    assert np.array_equal(read(tmp_path / "wide.tif"), grey)


def test_what_is_transparent_lies_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (0, 51, 128, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alpha = np.array([0, 51, 128, 255]) / 255
    expected = np.stack([200 * alpha + 255 * (1 - alpha), *[255 * (1 - alpha)] * 2], -1)
    assert np.abs(read(tmp_path / "a.png")[0] - expected).max() <= 1
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "la.png")
    assert np.abs(read(tmp_path / "la.png")[0, :, 1] - expected[:, 0]).max() <= 1
    sixteen = np.zeros((1, 4, 4), np.uint16)
    sixteen[...] = pixels.astype(np.uint16) * 257
    assert np.array_equal(read(png(tmp_path / "deep.png", sixteen, 6, 16)), read(tmp_path / "a.png"))


def test_a_palette_with_a_transparent_color_lies_over_white(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "plain.png")
    assert read(tmp_path / "plain.png").tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    picture.save(tmp_path / "hole.png", transparency=1)
    assert read(tmp_path / "hole.png").tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    Image.fromarray(np.array([[[9, 9, 9], [8, 8, 8]]], np.uint8)).save(tmp_path / "key.png", transparency=(8, 8, 8))
    assert read(tmp_path / "key.png").tolist() == [[[9, 9, 9], [255, 255, 255]]]


def test_photographs_stand_upright(tmp_path: Path) -> None:
    tall = np.zeros((16, 32, 3), np.uint8)
    tall[:, :16] = 255
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: to be shown a quarter turn clockwise
    Image.fromarray(tall).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = read(tmp_path / "a.jpg")
    assert found.shape == (32, 16, 3) and found[:14].min() > 200 and found[18:].max() < 50


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode)
    picture.save(tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"))
    found = read(next(tmp_path.iterdir()))
    assert found.shape == (2, 3, 3) and found.min() >= 254


def test_the_first_frame_of_several_is_read_and_one_pixel_is_a_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read(tmp_path / "one.png").tolist() == [[[1, 2, 3]]]


def test_what_is_no_picture_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name in ("text.png", "cut.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        read(tmp_path / "none.png")
    for array in (np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)):
        Image.fromarray(array).save(tmp_path / "float.tif")
        with pytest.raises(ValueError, match="whose white is not known"):
            read(tmp_path / "float.tif")
