"""MPS: preference by image tokens that attend to the words that matter, over a CLIP model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.place import Housed, Place, batched

from .crossing import Crossing
from .encoder import Tokenize, frames_of, preparation, tokenizer
from .preference import LAION_H
from .prepare import Preparation
from .weights import filled, shelved, tensors

MIRROR = "RE-N-Y/mpsv1"
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, "
    "quantity, attributes, position, number, location, word, things."
)
BUFFERS = (".position_ids", ".pos_emb")


class Fused(nn.Module):
    """A CLIPModel of transformers, `model`, and `cross_model` over its projected tokens: the names of upstream's state dict."""

    def __init__(self, clip: Any, layers: int = 4, heads: int = 16, width: int = 64) -> None:
        super().__init__()
        self.model = clip
        self.cross_model = Crossing(int(clip.config.projection_dim), layers, heads, width)

    def words(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [N, L] -> projected tokens [N, L, D], and those of the end of each text [N, D]."""
        told = self.model.text_model(input_ids=ids)
        return self.model.text_projection(told.last_hidden_state), self.model.text_projection(told.pooler_output)

    def patches(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, H, W] -> projected tokens [N, 1 + patches, D], before CLIP's last norm."""
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).last_hidden_state)


class Asked(NamedTuple):
    """Prompts: tokens [N, L, D], those kept [N, L], unit ends [N, D]."""

    tokens: Tensor
    kept: Tensor
    end: Tensor


@dataclass(frozen=True)
class Mps:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> exp(logit_scale) cos(end of text, fused class token) float32 [N].

    A prompt's token is kept if its largest product with a token of the condition is above `threshold` of that prompt's largest.
    """

    network: Housed[Fused]
    preparation: Preparation
    tokenize: Tokenize
    threshold: float = 0.3
    condition: str = CONDITION

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        frames = frames_of(images)
        each = len(frames) // len(prompts)
        with self.network.ready() as model:
            asked, row = self._asked(model, prompts), self._rows(prompts, each)
            cosines = batched(lambda cut: self._cosines(model, frames[cut], asked, row[cut]), len(frames), self.network.batch)
            scores = model.model.logit_scale.float().exp() * cosines
        return scores.unflatten(0, (len(prompts), each)).mean(1).cpu()

    def _rows(self, prompts: Sequence[str], each: int) -> Tensor:
        """Each frame's place among the distinct prompts."""
        at = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        return torch.tensor([at[prompt] for prompt in prompts for _ in range(each)], device=self.network.device)

    def _asked(self, model: Fused, prompts: Sequence[str]) -> Asked:
        distinct = list(dict.fromkeys(prompts))
        condition = model.words(self.tokenize([self.condition]).to(self.network.device))[0][0].float()
        found: list[Asked] = []
        for start in range(0, len(distinct), self.network.batch):
            tokens, end = model.words(self.tokenize(distinct[start : start + self.network.batch]).to(self.network.device))
            relevance = (tokens.float() @ condition.T).amax(-1)
            # the largest of this prompt alone: upstream takes that of the whole batch, and scores depend on their company
            kept = relevance / relevance.amax(1, keepdim=True) > self.threshold
            found.append(Asked(tokens, kept, nn.functional.normalize(end.float(), dim=-1)))
        return Asked(*(torch.cat(some) for some in zip(*found, strict=True)))

    def _cosines(self, model: Fused, frames: np.ndarray, asked: Asked, row: Tensor) -> Tensor:
        pixels = self.preparation(frames).to(self.network.device, asked.tokens.dtype)
        fused = model.cross_model(model.patches(pixels), asked.tokens[row], asked.kept[row])[:, 0]
        return (nn.functional.normalize(fused.float(), dim=-1) * asked.end[row]).sum(-1)


def mps(variant: str | None = None, place: Place | None = None) -> Mps:
    """Multi-dimensional preference, the "overall" condition: about 0 to 20, comparable within a prompt only.

    variant: the threshold, 0.3 (None) as upstream evaluates, 0.01 as it trained; and @FOLDER with mpsv1/model.safetensors and
    CLIP-ViT-H-14-laion2B-s32B-b79K/ (config.json, preprocessor_config.json, tokenizer) in it.
    The safetensors file is expected to hold upstream's state dict: `model.` with the names of transformers' CLIPModel and
    `cross_model.layers.{0..3}.{0, 1}.fn.` with those of `crossing`, all of them below `mps.` or not.

    Raises: ValueError for a threshold outside [0, 1) or weights that do not fit; NotLoaded if loading fails.

    Source: MPS (2405.14705); Kwai-Kolors/MPS@ae290c2 `eval_overall_mps_on_hpdv2.py`; weights of its mirror RE-N-Y/mpsv1.
    Differs: the largest relevance is each prompt's own, so a score does not depend on what else is scored; float32, where upstream
    casts to half. Upstream's MPS_overall_checkpoint.pth is a pickled module, which runs code when opened, and is never opened:
    make the file from it where nothing can be harmed, by save_file(module.state_dict(), "model.safetensors"). That the mirror's
    names are as said was read from its code; the file was never opened here.
    """
    name, shelf = shelved("mps", variant)
    try:
        threshold = float(name or 0.3)
    except ValueError:
        raise ValueError(f"reward mps: {name!r} is not a threshold; give a number such as 0.3, or 0.01") from None
    if not 0 <= threshold < 1:
        raise ValueError(f"reward mps: the threshold is {threshold}; give one in [0, 1)")
    transformers = importlib.import_module("transformers")
    with shelf.finding(LAION_H):
        config = transformers.CLIPConfig.from_pretrained(shelf.repository(LAION_H))
    model = fused(transformers.CLIPModel(config), tensors(shelf.file(MIRROR, "model.safetensors")))
    words = tokenizer(LAION_H, shelf, int(config.text_config.max_position_embeddings))
    return Mps((place or Place()).house(model), preparation(LAION_H, shelf), words, threshold)


def fused(clip: Any, state: dict[str, Tensor], heads: int = 16, width: int = 64) -> Fused:
    """Both networks with weights by upstream's names.

    Raises: ValueError if they do not fit key for key.
    """
    state = {key.removeprefix("mps."): value for key, value in state.items()}
    # buffers that older transformers stored, and that follow from the sizes
    state = {key: value for key, value in state.items() if not key.endswith(BUFFERS)}
    model = Fused(clip, len({key.split(".")[2] for key in state if key.startswith("cross_model.layers.")}) or 4, heads, width)
    filled("MPS", model, state)
    return model
