"""CogView4: two predictions in two calls, and a network that is told the level as it was before its shift."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, shown, size, still, tokens, visited
from .guidance import Guider
from .references import by_key

if TYPE_CHECKING:
    from diffusers.pipelines.cogview4.pipeline_cogview4 import CogView4Pipeline

WHOLE = 1e-2
"""A time this near a whole number is that number: the pipeline's are whole, and unshifting a float32 level misses them by 1e-3."""


class CogView4:
    """Latents [C, H / 8, W / 8], u = v.

    sigma = m s / (1 + (m - 1) s) of the unshifted level s, m the shift of the scheduler or, where it is dynamic, 0.25 + 0.75
    sqrt(tokens / 256); the network is told 1000 s. Texts are padded on the left to a multiple of 16 without a mask, so texts of
    different length are asked in calls of their own.

    Source: diffusers 0.42.1 `CogView4Pipeline`.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = None
    targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    feed_forward = ("ff.net.0.proj", "ff.net.2")
    guider = Guider()
    embeds = False
    guidance = 5.0
    pictures = (0, 0)

    def __init__(self, pipe: CogView4Pipeline, spec: PolicySpec) -> None:
        self.pipe: Any = pipe
        self.spec = spec
        config: Any = pipe.transformer.config
        space: int = pipe.vae_scale_factor
        own = config.sample_size * space
        self.size = size(spec, own, own, lcm(16, space * config.patch_size))
        self.tokens = tokens(spec, 1024, 1024)
        still(spec, "CogView4")
        self.shape = (config.in_channels, self.size.height // space, self.size.width // space)
        self.pixels = self.size.height * self.size.width

    @property
    def mu(self) -> float:
        config = self.pipe.scheduler.config
        count = self.shape[1] * self.shape[2] // self.pipe.transformer.config.patch_size**2
        return (count / config.base_image_seq_len) ** 0.5 * config.max_shift + config.base_shift

    @property
    def trained(self) -> int:
        return self.pipe.scheduler.config.num_train_timesteps

    def sigmas(self, steps: int) -> Tensor:
        """Whole times from 1000 to 1, shifted."""
        times = np.linspace(self.trained, 1.0, max(steps, 1)).astype(np.int64).astype(np.float32)
        return visited(self.pipe.scheduler, steps, (times / self.trained)[: max(steps, 0)].tolist(), self.mu)

    def times(self, sigma: Tensor) -> Tensor:
        """What the network is told at these levels, float32."""
        scheduler, level = self.pipe.scheduler, sigma.double()
        shift: float = scheduler.shift
        if scheduler.config.use_dynamic_shifting:
            shift = self.mu if scheduler.config.time_shift_type == "linear" else exp(self.mu)
        time = self.trained * level / (shift - (shift - 1) * level)
        near = time.round()
        return torch.where((time - near).abs() < WHOLE, near, time).float()

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, _ = self.pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=self.tokens)
        return {"encoder_hidden_states": embeds[0], "length": torch.tensor([embeds.shape[1]])}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time, texts = self.times(sigma), given["encoder_hidden_states"]
        drawn = x.new_tensor([[self.size.height, self.size.width]])

        def ask(rows: Tensor, length: Tensor) -> Tensor:
            sizes = drawn.expand(len(rows), 2)
            return network(
                hidden_states=x[rows],
                encoder_hidden_states=texts[rows, : int(length)],
                timestep=time[rows],
                original_size=sizes,
                target_size=sizes,
                crop_coords=torch.zeros_like(sizes),
                return_dict=False,
            )[0].float()

        return by_key(given["length"], ask)

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        return shown(vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "height": self.size.height,
            "width": self.size.width,
            "max_sequence_length": self.tokens,
        }
