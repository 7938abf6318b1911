"""SkyReels V1, image to video: HunyuanVideo with the first frame beside the latents on channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, photo
from .guidance import Guider
from .hunyuan_image import apart, padded
from .hunyuan_video import HunyuanVideo

if TYPE_CHECKING:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_skyreels_image2video import HunyuanSkyreelsImageToVideoPipeline


class SkyReels:
    """Latents [C, T', H / 8, W / 8] beside those of the first frame on channels, u = v.

    Source: diffusers 0.42.1 `HunyuanSkyreelsImageToVideoPipeline`.
    Differs: the pipeline draws the first frame's latents from their posterior anew in every call; here they are drawn by a
    generator of seed 0, always the same.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = HunyuanVideo.fps
    targets, feed_forward = HunyuanVideo.targets, HunyuanVideo.feed_forward
    guider = Guider()
    pictures = (1, 1)

    def __init__(self, pipe: HunyuanSkyreelsImageToVideoPipeline, spec: PolicySpec) -> None:
        self.pipe = pipe
        self.text: Any = HunyuanVideo(pipe, spec, (544, 960, 97), 1.0)  # pyright: ignore[reportArgumentType]
        self.embeds, self.guidance = self.text.embeds, self.text.guidance
        self.shape, self.pixels = self.text.shape, self.text.pixels
        self.sigmas, self.expert, self.call_pipeline = self.text.sigmas, self.text.expert, self.text.call_pipeline
        self.whole, self.decode = self.text.whole, self.text.decode

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        pipe, size, device = self.pipe, self.text.size, self.pipe.vae.device
        ready = pipe.video_processor.preprocess(photo(pictures[0]), size.height, size.width).to(device, pipe.vae.dtype)
        _, latents = pipe.prepare_latents(
            ready, 1, self.shape[0], size.height, size.width, self.text.frames, torch.float32, device,
            torch.Generator().manual_seed(0), torch.zeros(()),
        )  # fmt: skip
        return {**self.text.encode(text, ()), "first": latents[0, :, :1]}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        others, first = apart(given)
        return self.text.call(network, torch.cat([x, padded(first, x)], 1), sigma, others, guidance)
