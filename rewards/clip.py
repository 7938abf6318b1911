"""Agreement of image and prompt under a contrastive image-text model, through open_clip."""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .place import Housed, Place, batched

EMBEDDED = "shapes-clip"


@dataclass(frozen=True)
class Clip:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> cosines float32 [N]. Built by `clip`.

    preprocess: open_clip's own, of a picture;  prepare: the same of float [N, 3, H, W] in [0, 1], differentiable.
    """

    network: Housed[nn.Module]
    preprocess: Callable[[Image.Image], Tensor]
    prepare: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        del metadata
        frames = images.reshape(-1, *images.shape[-3:])
        with self.network.ready():
            picture = batched(lambda cut: self._pictures(frames[cut]), len(frames), self.network.batch)
            return self._cosine(picture, prompts).cpu()

    @torch.no_grad()
    def features(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit features of images, of a video the mean over its frames, and of their prompts: float32 [N, D] each, on the CPU."""
        frames = images.reshape(-1, *images.shape[-3:])
        with self.network.ready():
            picture = batched(lambda cut: self._pictures(frames[cut]), len(frames), self.network.batch)
            return picture.unflatten(0, (len(prompts), -1)).mean(1).cpu(), self._distinct(prompts).cpu()

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Cosines [N] of float images [N, (T,) H, W, 3] in [0, 1], differentiable in them, on the images' device.

        Within 2e-3 of the scores of the rounded images: Pillow rounds to 8 bits after resizing.
        """
        del metadata
        frames = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2).to(self.network.device)
        with self.network.ready():
            return self._cosine(self._unit("encode_image", self.prepare(frames.float())), prompts).to(images.device)

    def _cosine(self, picture: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean over the frames [N * T, D] of each prompt's image."""
        return torch.einsum("nfd,nd->nf", picture.unflatten(0, (len(prompts), -1)), self._distinct(prompts)).mean(1)

    def _distinct(self, prompts: Sequence[str]) -> Tensor:
        """Features of the prompts [N, D]; the images of a group share theirs, which is encoded once."""
        row = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        distinct = list(row)
        with torch.no_grad():
            text = batched(lambda cut: self._texts(distinct[cut]), len(distinct), self.network.batch)
        return text[torch.tensor([row[prompt] for prompt in prompts], device=text.device)]

    def _pictures(self, frames: np.ndarray) -> Tensor:
        return self._unit("encode_image", torch.stack([self.preprocess(Image.fromarray(frame)) for frame in frames]))

    def _texts(self, prompts: list[str]) -> Tensor:
        return self._unit("encode_text", self.tokenize(prompts))

    def _unit(self, method: str, data: Tensor) -> Tensor:
        features: Tensor = getattr(self.network.model, method)(data.to(self.network.device))
        return nn.functional.normalize(features.float(), dim=-1)


def clip(variant: str | None = None, place: Place | None = None) -> Clip:
    """Cosine of the L2-normalised features of image and prompt; of a video the mean over its frames.

    cos(f_image(x), f_text(y)) in [-1, 1], in float32. Images go through the validation transform of the model's own configuration,
    prompts through its own tokenizer, which cuts them at its context length (77 tokens for CLIP).

    variant: None, the tiny model of the shapes world that comes with flowrl; "MODEL/PRETRAINED" as open_clip names them, such as
    "ViT-B-32/laion2b_s34b_b79k"; "hf-hub:OWNER/NAME"; or "local-dir:FOLDER" with open_clip_config.json and weights.
    Weights that are not on this machine are downloaded.

    Raises: ValueError for an unknown model or weights; FileNotFoundError for a missing folder; RuntimeError if loading fails.

    Source: CLIPScore (2104.08718); open_clip 3.3 `image_transform_v2`, `get_tokenizer`, and QuickGELU where the weights' own
    configuration says so.
    Differs: many scales of this number are in use. This is the raw cosine, 0.15 to 0.35 for OpenAI's ViT-L/14, as in Pref-GRPO
    (there ViT-H-14, laion2B) and in DiffusionNFT, whose logits / 100 are the same number because the model's scale is 100.
    flow_grpo and GARDO divide those logits by 30, so theirs is 3.33 times ours; torchmetrics gives max(100 cos, 0);
    CLIPScore itself 2.5 max(cos, 0) with "A photo depicts" before the prompt. Group-normalised advantages do not see the scale;
    a weighted sum of rewards and a KL coefficient do.
    """
    open_clip = _open_clip()
    name, weights = _resolve(variant or f"local-dir:{_embedded()}")
    tag: dict[str, Any] = open_clip.pretrained.get_pretrained_cfg(name, weights) if weights else {}
    try:
        model: Any = open_clip.create_model(
            name,
            pretrained=weights,
            precision="fp32",
            require_pretrained=True,
            # open_clip only warns where the activation differs from the one the weights were trained with
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
        )
    except Exception as error:
        raise RuntimeError(
            f"reward clip could not load {variant or EMBEDDED!r}: {error}; "
            "without network access give a folder: clip:local-dir:FOLDER"
        ) from error
    transform = open_clip.transform
    preprocess = transform.image_transform_v2(transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokenize = open_clip.get_tokenizer(name)
    return Clip((place or Place()).house(model), preprocess, _differentiable(preprocess), tokenize)


class _Size(NamedTuple):
    """What open_clip asks a picture for."""

    size: tuple[int, int]


def _differentiable(preprocess: Any) -> Callable[[Tensor], Tensor]:
    """open_clip's validation transform for tensors [N, 3, H, W] in [0, 1]: the same resize, crop and normalisation."""
    functional = importlib.import_module("torchvision.transforms.functional")

    def prepare(x: Tensor) -> Tensor:
        for part in preprocess.transforms:
            kind = type(part).__name__
            if kind == "ResizeKeepRatio":
                height, width = x.shape[-2:]
                x = functional.resize(x, part.get_params(_Size((width, height)), part.size, part.longest), part.interpolation)
            elif kind == "CenterCropOrPad":
                x = type(part)(part.size, fill=part.fill / 255)(x)
            elif kind not in ("MaybeConvertMode", "MaybeToTensor"):
                # bicubic overshoots, and 8 bits do not
                x = part(x.clamp(0, 1))
        return x

    return prepare


def _open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise ModuleNotFoundError('reward clip needs the package open_clip; pip install "open_clip_torch"') from error


def _resolve(variant: str) -> tuple[str, str | None]:
    """(model name or schema, weights) as open_clip wants them."""
    open_clip = _open_clip()
    if variant.startswith("local-dir:"):
        folder = Path(variant.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise FileNotFoundError(f"reward clip: {folder} is not a folder with open_clip_config.json and weights")
        return variant, None
    if variant.startswith("hf-hub:"):
        return variant, None
    name, slash, weights = variant.rpartition("/")
    if not slash or not name or not weights:
        known = "MODEL/PRETRAINED, such as ViT-B-32/laion2b_s34b_b79k, nor hf-hub:OWNER/NAME, nor local-dir:FOLDER"
        raise ValueError(f"reward clip: {variant!r} is not {known}")
    name = name.replace("/", "-")
    models: list[str] = open_clip.list_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3) or models[:5]
        raise ValueError(f"reward clip: open_clip has no model {name!r}; did you mean {' or '.join(near)}?")
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise ValueError(f"reward clip: open_clip has no weights {weights!r} for {name}; it has {', '.join(tags) or 'none'}")
    return name, weights


def _embedded() -> Path:
    try:
        assets = Path(str(importlib.resources.files("flowrl.assets")))
    except ModuleNotFoundError:
        # a checkout used without installing it: flowrl.assets is its folder assets/
        assets = Path(__file__).resolve().parent.parent / "assets"
    folder = assets / EMBEDDED
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the embedded CLIP model is missing: there is no {folder}; reinstall flowrl, or name a model: clip:MODEL/PRETRAINED"
        )
    return folder
