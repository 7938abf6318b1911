"""Stable Diffusion 3 and 3.5, and the embedded shapes model: a flow, static or dynamic shift, guidance in one doubled batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import JOINT, Encoding, Pictures, linear_mu, shown, size, still, tokens, visited
from .guidance import Guider

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline


class SD3:
    """Latents [C, H / 8, W / 8], u = v.

    targets: joint attention of both streams; not the second attention (attn2) of SD3.5-medium.

    Source: diffusers 0.42.1 `StableDiffusion3Pipeline`; the targets of flow_grpo `scripts/train_sd3.py`.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = None
    targets = JOINT
    feed_forward = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    guider = Guider(joined=True)
    embeds = False
    guidance = 1.0
    pictures = (0, 0)

    def __init__(self, pipe: StableDiffusion3Pipeline, spec: PolicySpec) -> None:
        self.pipe = pipe
        config, scale = pipe.transformer.config, pipe.vae_scale_factor
        own, most = config.sample_size * scale, config.pos_embed_max_size * config.patch_size * scale
        self.size = size(spec, own, own, config.patch_size * scale, most)
        self.tokens = tokens(spec, 256, 512)
        still(spec, "Stable Diffusion 3")
        self.shape = (config.in_channels, self.size.height // scale, self.size.width // scale)
        self.pixels = self.size.height * self.size.width

    def sigmas(self, steps: int) -> Tensor:
        """With use_dynamic_shifting mu is linear in the number of image tokens."""
        scheduler, patch = self.pipe.scheduler, self.pipe.transformer.config.patch_size
        _, height, width = self.shape
        mu = linear_mu(scheduler, (height // patch) * (width // patch)) if scheduler.config.use_dynamic_shifting else None
        return visited(scheduler, steps, mu=mu)

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[text],
            prompt_2=[text],
            prompt_3=[text],
            do_classifier_free_guidance=False,
            max_sequence_length=self.tokens,
        )
        assert embeds is not None and pooled is not None
        return {"encoder_hidden_states": embeds[0], "pooled_projections": pooled[0]}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = sigma * self.pipe.scheduler.config.num_train_timesteps
        return network(hidden_states=x, timestep=time, **given, return_dict=False)[0].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return shown(vae.decode(z, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "height": self.size.height,
            "width": self.size.width,
            "max_sequence_length": self.tokens,
        }
