"""The colour of an object: by CLIP as GenEval asks it, or by counting pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from flowrl.rewards.contrastive.clip import clip
from flowrl.rewards.contrastive.encoder import Encoder
from flowrl.rewards.place import Place

from .objects import Thing
from .words import COLOURS

OFFICIAL_CLIP = "ViT-L-14/openai"
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
GREY = 0x99


class Colours(Protocol):
    """Says what colour objects have. name: goes into the score's name unless it is "clip", the official one.

    image: uint8 [H, W, 3];  things: objects of one class in it;  kind: the class -> one of `words.COLOURS` for each.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, image: np.ndarray, things: Sequence[Thing], kind: str) -> list[str]: ...


def cut_out(image: np.ndarray, thing: Thing) -> np.ndarray:
    """The object alone: what its mask leaves out is grey (153), cropped to its box, uint8 [h, w, 3] of at least one pixel.

    Source: djghosh13/geneval@16f1681 `evaluation/evaluate_images.py::ImageCrops`; box edges are rounded to even as by Pillow.
    Differs: a box is cut at the picture's edge, where Pillow would add black.
    """
    shown = image if thing.mask is None else np.where(thing.mask[..., None], image, np.uint8(GREY))
    left, top, right, bottom = _within(thing.box, *image.shape[:2])
    return shown[top:bottom, left:right]


@dataclass(frozen=True)
class ClipColours:
    """Zero-shot over ten colours with three templates each; `held` keeps the classes' text features. Built by `clip_colours`."""

    encoder: Encoder
    name: str
    held: dict[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False, compare=False)

    def __call__(self, image: np.ndarray, things: Sequence[Thing], kind: str) -> list[str]:
        with self.encoder.network.ready():
            seen = self.encoder.pictures([cut_out(image, thing) for thing in things])
            if kind not in self.held:
                asked = [template.format(colour=colour, name=kind) for colour in COLOURS for template in TEMPLATES]
                each = self.encoder.texts(asked).unflatten(0, (len(COLOURS), len(TEMPLATES)))
                self.held[kind] = nn.functional.normalize(each.mean(1), dim=-1).cpu()
        return [COLOURS[index] for index in (seen @ self.held[kind].to(seen).T).argmax(1).tolist()]


def clip_colours(model: str | None = None, place: Place | None = None) -> ClipColours:
    """The official classifier, open_clip's ViT-L-14 with OpenAI's weights, or another model `contrastive.clip` can name.

    A colour is argmax over c of <f(cut-out), t_c>, t_c the unit mean of the unit features of "a photo of a {c} {class}",
    "a photo of a {c}-colored {class}" and "a photo of a {c} object". Ties go to the earlier colour.

    Raises: as `contrastive.clip.clip`.

    Source: djghosh13/geneval@16f1681 `evaluation/evaluate_images.py::color_classification`, with clip_benchmark's classifier.
    Differs: float32 here, half-precision autocast there.
    """
    model = model or OFFICIAL_CLIP
    return ClipColours(clip(model, place).encoder, "clip" if model == OFFICIAL_CLIP else f"clip-{_short(model)}")


def _short(model: str) -> str:
    """MODEL-PRETRAINED, or the last part of a repository or folder."""
    _, colon, where = model.rstrip("/").partition(":")
    return where.rpartition("/")[2] if colon else model.replace("/", "-")


@dataclass(frozen=True)
class PixelColours:
    """The colour most of an object's pixels have, by hue, saturation and value: needs no weights, and is a light stand-in.

    Looks at the object's mask, or at the middle half of its box where it has none. Grey counts as black or white, whichever is
    nearer. Good for plain strong colours; shadows turn red and orange brown, and backgrounds in a box count as object.
    Ties go to the earlier colour.
    """

    name: str = "hsv"

    def __call__(self, image: np.ndarray, things: Sequence[Thing], kind: str) -> list[str]:
        del kind
        return [COLOURS[int(np.bincount(_colours(_pixels(image, thing)), minlength=len(COLOURS)).argmax())] for thing in things]


def _pixels(image: np.ndarray, thing: Thing) -> np.ndarray:
    """uint8 [n, 3], n > 0."""
    if thing.mask is not None and thing.mask.any():
        return image[thing.mask]
    quarter = (thing.box[2:] - thing.box[:2]) / 4
    middle = np.concatenate([thing.box[:2] + quarter, thing.box[2:] - quarter])
    left, top, right, bottom = _within(middle, *image.shape[:2])
    return image[top:bottom, left:right].reshape(-1, 3)


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Index into COLOURS of each pixel [n, 3]: the first rule that holds."""
    red, green, blue = (pixels[:, channel].astype(np.float64) / 255 for channel in range(3))
    value, low = np.maximum.reduce([red, green, blue]), np.minimum.reduce([red, green, blue])
    chroma = value - low
    safe = np.maximum(chroma, 1e-9)
    sector = np.select(
        [value == red, value == green], [((green - blue) / safe) % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    hue, saturation = 60 * sector, chroma / np.maximum(value, 1e-9)
    reddish = (hue < 20) | (hue >= 330)
    rules = [
        ("black", value < 0.2),
        ("black", (saturation < 0.15) & (value < 0.5)),
        ("white", saturation < 0.15),
        ("pink", (reddish | (hue >= 290)) & (saturation < 0.6) & (value > 0.7)),
        ("brown", (hue >= 10) & (hue < 45) & (value < 0.65)),
        ("red", (hue < 15) | (hue >= 345)),
        ("orange", hue < 42),
        ("yellow", hue < 70),
        ("green", hue < 165),
        ("blue", hue < 260),
        ("purple", hue < 315),
    ]
    return np.select([holds for _, holds in rules], [COLOURS.index(name) for name, _ in rules], COLOURS.index("pink"))


def _within(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """left, top, right, bottom in whole pixels of the picture, at least one each way."""
    left, top, right, bottom = (round(edge) for edge in box.tolist())
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)
