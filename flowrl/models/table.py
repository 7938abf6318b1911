"""Which pipeline belongs to which family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flowrl.recipe import PolicySpec

from .cogview4 import CogView4
from .family import Family
from .flux import Flux, kontext
from .flux2 import Flux2Klein
from .hunyuan_image import HunyuanVideoImage
from .hunyuan_video import HunyuanVideo
from .qwen_image import MOST, QwenImage
from .sd import SD, sdxl
from .sd3 import SD3
from .skyreels import SkyReels
from .wan import Wan
from .wan_image import WanImage
from .z_image import ZImage

FAMILIES: dict[str, Callable[[Any, PolicySpec], Family]] = {
    "StableDiffusion3Pipeline": SD3,  # SD3, SD3.5, and the embedded "shapes"
    "StableDiffusionPipeline": SD,  # 1.x and 2.x
    "StableDiffusionXLPipeline": sdxl,
    "FluxPipeline": Flux,  # dev, schnell
    "FluxKontextPipeline": kontext,
    "Flux2KleinPipeline": Flux2Klein,
    "CogView4Pipeline": CogView4,
    "HunyuanVideoPipeline": HunyuanVideo,
    "HunyuanVideoImageToVideoPipeline": HunyuanVideoImage,  # latents beside the first frame, or after it
    "HunyuanSkyreelsImageToVideoPipeline": SkyReels,
    "QwenImagePipeline": QwenImage,
    "QwenImageEditPipeline": partial(QwenImage, most=1),
    "QwenImageEditPlusPipeline": partial(QwenImage, most=MOST),  # Qwen-Image-Edit-2509 and -2511
    "ZImagePipeline": ZImage,  # Z-Image and Z-Image-Turbo
    "WanPipeline": Wan,  # 2.1, 2.2
    "WanImageToVideoPipeline": WanImage,  # 2.1 (and with the last frame), 2.2
}
"""Class name of a pipeline, `_class_name` of its model_index.json -> its family."""

READ_BY: dict[str, tuple[str, ...]] = {
    "guidance_rescale": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "guidance_cap": ("ZImagePipeline",),
    "edit": ("Flux2KleinPipeline",),
}
"""Settings of a PolicySpec that these pipelines alone read."""


def readable(spec: PolicySpec, name: str, family: Family) -> None:
    """Raises: ValueError for a setting that the family of this pipeline would not read."""
    why = {setting: f"only {' and '.join(readers)} has it" for setting, readers in READ_BY.items() if name not in readers}
    if not family.embeds:
        why["true_guidance"] = "the factor between its two predictions is policy.guidance"
    if len(family.modules) == 1:
        why["guidance_2"] = "the model has one expert"
    own = PolicySpec()
    for setting, reason in why.items():
        value = getattr(spec, setting)
        if value != getattr(own, setting):
            raise ValueError(f"policy.{setting} {value}: {name} does not read it, {reason}; take policy.{setting} out")
