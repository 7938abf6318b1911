"""Agreement with what was asked for, whatever word asks for the style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flowrl.rewards.contrastive.agreement import Agreement
from flowrl.rewards.contrastive.clip import clip
from flowrl.rewards.place import Place


@dataclass(frozen=True)
class CaptionClip:
    """Clip of the metadata's "caption", of the prompt where there is none."""

    model: Agreement

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.model(images, captions(prompts, metadata), metadata)

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.model.with_graph(images, captions(prompts, metadata), metadata)


def captions(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(told.get("caption") or prompt) for prompt, told in zip(prompts, metadata, strict=True)]


def caption_clip(variant: str | None = None, place: Place | None = None) -> CaptionClip:
    """Cosine of image and caption: to a CLIP, a trigger word it does not know is noise. variant: as of `contrastive.clip`."""
    return CaptionClip(clip(variant, place))
