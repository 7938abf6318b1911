"""Wan 2.1 and 2.2, text to video: a flow, static shift, two predictions in two calls; 2.2 has an expert for high noise and one for
low."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, euler, frames, per_channel, shown, size, tokens, visited
from .guidance import Guider

if TYPE_CHECKING:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline


class Wan:
    """Latents [C, T', H / 8, W / 8], u = v; T' = (T - 1) / 4 + 1. 2.2 5B: a sixteenth of H and W, 24 frames a second.

    Raises: ValueError for an expert that is missing.

    Source: diffusers 0.42.1 `WanPipeline`, with a FlowMatchEulerDiscreteScheduler in the place of the UniPC one that checkpoints
    bring. It is given the same shift.
    Differs: guidance_2 of 1 or less is no guidance there, and the pipeline combines. With expand_timesteps the pipeline tells every
    token the level, which is the same for all: here the network is told once.
    """

    path = paths.flow
    channels = 0
    targets = tuple(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0"))
    feed_forward = ("ffn.net.0.proj", "ffn.net.2")
    guider = Guider()
    embeds = False
    guidance = 5.0
    pictures = (0, 0)

    def __init__(self, pipe: WanPipeline, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        self.modules = experts(pipe)
        self.scheduler = euler(pipe.scheduler)
        own: Any = pipe.config
        self.boundary: float | None = own.boundary_ratio
        self.fps = 24.0 if own.expand_timesteps else 16.0
        config: Any = getattr(pipe, self.modules[0]).config
        space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        patch = lcm(*config.patch_size[1:])
        self.size = size(spec, 480, 832, lcm(16, space * patch), config.rope_max_seq_len * space * min(config.patch_size[1:]))
        self.frames = frames(spec, 81, time)
        self.tokens = tokens(spec, 512, 512)
        self.shape = (pipe.vae.config.z_dim, (self.frames - 1) // time + 1, self.size.height // space, self.size.width // space)
        self.pixels = self.size.height * self.size.width * self.frames

    def sigmas(self, steps: int) -> Tensor:
        return visited(self.scheduler, steps)

    def expert(self, sigma: float) -> int:
        """1, the one for low noise, below the boundary. Levels are compared as the pipeline's times are, in float32."""
        if self.boundary is None:
            return 0
        trained = self.scheduler.config.num_train_timesteps
        return int(np.float32(sigma) * np.float32(trained) < np.float32(self.boundary * trained))

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, _ = self.pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=self.tokens)
        return {"encoder_hidden_states": embeds[0]}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = sigma * self.scheduler.config.num_train_timesteps
        return network(hidden_states=x, timestep=time, **given, return_dict=False)[0].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = latents.to(vae.dtype)
        # the pipeline's rounding: it divides by 1 / std
        z = z / (1 / per_channel(vae.config.latents_std, z)) + per_channel(vae.config.latents_mean, z)
        return shown(vae.decode(z, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        second = {} if self.spec.guidance_2 is None else {"guidance_scale_2": self.spec.guidance_2}
        return {
            "guidance_scale": guidance,
            **second,
            "height": self.size.height,
            "width": self.size.width,
            "num_frames": self.frames,
            "max_sequence_length": self.tokens,
        }


def experts(pipe: Any) -> tuple[str, ...]:
    """The networks that predict: the second one only where the pipeline has a boundary between them.

    Raises: ValueError for an expert that is missing.
    """
    names = ("transformer",) if pipe.config.boundary_ratio is None else ("transformer", "transformer_2")
    missing = [name for name in names if getattr(pipe, name) is None]
    if missing:
        raise ValueError(f"this {type(pipe).__name__} lacks its {missing[0]}; load the model with both experts, or the one it has")
    return names
