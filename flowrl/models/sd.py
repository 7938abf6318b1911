"""Stable Diffusion 1 and 2, and SDXL: a discrete variance-preserving diffusion with a UNet, guidance in one doubled batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec

from . import ddim
from .family import Encoding, Pictures, per_channel, shown, size, still
from .guidance import Guider, rescaled

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline


class SD:
    """Latents [C, H / 8, W / 8]; u is the noise, or v = alpha x1 - sigma x0, as the scheduler's prediction_type says.

    xl: SDXL, with two text encoders, a pooled text and the image's size.
    The pipeline's scheduler is replaced: see `ddim.ddim`. Pictures are raw: neither a safety checker nor a watermark sees them.

    Source: diffusers 0.42.1 `StableDiffusionPipeline` and `StableDiffusionXLPipeline`, with a DDIMScheduler and eta 0.
    """

    modules = ("unet",)
    channels = 0
    fps = None
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    feed_forward = ("ff.net.0.proj", "ff.net.2")
    embeds = False
    pictures = (0, 0)

    def __init__(self, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, spec: PolicySpec, xl: bool = False) -> None:
        self.pipe: Any = pipe
        self.spec, self.xl = spec, xl
        name, config = "SDXL" if xl else "Stable Diffusion", pipe.unet.config
        if config.time_cond_proj_dim is not None:
            raise ValueError(f"this {name} is distilled to be told its guidance (time_cond_proj_dim); give the model it came from")
        if spec.max_sequence_length is not None:
            raise ValueError(
                f"max_sequence_length {spec.max_sequence_length}: {name} always reads {pipe.tokenizer.model_max_length} tokens; "
                "take policy.max_sequence_length out"
            )
        still(spec, name)
        self.scheduler = ddim.ddim(pipe.scheduler)
        pipe.register_modules(scheduler=self.scheduler)
        self.path = ddim.path(self.scheduler)
        scale, own = pipe.vae_scale_factor, config.sample_size
        height, width = (own, own) if isinstance(own, int) else own
        self.size = size(spec, height * scale, width * scale, scale)
        self.shape = (config.in_channels, self.size.height // scale, self.size.width // scale)
        self.pixels = self.size.height * self.size.width
        self.guidance = 5.0 if xl else 7.5
        self.guider = Guider(rescaled(spec.guidance_rescale), joined=True)
        if pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
            pipe.vae.to(torch.float32)  # SDXL's autoencoder overflows in float16

    def sigmas(self, steps: int) -> Tensor:
        return ddim.visited(self.scheduler, steps)

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        """SDXL: the empty text is zeros where the pipeline makes its missing negative prompt so (force_zeros_for_empty_prompt)."""
        pipe = self.pipe
        alone: dict[str, Any] = {"device": None, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if not self.xl:
            return {"encoder_hidden_states": pipe.encode_prompt([text], **alone)[0][0]}
        embeds, _, pooled, _ = pipe.encode_prompt([text], **alone)
        drawn = (self.size.height, self.size.width)
        width = pooled.shape[-1] if pipe.text_encoder_2 is None else pipe.text_encoder_2.config.projection_dim
        times = pipe._get_add_time_ids(drawn, (0, 0), drawn, dtype=embeds.dtype, text_encoder_projection_dim=width)
        kept = 0.0 if not text and pipe.config.force_zeros_for_empty_prompt else 1.0
        return {"encoder_hidden_states": embeds[0] * kept, "text_embeds": pooled[0] * kept, "time_ids": times[0].to(embeds.device)}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        added = {name: part for name, part in given.items() if name != "encoder_hidden_states"}
        text = given["encoder_hidden_states"]
        time = self.path.time(sigma)
        return network(x, time, encoder_hidden_states=text, added_cond_kwargs=added or None, return_dict=False)[0].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = latents.to(vae.dtype)
        if self.xl and vae.config.latents_mean is not None and vae.config.latents_std is not None:
            z = z * per_channel(vae.config.latents_std, z) / vae.config.scaling_factor + per_channel(vae.config.latents_mean, z)
        else:
            z = z / vae.config.scaling_factor
        return shown(vae.decode(z, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "guidance_rescale": self.spec.guidance_rescale,
            "height": self.size.height,
            "width": self.size.width,
            # to SDXL "" is a text, and only None is zeros
            **({"negative_prompt": self.spec.negative or None} if self.xl else {}),
        }


def sdxl(pipe: StableDiffusionXLPipeline, spec: PolicySpec) -> SD:
    return SD(pipe, spec, xl=True)
