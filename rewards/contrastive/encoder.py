"""Encoders of images and prompts as values: how a network is fed, whatever library it comes from. Features are of unit length."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.place import Housed, Place, batched

from .prepare import Preparation, of_processor
from .weights import Shelf, pretrained

Tower = Callable[[Any, Tensor], Tensor]
"""tower(model, prepared) -> features [N, D], of any length."""
Tokenize = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Encoder:
    """A network with what it is fed.  text, tokenize: None where it sees images only.

    All methods expect to be called inside `network.ready()`.
    """

    network: Housed[nn.Module]
    preparation: Preparation
    image: Tower
    text: Tower | None = None
    tokenize: Tokenize | None = None

    @property
    def factor(self) -> float:
        """exp(logit_scale), by which the model multiplies its cosines."""
        model: Any = self.network.model
        return float(model.logit_scale.detach().double().exp())

    @torch.no_grad()
    def pictures(self, frames: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """uint8 [H, W, 3] each -> float32 [N, D] of unit length, without a graph."""
        return batched(lambda cut: self._unit(self.image, self.preparation(frames[cut])), len(frames), self.network.batch)

    def pictures_with_graph(self, frames: Tensor) -> Tensor:
        """float [N, H, W, 3] in [0, 1] -> float32 [N, D] of unit length, differentiable in them."""
        pixels = frames.permute(0, 3, 1, 2).to(self.network.device).float()
        return self._unit(self.image, self.preparation.with_graph(pixels))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """float32 [N, D] of unit length. The images of a group share their prompt, which is encoded once.

        Raises: TypeError if it sees images only.
        """
        if self.text is None or self.tokenize is None:
            raise TypeError("this encoder sees images only; give one with a text tower")
        row = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        distinct, tower, tokenize = list(row), self.text, self.tokenize
        found = batched(lambda cut: self._unit(tower, tokenize(distinct[cut])), len(distinct), self.network.batch)
        return found[torch.tensor([row[prompt] for prompt in prompts], device=found.device)]

    def _unit(self, tower: Tower, data: Tensor) -> Tensor:
        data = data.to(self.network.device)
        if data.is_floating_point():
            data = data.to(next(self.network.model.parameters()).dtype)
        return nn.functional.normalize(tower(self.network.model, data).float(), dim=-1)


def frames_of(images: np.ndarray) -> np.ndarray:
    """uint8 [N, (T,) H, W, 3] as [N * T, H, W, 3]."""
    return images.reshape(-1, *images.shape[-3:])


def pooled(features: Any) -> Tensor:
    """The vector a model of transformers pools to: it is the answer before version 5, and in `pooler_output` since."""
    return features if isinstance(features, Tensor) else features.pooler_output


def clip_encoder(repository: str, processor: str, shelf: Shelf, place: Place) -> Encoder:
    """A CLIPModel of transformers with projected features.  processor: the repository of its tokenizer and image settings."""
    model = pretrained(shelf, "CLIPModel", repository)
    return Encoder(
        place.house(model),
        preparation(processor, shelf),
        lambda m, x: pooled(m.get_image_features(pixel_values=x)),
        lambda m, ids: pooled(m.get_text_features(input_ids=ids)),
        tokenizer(processor, shelf, int(model.config.text_config.max_position_embeddings)),
    )


def vision_encoder(kind: str, repository: str, prepared: Preparation | None, shelf: Shelf, place: Place) -> Encoder:
    """The pooled output of a vision model of transformers ("SiglipVisionModel", "Dinov2Model").

    prepared: None, as the repository's image processor says.
    """
    model = pretrained(shelf, kind, repository)
    return Encoder(place.house(model), prepared or preparation(repository, shelf), lambda m, x: pooled(m(pixel_values=x)))


def preparation(repository: str, shelf: Shelf) -> Preparation:
    """What a repository's preprocessor_config.json asks for."""
    return of_processor(json.loads(shelf.file(repository, "preprocessor_config.json").read_text()))


def tokenizer(repository: str, shelf: Shelf, length: int) -> Tokenize:
    """A repository's tokenizer, cutting and padding to `length` tokens."""
    with shelf.finding(repository):
        made = importlib.import_module("transformers").AutoTokenizer.from_pretrained(shelf.repository(repository))

    def tokenize(prompts: list[str]) -> Tensor:
        return made(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    return tokenize
