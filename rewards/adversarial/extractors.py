"""Frozen networks that turn images into class and patch tokens."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.rewards.base import NotLoaded
from flowrl.rewards.place import Housed, Place

from .heads import Tokens

TIMM = {"dinov2": "vit_base_patch14_dinov2.lvd142m"}
"""Short names of timm models."""


class Extractor(Protocol):
    """Images uint8 [H, W, 3], sizes as they come -> all their tokens, float32 on the CPU, without a graph.

    width: D;  batch: images a call.
    """

    @property
    def width(self) -> int: ...

    @property
    def batch(self) -> int: ...

    def __call__(self, images: Sequence[np.ndarray]) -> Tokens: ...


@dataclass(frozen=True)
class Network:
    """A vision transformer. read: (model, pixels [N, 3, H, W]) -> (class tokens [N, D] or None, patches [N, K, D]); without a class
    token the mean of the patches stands for it."""

    network: Housed[nn.Module]
    prepare: Callable[[Sequence[np.ndarray]], Tensor]
    read: Callable[[nn.Module, Tensor], tuple[Tensor | None, Tensor]]
    width: int

    @property
    def batch(self) -> int:
        return self.network.batch

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tokens:
        pixels = self.prepare(images)
        with self.network.ready() as model:
            whole, patches = self.read(model, pixels.to(self.network.device, next(model.parameters()).dtype))
        patches = patches.float().cpu()
        return Tokens(patches.mean(1) if whole is None else whole.float().cpu(), patches)


def extractor(name: str = "", place: Place | None = None, layer: int = -1) -> Network:
    """A frozen extractor by name.

    name: "dinov2" (timm's vit_base_patch14_dinov2.lvd142m, images 518 x 518, 0.35 GB); "timm/NAME" (also "timm/local-dir:FOLDER");
    what `contrastive.clip` takes: "MODEL/PRETRAINED", "hf-hub:OWNER/NAME", "local-dir:FOLDER"; or "": the embedded tiny CLIP.
    layer: of an open_clip model, the block whose tokens are taken, -1 the last. Tokens pass the model's final norm.

    Raises: ValueError for a name nobody has or a layer there is not; ModuleNotFoundError where timm is not installed;
    NotLoaded where weights cannot be had.
    """
    if name in TIMM or name.startswith("timm/"):
        if layer != -1:
            raise ValueError(f"layer {layer} of {name} cannot be taken; only open_clip models give their inner layers")
        return _timm(TIMM.get(name, name.removeprefix("timm/")), place or Place())
    return _open_clip(name, place or Place(), layer)


def _open_clip(name: str, place: Place, layer: int) -> Network:
    from flowrl.rewards.contrastive.clip import clip

    loaded = clip(name or None, place).encoder
    vision: Any = loaded.network.model.visual
    if not hasattr(vision, "forward_intermediates"):
        raise ValueError(f"{name} has no tokens to look at ({type(vision).__name__}); use a vision transformer such as dinov2")
    blocks = len(getattr(getattr(vision, "transformer", None), "resblocks", ())) or None
    if blocks is not None and not -blocks <= layer < blocks:
        raise ValueError(f"layer {layer} of {name or 'the embedded CLIP'} does not exist; it has {blocks}, 0 to {blocks - 1}")

    def read(model: Any, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        told = model.visual.forward_intermediates(
            pixels,
            indices=1 if layer == -1 or blocks is None else [layer % blocks],
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        prefix = told.get("image_intermediates_prefix")
        whole = prefix[0][:, 0] if prefix and prefix[0] is not None and prefix[0].shape[1] else None
        return whole, told["image_intermediates"][0]

    return _measured(Network(loaded.network, loaded.preparation, read, 0))


def _timm(name: str, place: Place) -> Network:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError("this extractor needs the package timm; pip install timm") from error
    if not name.startswith(("local-dir:", "hf-hub:", "hf_hub:")) and not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() tells which there are")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise NotLoaded(
            f"timm could not load {name!r}: {error}; without network access save the model (timm.models.save_for_hf) and give its "
            "folder: timm/local-dir:FOLDER"
        ) from error
    return timm_extractor(model, place)


def timm_extractor(model: nn.Module, place: Place | None = None) -> Network:
    """Any timm model as an extractor: `forward_features`, prefix tokens apart; of a convolutional network every place of its last
    map is a patch. Images go through the model's own validation transform."""
    data = importlib.import_module("timm.data")
    preprocess = data.create_transform(**data.resolve_model_data_config(model), is_training=False)

    def prepare(images: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([preprocess(Image.fromarray(image)) for image in images])

    def read(network: Any, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        told = network.forward_features(pixels)
        if told.ndim == 4:
            last = told.shape[-1] == network.num_features
            return None, told.flatten(1, 2) if last else told.flatten(2).transpose(1, 2)
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        return (told[:, 0] if prefix else None), told[:, prefix:]

    return _measured(Network((place or Place()).house(model, batch=16), prepare, read, 0))


def _measured(network: Network) -> Network:
    """With the width of its tokens, by looking at a grey picture."""
    told = network([np.full((64, 64, 3), 127, np.uint8)])
    return Network(network.network, network.prepare, network.read, told.whole.shape[1])
