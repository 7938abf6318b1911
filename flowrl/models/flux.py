"""FLUX.1: packed tokens, guidance told to the network (dev) or unknown to it (schnell), two predictions where a factor is given.
Kontext edits: the picture that comes with a prompt is a second set of tokens, and its part of the answer is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import JOINT, Encoding, Pictures, linear_mu, shown, size, still, tokens, visited
from .guidance import Guider
from .references import by_place

if TYPE_CHECKING:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline


class Flux:
    """Latents [H / 16 * W / 16, 4 C], u = v. A network that is not told a guidance (schnell) has none.

    edits: a prompt comes with a picture, which is scaled to the one of Kontext's own resolutions (about a million pixels) that is
    nearest its shape, as the pipeline does, whatever the size that is drawn.
    targets: attention of both streams and of the single-stream blocks.  feed_forward: without the output of a single-stream block
    (proj_out), whose ending is also the network's last layer's.

    Raises: ValueError for a guidance above 1 where the network is not told it.
    Source: diffusers 0.42.1 `FluxPipeline` and `FluxKontextPipeline`; the targets of flow_grpo `scripts/train_flux.py`.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = -1
    fps = None
    targets = JOINT
    feed_forward = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp")
    guider = Guider()
    embeds = True
    guidance = 3.5

    def __init__(self, pipe: FluxPipeline | FluxKontextPipeline, spec: PolicySpec, edits: bool = False) -> None:
        self.pipe: Any = pipe
        self.spec, self.edits = spec, edits
        self.pictures = (1, 1) if edits else (0, 0)
        self.multiple = 2 * pipe.vae_scale_factor
        own = pipe.default_sample_size * pipe.vae_scale_factor
        self.size = size(spec, own, own, self.multiple)
        self.tokens = tokens(spec, 512, 512)
        still(spec, "FLUX.1")
        if not pipe.transformer.config.guidance_embeds:
            _untold(spec)
            self.guidance = 0.0
        self.grid = (self.size.height // self.multiple, self.size.width // self.multiple)
        self.shape = (self.grid[0] * self.grid[1], pipe.transformer.config.in_channels)
        self.pixels = self.size.height * self.size.width

    def sigmas(self, steps: int) -> Tensor:
        """With use_dynamic_shifting (dev) mu is linear in the number of image tokens; references do not count."""
        even = np.linspace(1.0, 1 / max(steps, 1), max(steps, 0)).tolist()
        return visited(self.pipe.scheduler, steps, even, linear_mu(self.pipe.scheduler, self.shape[0]))

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, pooled, _ = self.pipe.encode_prompt(prompt=[text], prompt_2=[text], max_sequence_length=self.tokens)
        found = {"encoder_hidden_states": embeds[0], "pooled_projections": pooled[0]}
        return {**found, **self._reference(pictures[0])} if self.edits else found

    def _reference(self, picture: np.ndarray) -> dict[str, Tensor]:
        from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
        from PIL import Image

        image = Image.fromarray(picture)
        tall, wide = self.pipe.image_processor.get_default_height_width(image)
        near = min(PREFERRED_KONTEXT_RESOLUTIONS, key=lambda known: (abs(wide / tall - known[0] / known[1]), *known))
        width, height = (side // self.multiple * self.multiple for side in near)
        scaled = self.pipe.image_processor.resize(image, height, width)
        image = self.pipe.image_processor.preprocess(scaled, height, width)
        vae, channels = self.pipe.vae, self.shape[1] // 4
        none = torch.zeros(1, *self.shape)  # given, so that no noise is drawn
        _, latents, _, places = self.pipe.prepare_latents(image, 1, channels, height, width, vae.dtype, vae.device, None, none)
        return {"latents": latents[0], "places": places.long()}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = (sigma * self.pipe.scheduler.config.num_train_timesteps).to(x.dtype) / 1000
        drawn = self.pipe._prepare_latent_image_ids(1, *self.grid, x.device, torch.int64)
        text = drawn.new_zeros(given["encoder_hidden_states"].shape[1], 3)
        told = torch.full_like(time, guidance, dtype=torch.float32) if self.pipe.transformer.config.guidance_embeds else None

        def ask(rows: Tensor, places: Tensor) -> Tensor:
            seen = x[rows] if not len(places) else torch.cat([x[rows], given["latents"][rows, : len(places)].to(x.dtype)], 1)
            answer = network(
                hidden_states=seen,
                timestep=time[rows],
                guidance=None if told is None else told[rows],
                pooled_projections=given["pooled_projections"][rows],
                encoder_hidden_states=given["encoder_hidden_states"][rows],
                txt_ids=text,
                img_ids=torch.cat([drawn, places]),
                return_dict=False,
            )[0]
            return answer[:, : x.shape[1]].float()

        return by_place(given["places"] if self.edits else drawn.new_zeros(len(x), 1, 3), ask)

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = self.pipe._unpack_latents(latents.to(vae.dtype), self.size.height, self.size.width, self.pipe.vae_scale_factor)
        return shown(vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "true_cfg_scale": self.spec.true_guidance,
            "height": self.size.height,
            "width": self.size.width,
            "max_sequence_length": self.tokens,
            **({"max_area": self.pixels} if self.edits else {}),
        }


def _untold(spec: PolicySpec) -> None:
    """Raises: ValueError for a guidance that would be ignored; 1 and less is none anyway."""
    if (spec.guidance or 0) > 1:
        told = f"policy.guidance {spec.guidance:g}"
        raise ValueError(f"{told}: this network is not told a guidance (schnell); take policy.guidance out")


def kontext(pipe: FluxKontextPipeline, spec: PolicySpec) -> Flux:
    return Flux(pipe, spec, edits=True)
