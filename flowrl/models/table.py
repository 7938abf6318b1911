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
