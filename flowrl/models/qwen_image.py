"""Qwen-Image and its two editors: packed latents, a text encoder that sees pictures, and guidance rescaled token by token."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, linear_mu, per_channel, shown, size, still, tokens, visited
from .guidance import Guider, token_norm
from .references import by_place

MOST = 16
"""Pictures a prompt may come with: 3 is what Qwen-Image-Edit-2509 was trained on, the pipeline knows no limit."""


class QwenImage:
    """Latents [H / 16 * W / 16, 4 C], 2 x 2 patches as tokens, u = v.

    most: pictures that are edited; their clean latents follow the image's tokens and are cut from the answer. With one picture the
      text encoder sees it as large as the autoencoder does, with more of them at 384 x 384.

    Source: diffusers 0.42.1 `QwenImagePipeline`, `QwenImageEditPipeline`, `QwenImageEditPlusPipeline`.
    Differs: an edit has one size, policy.height x policy.width, where the pipelines take the last picture's shape by default.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = -1
    fps = None
    targets = (
        *(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{layer}" for layer in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    )
    feed_forward = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    guider = Guider(token_norm)
    embeds = False
    guidance = 1.0

    def __init__(self, pipe: Any, spec: PolicySpec, most: int = 0) -> None:
        """Raises: ValueError for a size or length the pipeline cannot have."""
        self.pipe, self.pictures = pipe, (min(1, most), most)
        scale, own = pipe.vae_scale_factor, pipe.default_sample_size * pipe.vae_scale_factor
        self.size = size(spec, own, own, 2 * scale)
        if most and spec.max_sequence_length:
            raise ValueError(
                f"max_sequence_length {spec.max_sequence_length}: {type(pipe).__name__} reads every text to its end; take it out"
            )
        self.tokens = tokens(spec, 512, 1024)
        still(spec, type(pipe).__name__)
        self.grid = (1, self.size.height // scale // 2, self.size.width // scale // 2)
        self.shape = (prod(self.grid), pipe.transformer.config.in_channels)
        self.pixels = self.size.height * self.size.width

    def sigmas(self, steps: int) -> Tensor:
        even = np.linspace(1.0, 1 / max(1, steps), steps)
        return visited(self.pipe.scheduler, steps, even.tolist(), linear_mu(self.pipe.scheduler, self.shape[0]))

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        if not pictures:
            return _text(self.pipe.encode_prompt([text], max_sequence_length=self.tokens)[0][0])
        read, clean, grids = self._see(pictures)
        alone = self.pictures[1] == 1
        vae, embeds = self.pipe.vae, self.pipe.encode_prompt([text], read)[0][0]
        _, references = self.pipe.prepare_latents(
            clean[0] if alone else clean, 1, self.shape[1] // 4, *self.grid[1:], vae.dtype, vae.device, None, torch.zeros(0)
        )
        return {**_text(embeds), "references": references[0], "grids": torch.tensor(grids)}

    def _see(self, pictures: Pictures) -> tuple[list[Any], list[Tensor], list[tuple[int, int, int]]]:
        """Pictures for the text encoder and for the autoencoder, by the pipeline's own rules, and the shapes of their tokens."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
        from PIL import Image

        processor, scale = self.pipe.image_processor, self.pipe.vae_scale_factor
        read, clean, grids = [], [], []
        for image in map(Image.fromarray, pictures):
            ratio = image.width / image.height
            width, height = plus.calculate_dimensions(plus.VAE_IMAGE_SIZE, ratio)
            if self.pictures[1] == 1:
                image = processor.resize(image, height, width)
                read.append(image)
            else:
                narrow, low = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, ratio)
                read.append(processor.resize(image, low, narrow))
            clean.append(processor.preprocess(image, height, width).unsqueeze(2))
            grids.append((1, height // scale // 2, width // scale // 2))
        return read, clean, grids

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        """Rows whose pictures have different shapes are asked shape by shape: the network takes one of each call."""
        if "grids" not in given:
            return self._ask(network, x, sigma, given, [])

        def ask(rows: Tensor, grids: Tensor) -> Tensor:
            shapes = [tuple(grid) for grid in grids.tolist()]
            some = {name: part[rows] for name, part in given.items()}
            some["references"] = some["references"][:, : sum(map(prod, shapes))]
            return self._ask(network, x[rows], sigma[rows], some, shapes)

        return by_place(given["grids"], ask)

    def _ask(
        self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], grids: list[tuple[int, ...]]
    ) -> Tensor:
        mask = given["encoder_hidden_states_mask"]
        return network(
            hidden_states=torch.cat([x, given["references"]], 1) if grids else x,
            timestep=(sigma * 1000).to(x.dtype) / 1000,  # rounded as in the pipeline: the network multiplies by 1000 again
            encoder_hidden_states=given["encoder_hidden_states"],
            encoder_hidden_states_mask=None if mask.all() else mask,  # without a mask attention is faster
            img_shapes=[[self.grid, *grids]] * len(x),
            return_dict=False,
        )[0][:, : x.shape[1]].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = self.pipe._unpack_latents(latents, self.size.height, self.size.width, self.pipe.vae_scale_factor).to(vae.dtype)
        z = z * per_channel(vae.config.latents_std, z) + per_channel(vae.config.latents_mean, z)
        return shown(vae.decode(z, return_dict=False)[0][:, :, 0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        long = {} if self.pictures[1] else {"max_sequence_length": self.tokens}
        return {"true_cfg_scale": guidance, "height": self.size.height, "width": self.size.width, **long}


def _text(embeds: Tensor) -> dict[str, Tensor]:
    mask = torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
    return {"encoder_hidden_states": embeds, "encoder_hidden_states_mask": mask}
