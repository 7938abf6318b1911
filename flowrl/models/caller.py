"""What a plain pipeline is called with, so that it draws as the policy of its family does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from flowrl.recipe import PolicySpec
from flowrl.rewards.pictures import read

from .table import FAMILIES, READ_BY, readable

SMALL: Mapping[str, Mapping[str, Any]] = {
    "shapes": {"guidance": 1.0, "max_sequence_length": 16},
    "shapes_video": {"guidance": 1.0, "height": 32, "width": 32, "frames": 9, "max_sequence_length": 16},
}
"""What the embedded models are called with, as they were trained, where nothing else is asked for."""


def takes(pipe: Any, name: str) -> bool:
    """Whether a pipeline's call has this argument."""
    return name in inspect.signature(type(pipe).__call__).parameters


def own(spec: PolicySpec) -> PolicySpec:
    """The spec with what an embedded model was trained with, where it leaves that open."""
    return replace(spec, **{name: value for name, value in SMALL.get(spec.model, {}).items() if getattr(spec, name) is None})


class Caller:
    """A pipeline's arguments beside prompt, steps and generator; of one without a family those that it has and the spec sets.

    spec.model: an embedded model's name stands for its `SMALL`.  pictured: the images that prompts come with are to be edited, by a
    model that also draws without one.

    Raises: ValueError for a size that the family cannot have, frames of a model of images, images for a model of texts, or a
    setting that it would not read.
    """

    def __init__(self, pipe: Any, spec: PolicySpec, pictured: bool = False) -> None:
        self.pipe, self.name = pipe, type(pipe).__name__
        spec = replace(own(spec), edit=spec.edit or (pictured and self.name in READ_BY["edit"]))
        if self.name in FAMILIES:
            family = FAMILIES[self.name](pipe, spec)
            readable(spec, self.name, family)
            guidance = family.guidance if spec.guidance is None else spec.guidance
            self.fixed = family.call_pipeline(guidance)
            if guidance > family.guider.above and not family.embeds and takes(pipe, "negative_prompt"):
                self.fixed.setdefault("negative_prompt", spec.negative)
            self.least, self.most = family.pictures
        else:
            self.fixed = self._signature(spec)
            self.least, self.most = 0, int(takes(pipe, "image"))
        if pictured and not self.most:
            raise ValueError(f"{self.name} draws from texts alone; take the images out (--image)")

    def _signature(self, spec: PolicySpec) -> dict[str, Any]:
        if spec.frames is not None and not takes(self.pipe, "num_frames"):
            raise ValueError(f"frames {spec.frames}: {self.name} draws images; take them out")
        wanted = {
            "guidance_scale": spec.guidance,
            "height": spec.height,
            "width": spec.width,
            "num_frames": spec.frames,
            "max_sequence_length": spec.max_sequence_length,
            "negative_prompt": spec.negative if (spec.guidance or 0) > 1 else None,
        }
        return {argument: value for argument, value in wanted.items() if value is not None and takes(self.pipe, argument)}

    def __call__(self, prompt: str, images: Sequence[Path] = ()) -> dict[str, Any]:
        """The arguments for a prompt and the images it comes with, which a model of texts alone is not shown.

        Raises: ValueError for fewer images than the model needs, or more than it takes.
        """
        if len(images) < self.least or len(images) > self.most > 0:
            count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            raise ValueError(f"the prompt {prompt!r} comes with {len(images)} images, and {self.name} takes {count}; see --image")
        shown = [Image.fromarray(read(file)) for file in images[: self.most]]
        if not shown:
            return self.fixed
        if len(shown) == 2 and takes(self.pipe, "last_image"):
            return {**self.fixed, "image": shown[0], "last_image": shown[1]}
        return {**self.fixed, "image": shown if len(shown) > 1 else shown[0]}
