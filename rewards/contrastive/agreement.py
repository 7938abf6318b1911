"""Agreement of image and prompt: a scale of the cosine of their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .encoder import Encoder, frames_of
from .scales import Scale, cosine


@dataclass(frozen=True)
class Agreement:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> scale(cos(f_image(x), f_text(prefix + y))) float32 [N].

    Of a video the mean over its frames. Cosines are in float32 whatever the network's dtype: a group's spread is 1e-3 to 1e-2.
    """

    encoder: Encoder
    scale: Scale = cosine
    prefix: str = ""

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        with self.encoder.network.ready():
            return self._scores(self.encoder.pictures(frames_of(images)), prompts).cpu()

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores [N] of float images [N, (T,) H, W, 3] in [0, 1], differentiable in them, on the images' device.

        Cosines are within 2e-3 of those of the rounded images: Pillow rounds to 8 bits after resizing.
        """
        del metadata
        with self.encoder.network.ready():
            found = self.encoder.pictures_with_graph(images.reshape(-1, *images.shape[-3:]))
            return self._scores(found, prompts).to(images.device)

    def _scores(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Of the frames [N * T, D] of each prompt's image."""
        text = self.encoder.texts([self.prefix + prompt for prompt in prompts])
        cosines = torch.einsum("nfd,nd->nf", pictures.unflatten(0, (len(prompts), -1)), text)
        return self.scale(cosines, self.encoder.factor).mean(1)
