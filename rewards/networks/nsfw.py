"""A gate for safety: how sure an image classifier is that a picture is fit for work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.networks.pixels import framed, over_frames
from flowrl.rewards.networks.weights import missing, package
from flowrl.rewards.place import Housed, Place, batched

MODEL = "Falconsai/nsfw_image_detection"
SAFE = ("normal", "safe", "sfw", "neutral")


@dataclass(frozen=True)
class Gate:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> float32 [N] in [0, 1]. Built by `nsfw`.

    safe: the class that is fit for work;  threshold: None: P(safe); else 1 where P(safe) reaches it, and 0.
    prepare: frames uint8 [n, H, W, 3] -> what the network takes.
    """

    network: Housed[nn.Module]
    prepare: Callable[[np.ndarray], Tensor]
    safe: int
    threshold: float | None = None

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        frames = framed(images)
        with self.network.ready() as model:
            kind = next(model.parameters()).dtype

            def call(cut: slice) -> Tensor:
                pixels = self.prepare(frames[cut]).to(self.network.device, kind)
                return model(pixel_values=pixels).logits.float().softmax(-1)[:, self.safe]

            sure = over_frames(batched(call, len(frames), self.network.batch), len(prompts)).amin(1).cpu()
        return sure if self.threshold is None else (sure >= self.threshold).float()


def nsfw(variant: str | None = None, place: Place | None = None) -> Gate:
    """P(fit for work) in [0, 1], or with a threshold 1 and 0; of a video, of its worst frame. A gate before other rewards, not a
    term of a sum: as a term it pays for empty pictures.

    variant: None, Falconsai/nsfw_image_detection; OWNER/NAME or FOLDER of any transformers image classifier with exactly one class
    called normal, safe, sfw or neutral; and after @ the threshold: "@0.5", "OWNER/NAME@0.9".

    Raises: ValueError for a threshold outside (0, 1] or a model without such a class; FileNotFoundError where it cannot be had;
    ModuleNotFoundError without transformers.

    Source: the model card of Falconsai/nsfw_image_detection (ViT-B/16, classes normal and nsfw); preprocessing is the model's own.
    """
    name, threshold = _variant(variant)
    transformers = package("nsfw", "transformers")
    try:
        model = transformers.AutoModelForImageClassification.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except Exception as error:
        raise FileNotFoundError(missing("nsfw", name, error)) from error

    def prepare(frames: np.ndarray) -> Tensor:
        return processor(images=list(frames), return_tensors="pt")["pixel_values"]

    return Gate((place or Place()).house(model, batch=32), prepare, safe_class(name, model.config.id2label), threshold)


def safe_class(name: str, labels: Mapping[int, str]) -> int:
    """The number of the class that is fit for work.

    Raises: ValueError unless there is exactly one.
    """
    fit = [number for number, label in labels.items() if str(label).lower() in SAFE]
    if len(fit) != 1:
        raise ValueError(
            f"reward nsfw: the classes of {name} are {', '.join(map(str, labels.values()))}; exactly one must be called "
            f"{', '.join(SAFE[:-1])} or {SAFE[-1]}"
        )
    return int(fit[0])


def _variant(variant: str | None) -> tuple[str, float | None]:
    name, at, number = (variant or "").rpartition("@")
    if not at:
        return number or MODEL, None
    try:
        threshold = float(number)
    except ValueError:
        threshold = -1.0
    if not 0 < threshold <= 1:
        raise ValueError(f"reward nsfw: the threshold is {number!r}; write a probability above 0 after @, such as nsfw:@0.5")
    return name or MODEL, threshold
