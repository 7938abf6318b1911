"""HunyuanVideo, image to video: the first frame lies beside the latents on channels, or is their first frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, photo
from .guidance import Guider
from .hunyuan_video import HunyuanVideo, encoding

if TYPE_CHECKING:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import HunyuanVideoImageToVideoPipeline

NOISE = 0.999
"""Of what the image pipeline begins with; the rest is the first frame's latents, in every frame."""
INTERLEAVE = {"latent_concat": 2, "token_replace": 4}
"""Every n-th token that the text encoder makes of the image is kept."""


class HunyuanVideoImage:
    """u = v; the encoding holds the first frame's latents, and text tokens that saw the image.

    latent_concat: latents [C, T', H / 8, W / 8] beside the first frame and a mask; the pipeline cuts the first 4 frames off the
    video.  token_replace: the first latent frame is the given one, so that the state is [C, T' - 1, ...].

    The pipeline begins at z = 0.999 noise + 0.001 first frame. The state is x = (z - 0.001 first) / 0.999: it begins with noise and
    goes the same way, with u = dz/dsigma / 0.999.

    Raises: ValueError for fewer than 5 frames, or a network of unknown condition.

    Source: diffusers 0.42.1 `HunyuanVideoImageToVideoPipeline`.
    Differs: below float32 the first frame is rounded to the network's dtype.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = HunyuanVideo.fps
    targets, feed_forward = HunyuanVideo.targets, HunyuanVideo.feed_forward
    guider = Guider()
    pictures = (1, 1)

    def __init__(self, pipe: HunyuanVideoImageToVideoPipeline, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        self.text: Any = HunyuanVideo(pipe, spec, guidance=1.0)  # pyright: ignore[reportArgumentType]
        self.embeds, self.guidance = self.text.embeds, self.text.guidance
        self.sigmas, self.expert, self.call_pipeline = self.text.sigmas, self.text.expert, self.text.call_pipeline
        self.kind: str = pipe.transformer.config.image_condition_type
        if self.kind not in INTERLEAVE:
            raise ValueError(f"image_condition_type {self.kind!r} of this transformer: give one that has {' or '.join(INTERLEAVE)}")
        self.replaces = self.kind == "token_replace"
        self.cut = 0 if self.replaces else 4
        if self.text.frames < 5:
            raise ValueError(f"frames {self.text.frames}: the first is given; give at least 5")
        channels, count, height, width = self.text.shape
        self.shape = (channels, count - self.replaces, height, width)
        self.pixels = self.text.size.height * self.text.size.width * (self.text.frames - self.cut)

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        return self._encoded(text, pictures, photo(pictures[0]), INTERLEAVE[self.kind])

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        """The text encoder sees black, and the pipeline leaves the interleave at its default."""
        size = self.text.size
        return self._encoded(text, pictures, photo(np.zeros((size.height, size.width, 3), np.uint8)), 2)

    def _encoded(self, text: str, pictures: Pictures, seen: Any, every: int) -> Encoding:
        pipe, size = self.pipe, self.text.size
        ready = pipe.video_processor.preprocess(photo(pictures[0]), size.height, size.width).to(pipe.vae.device, pipe.vae.dtype)
        _, latents = pipe.prepare_latents(
            ready, 1, self.shape[0], size.height, size.width, self.text.frames, torch.float32, pipe.vae.device,
            latents=torch.zeros(()), image_condition_type=self.kind,
        )  # fmt: skip
        found = pipe.encode_prompt(seen, [text], max_sequence_length=self.text.tokens, image_embed_interleave=every)
        return {**encoding(*found), "first": latents[0, :, :1]}

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        others, first = apart(given)
        z = self.whole(x, given)
        if self.replaces:
            return self.text.call(network, z, sigma, others, guidance)[:, :, 1:] / NOISE
        beside = torch.cat([first, torch.ones_like(first[:, :1])], 1)
        return self.text.call(network, torch.cat([z, padded(beside, z)], 1), sigma, others, guidance) / NOISE

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        share, first = torch.tensor(NOISE), given["first"]
        z = (x.float() * share + first.float() * (1 - share)).to(x.dtype)
        return torch.cat([first.to(x.dtype), z], 2) if self.replaces else z

    def begin(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([given["first"].to(x.dtype), x], 2) if self.replaces else x

    def decode(self, latents: Tensor) -> Tensor:
        return self.text.decode(latents)[:, self.cut :]


def apart(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What the network takes by name, and the first frame's latents [N, C, 1, ...]."""
    return {name: part for name, part in given.items() if name != "first"}, given["first"]


def padded(first: Tensor, x: Tensor) -> Tensor:
    """A first frame [N, c, 1, ...] with frames of zeros after it, as many as x [N, C, T', ...] has."""
    return torch.cat([first, first.new_zeros(*first.shape[:2], x.shape[2] - 1, *first.shape[3:])], 2).to(x.dtype)
