"""FLUX.2 klein: two predictions in two calls (base) or one (distilled), and pictures to edit as tokens behind the image's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths, schedules

from .family import JOINT, Encoding, Pictures, shown, size, still, tokens, visited
from .guidance import Guider
from .references import by_place

if TYPE_CHECKING:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline


class Flux2Klein:
    """Latents [4 C, H / 16, W / 16], u = v; the autoencoder's batch norm gives them their scale.

    With policy.edit each prompt comes with 1 to 4 pictures: above 1024 x 1024 pixels they are scaled down, then cropped to whole
    tokens, as the pipeline does.
    targets: attention of both streams, and the two layers of a single-stream block, in which attention and feed-forward are one.

    Source: diffusers 0.42.1 `Flux2KleinPipeline`.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = None
    attention = (*JOINT, "attn.to_qkv_mlp_proj")
    feed_forward = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
    embeds = False

    def __init__(self, pipe: Flux2KleinPipeline, spec: PolicySpec) -> None:
        self.pipe: Any = pipe
        self.spec = spec
        # a distilled network is asked once, whatever the scale
        self.guider = Guider(above=float("inf")) if self.pipe.config.is_distilled else Guider()
        self.guidance = 1.0 if self.pipe.config.is_distilled else 4.0
        # by number: "attn.to_out" alone would also name the list that holds a double block's attn.to_out.0
        single = range(pipe.transformer.config.num_single_layers)
        self.targets = (*self.attention, *(f"single_transformer_blocks.{i}.attn.to_out" for i in single))
        self.pictures = (1, 4) if spec.edit else (0, 0)
        self.multiple = 2 * pipe.vae_scale_factor
        own = pipe.default_sample_size * pipe.vae_scale_factor
        self.size = size(spec, own, own, self.multiple)
        self.tokens = tokens(spec, 512, 512)
        still(spec, "FLUX.2")
        self.shape = (pipe.transformer.config.in_channels, self.size.height // self.multiple, self.size.width // self.multiple)
        self.pixels = self.size.height * self.size.width

    def sigmas(self, steps: int) -> Tensor:
        """mu depends on the number of steps as well; references do not count."""
        even = np.linspace(1.0, 1 / max(steps, 1), max(steps, 0)).tolist()
        return visited(self.pipe.scheduler, steps, even, schedules.flux2_mu(self.shape[1] * self.shape[2], steps))

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        embeds, _ = self.pipe.encode_prompt(prompt=[text], max_sequence_length=self.tokens)
        found = {"encoder_hidden_states": embeds[0]}
        if not pictures:
            return found
        images, vae = [self._scaled(picture) for picture in pictures], self.pipe.vae
        latents, places = self.pipe.prepare_image_latents(images, 1, None, vae.device, vae.dtype)
        return {**found, "latents": latents[0], "places": places[0]}

    def _scaled(self, picture: np.ndarray) -> Tensor:
        """Raises: ValueError for a picture below 64 pixels a side, or more than 8 times as long as wide."""
        from PIL import Image

        processor = self.pipe.image_processor
        image = processor._resize_if_exceeds_area(processor.check_image_input(Image.fromarray(picture)))
        width, height = (side // self.multiple * self.multiple for side in image.size)
        return processor.preprocess(image, height=height, width=width, resize_mode="crop")

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = (sigma * self.pipe.scheduler.config.num_train_timesteps).to(x.dtype) / 1000
        drawn, packed = self.pipe._prepare_latent_ids(x[:1])[0].to(x.device), self.pipe._pack_latents(x)
        text = self.pipe._prepare_text_ids(given["encoder_hidden_states"][:1])[0].to(x.device)

        def ask(rows: Tensor, places: Tensor) -> Tensor:
            seen = packed[rows]
            if len(places):
                seen = torch.cat([seen, given["latents"][rows, : len(places)].to(x.dtype)], 1)
            answer = network(
                hidden_states=seen,
                timestep=time[rows],
                guidance=None,
                encoder_hidden_states=given["encoder_hidden_states"][rows],
                txt_ids=text,
                img_ids=torch.cat([drawn, places]),
                return_dict=False,
            )[0]
            return answer[:, : packed.shape[1]].float().mT.unflatten(2, self.shape[1:])

        return by_place(given.get("places", drawn.new_zeros(len(x), 1, 4)), ask)

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = latents.to(vae.dtype)
        mean, variance = (part.view(1, -1, 1, 1).to(z) for part in (vae.bn.running_mean, vae.bn.running_var))
        z = self.pipe._unpatchify_latents(z * (variance + vae.config.batch_norm_eps).sqrt() + mean)
        return shown(vae.decode(z, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "height": self.size.height,
            "width": self.size.width,
            "max_sequence_length": self.tokens,
        }
