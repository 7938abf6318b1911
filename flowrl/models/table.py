"""Which pipeline belongs to which family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowrl.recipe import PolicySpec

from .family import Family
from .sd3 import SD3
from .wan import Wan

FAMILIES: dict[str, Callable[[Any, PolicySpec], Family]] = {
    "StableDiffusion3Pipeline": SD3,  # SD3, SD3.5, and the embedded "shapes"
    "WanPipeline": Wan,  # 2.1, 2.2
}
"""Class name of a pipeline, `_class_name` of its model_index.json -> its family."""
