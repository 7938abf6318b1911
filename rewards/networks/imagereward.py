"""ImageReward on current transformers: BLIP's image encoder, its text encoder that looks at the image, and a linear ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.rewards.networks.pixels import Square, framed, over_frames
from flowrl.rewards.networks.weights import State, fit, found, missing, package, place_of, tensors
from flowrl.rewards.place import Housed, Place, batched

REPOSITORY, FILE, TOKENIZER = "THUDM/ImageReward", "ImageReward.pt", "bert-base-uncased"
WORDS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
WIDTHS = (768, 1024, 128, 64, 16, 1)
# places in the published nn.Sequential, which holds dropouts at 1, 3 and 5
PLACES = (0, 2, 4, 6, 7)
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")

VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VISION |= {"image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6}
# two tokens were added to BERT's 30522 when BLIP was trained
TEXT = {"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072}
TEXT |= {"num_hidden_layers": 12, "num_attention_heads": 12, "layer_norm_eps": 1e-12, "is_decoder": True}

RENAMED = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    ("norm.", "post_layernorm."),
)
INSIDE = ((".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."), (".attn.qkv.", ".self_attn.qkv."))
INSIDE += ((".attn.proj.", ".self_attn.projection."),)


class Network(nn.Module):
    """Pixels [N, 3, S, S], ids and mask [N, 35] -> what the ladder says of the first token, [N], not yet normalised."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        blip = package("imagereward", "transformers.models.blip.modeling_blip", "transformers")
        words = package("imagereward", "transformers.models.blip.modeling_blip_text", "transformers")
        config = package("imagereward", "transformers.models.blip.configuration_blip", "transformers")
        self.vision = blip.BlipVisionModel(config.BlipVisionConfig(**vision))
        self.text = words.BlipTextModel(config.BlipTextConfig(**text), add_pooling_layer=False)
        self.mlp = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        return self.mlp(read.last_hidden_state[:, 0])[:, 0].float()


@dataclass(frozen=True)
class ImageReward:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> float32 [N]. Built by `imagereward`.

    tokenize: prompts -> (ids, mask), long [N, 35] each.
    """

    network: Housed[Network]
    square: Square
    tokenize: Callable[[list[str]], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        frames = framed(images)
        ids, mask = self._words(prompts, len(frames))
        with self.network.ready():

            def call(cut: slice) -> Tensor:
                return self._scores(self.square.pictures(frames[cut]), ids[cut], mask[cut])

            return over_frames(batched(call, len(frames), self.network.batch), len(prompts)).mean(1).cpu()

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores [N] of float images [N, (T,) H, W, 3] in [0, 1], differentiable in them, on their device."""
        del metadata
        frames = framed(images).to(self.network.device)
        ids, mask = self._words(list(prompts), len(frames))
        with self.network.ready():
            scores = self._scores(self.square.tensors(frames), ids, mask)
        return over_frames(scores, len(prompts)).mean(1).to(images.device)

    def _words(self, prompts: list[str], frames: int) -> tuple[Tensor, Tensor]:
        """(ids, mask) of each frame's prompt."""
        ids, mask = self.tokenize(prompts)
        each = frames // len(prompts)
        return ids.repeat_interleave(each, 0), mask.repeat_interleave(each, 0)

    def _scores(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        home, model = self.network.device, self.network.model
        pixels = pixels.to(home, next(model.parameters()).dtype)
        return (model(pixels, ids.to(home), mask.to(home)) - MEAN) / STD


def imagereward(variant: str | None = None, place: Place | None = None) -> ImageReward:
    """How well people would like an image for its prompt, about -2.3 to 2, near standard normal on its own data; of a video the
    mean over its frames.

    (ladder(first token) - 0.16717362830052426) / 1.0333394966054072. Prompts are cut at 35 BERT tokens, images to their middle.

    variant: None, downloaded; or FOLDER with ImageReward.pt and the tokenizer of bert-base-uncased (without one, the hub's).

    Raises: FileNotFoundError for missing files; ValueError if the weights do not fit; ModuleNotFoundError without transformers.

    Source: ImageReward (2304.05977); THUDM/ImageReward@0f5fa3e `ImageReward/ImageReward.py::score`, BLIP ViT-L/16.
    Differs: the published package needs an old transformers; this maps its weights onto `BlipVisionModel` and `BlipTextModel`
    (`renamed`). Each image meets its own prompt only, where DiffusionNFT scores all pairs and keeps the diagonal.
    """
    folder = place_of("imagereward", variant)
    state = renamed(tensors(found("imagereward", REPOSITORY, FILE, folder)))
    network = Network(VISION, TEXT)
    fit("imagereward", network, state)
    return ImageReward((place or Place()).house(network, batch=32), Square(224), tokenizer(folder))


def tokenizer(folder: Path | None) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    """prompts -> (ids, mask), long [N, 35]: BERT's, padded and cut."""
    here = folder is not None and any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    transformers = package("imagereward", "transformers")
    try:
        words = transformers.AutoTokenizer.from_pretrained(str(folder) if here else TOKENIZER)
    except Exception as error:
        raise FileNotFoundError(missing("imagereward", f"the tokenizer {TOKENIZER}", error)) from error

    def tokenize(prompts: list[str]) -> tuple[Tensor, Tensor]:
        read = words(prompts, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
        return read["input_ids"], read["attention_mask"]

    return tokenize


def renamed(state: Mapping[str, Tensor]) -> State:
    """The published state dict under the names of `Network`.

    blip.visual_encoder.*, of timm's kind -> vision.*; blip.text_encoder.*, of BERT's -> text.* unchanged;
    mlp.layers.{0, 2, 4, 6, 7} -> mlp.{0 .. 4}. The projections of BLIP's contrastive loss are left out, as no score uses them.
    Keys of no known kind keep their names, so that loading refuses them.
    """
    ladder = {f"mlp.layers.{place}": f"mlp.{index}" for index, place in enumerate(PLACES)}
    out: State = {}
    for key, value in state.items():
        if key.startswith(UNUSED):
            continue
        head, _, last = key.rpartition(".")
        if key.startswith("blip.visual_encoder."):
            key = f"vision.{_vision(key.removeprefix('blip.visual_encoder.'))}"
        elif key.startswith("blip.text_encoder."):
            key = f"text.{key.removeprefix('blip.text_encoder.')}"
        elif head in ladder:
            key = f"{ladder[head]}.{last}"
        out[key] = value
    return out


def _vision(key: str) -> str:
    for old, new in RENAMED:
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in INSIDE:
        key = key.replace(old, new)
    return key
