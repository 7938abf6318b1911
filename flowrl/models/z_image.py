"""Z-Image and Z-Image-Turbo: time 0 is noise and the output -v, texts come as a list, guidance is zero-based."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, linear_mu, shown, size, still, tokens, visited
from .guidance import Guider, capped

if TYPE_CHECKING:
    from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline


class ZImage:
    """Latents [C, H / 8, W / 8], u = v.

    guidance: zero-based, v + g (v - v_negative), so 0 is none (Turbo) and 4 what other families call 5. The pipeline's
      cfg_normalization is spec.guidance_cap; its cfg_truncation T guides where 1 - sigma <= T, which is
      spec.guidance_interval (1 - T, 1).
    The network puts the image's positions after the text's and fills both up to 32 tokens itself, so it must get every text at its
    own length.

    Source: diffusers 0.42.1 `ZImagePipeline`.
    """

    modules = ("transformer",)
    path = paths.flow
    channels = 0
    fps = None
    targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
    feed_forward = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    embeds = False
    guidance = 0.0
    pictures = (0, 0)

    def __init__(self, pipe: ZImagePipeline, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        scale = pipe.vae_scale_factor
        self.size = size(spec, 1024, 1024, 2 * scale)
        self.tokens = tokens(spec, 512, 512)
        still(spec, "Z-Image")
        self.shape = (pipe.transformer.config.in_channels, self.size.height // scale, self.size.width // scale)
        self.pixels = self.size.height * self.size.width
        self.guider = Guider(capped(spec.guidance_cap), joined=True, above=0.0)

    def sigmas(self, steps: int) -> Tensor:
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        _, height, width = self.shape
        mu = linear_mu(self.pipe.scheduler, (height // 2) * (width // 2))
        return visited(self.pipe.scheduler, steps, get_default_z_image_sigmas(max(1, steps)), mu)

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        rows, _ = self.pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=self.tokens)
        return {"text": rows[0], "mask": torch.ones(len(rows[0]), dtype=torch.bool)}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        time = (1000 - 1000 * sigma) / 1000
        lengths = given["mask"].sum(1).tolist()
        texts = [row[:length] for row, length in zip(given["text"], lengths, strict=True)]
        answers = network(list(x[:, :, None]), time, texts, return_dict=False)[0]
        return -torch.stack(answers)[:, :, 0].float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return shown(vae.decode(z, return_dict=False)[0])

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        return {
            "guidance_scale": guidance,
            "cfg_normalization": self.spec.guidance_cap,
            "cfg_truncation": 1 - self.spec.guidance_interval[0],
            "height": self.size.height,
            "width": self.size.width,
            "max_sequence_length": self.tokens,
        }
