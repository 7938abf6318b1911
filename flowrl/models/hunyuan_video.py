"""HunyuanVideo, text to video: a flow, static shift, guidance told to the network, and two predictions where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import JOINT, Encoding, Pictures, frames, shown, size, tokens, visited
from .guidance import Guider

if TYPE_CHECKING:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline

OWN = (720, 1280, 129)


class HunyuanVideo:
    """Latents [C, T', H / 8, W / 8], u = v; T' = (T - 1) / 4 + 1. A network that does not embed guidance is told nothing; guidance
    is then the factor between two predictions.

    targets: joint attention of both kinds of blocks, and that of the text refiner.

    Source: diffusers 0.42.1 `HunyuanVideoPipeline`; 24 frames a second as in 2412.03603.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = 24.0
    targets = JOINT
    feed_forward = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp")
    guider = Guider()
    pictures = (0, 0)

    def __init__(
        self, pipe: HunyuanVideoPipeline, spec: PolicySpec, own: tuple[int, int, int] = OWN, guidance: float = 6.0
    ) -> None:
        """own, guidance: height, width, frames and told guidance where none are given."""
        self.pipe, self.spec = pipe, spec
        config: Any = pipe.transformer.config
        space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        self.size = size(spec, *own[:2], lcm(16, space * config.patch_size))
        self.frames = frames(spec, own[2], time)
        self.tokens = tokens(spec, 256, 512)
        self.embeds: bool = config.guidance_embeds
        self.guidance = guidance if self.embeds else 1.0
        channels: int = pipe.vae.config.latent_channels
        self.shape = (channels, (self.frames - 1) // time + 1, self.size.height // space, self.size.width // space)
        self.pixels = self.size.height * self.size.width * self.frames

    def sigmas(self, steps: int) -> Tensor:
        return visited(self.pipe.scheduler, steps, np.linspace(1.0, 0.0, steps + 1)[:-1].tolist())

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, pooled, mask = self.pipe.encode_prompt([text], max_sequence_length=self.tokens)
        assert mask is not None
        return encoding(embeds, pooled, mask)

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = sigma * self.pipe.scheduler.config.num_train_timesteps
        # rounded before it is scaled, as the pipeline does
        told = x.new_full((len(x),), guidance) * 1000.0 if self.embeds else None
        return network(hidden_states=x, timestep=time, guidance=told, **given, return_dict=False)[0].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        return shown(vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        told = {"guidance_scale": guidance, "true_cfg_scale": self.spec.true_guidance}
        return {
            **(told if self.embeds else {"true_cfg_scale": guidance}),
            "height": self.size.height,
            "width": self.size.width,
            "num_frames": self.frames,
            "max_sequence_length": self.tokens,
        }


def encoding(embeds: Tensor, pooled: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What the pipelines' encode_prompt answers of one prompt, as the network takes it: the mask is floating, too."""
    return {"encoder_hidden_states": embeds[0], "pooled_projections": pooled[0], "encoder_attention_mask": mask[0].float()}
