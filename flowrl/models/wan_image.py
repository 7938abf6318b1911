"""Wan 2.1 and 2.2, image to video: the first frame (and the last, where the model takes one) is a condition beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .family import Encoding, Pictures, photo
from .guidance import Guider
from .wan import Wan

if TYPE_CHECKING:
    from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline


class WanImage:
    """Latents [C, T', H / 8, W / 8], u = v; T' = (T - 1) / 4 + 1. The encoding holds a mask of what is given and the latents of the
    given frames on [4 + C] channels, and what the image encoder of 2.1 sees.

    With expand_timesteps (2.2 5B) the first latent frame is the given one: the state is [C, T' - 1, ...], and the encoding holds
    that frame, which the network is told is clean.

    Raises: ValueError for a missing expert, or a single frame where the first is given.

    Source: diffusers 0.42.1 `WanImageToVideoPipeline`, with the scheduler that `Wan` takes.
    Differs: as `Wan`; below float32 a given latent frame is rounded to the network's dtype.
    """

    path = paths.flow
    channels = 0
    feed_forward = Wan.feed_forward
    guider = Guider()
    embeds = False
    guidance = 5.0

    def __init__(self, pipe: WanImageToVideoPipeline, spec: PolicySpec) -> None:
        if find_spec("ftfy") is None:
            raise ValueError(f"{type(pipe).__name__} cleans prompts with ftfy, which is not installed: pip install ftfy")
        self.pipe = pipe
        self.text: Any = Wan(pipe, spec)  # pyright: ignore[reportArgumentType]
        self.modules, self.fps, self.pixels = self.text.modules, self.text.fps, self.text.pixels
        self.expert, self.sigmas, self.decode = self.text.expert, self.text.sigmas, self.text.decode
        self.call_pipeline = self.text.call_pipeline
        config: Any = getattr(pipe, self.modules[0]).config
        self.patch = config.patch_size
        self.sees = config.image_dim is not None
        added = ("attn2.add_k_proj", "attn2.add_v_proj") if config.added_kv_proj_dim is not None else ()
        self.targets = (*Wan.targets, *added)
        own: Any = pipe.config
        self.first: bool = own.expand_timesteps
        channels, count, height, width = self.text.shape
        if self.first and count == 1:
            raise ValueError(f"frames {self.text.frames}: the first is given; give at least {1 + pipe.vae_scale_factor_temporal}")
        self.shape = (channels, count - self.first, height, width)
        both = self.sees and config.pos_embed_seq_len is not None  # positions of two pictures: first and last frame
        self.pictures = (2, 2) if both else (1, 1) if self.sees or self.first else (1, 2)

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        pipe, size = self.pipe, self.text.size
        device, count = pipe.vae.device, self.text.frames
        photos = [photo(picture) for picture in pictures]
        ready = [pipe.video_processor.preprocess(one, size.height, size.width).to(device, torch.float32) for one in photos]
        found = pipe.prepare_latents(
            ready[0], 1, self.shape[0], size.height, size.width, count, torch.float32, device,
            latents=torch.zeros(()), last_image=ready[1] if len(ready) > 1 else None,
        )  # fmt: skip
        encoding = {**self.text.encode(text, ()), "condition": found[1][0]}
        if self.sees:
            encoding["encoder_hidden_states_image"] = pipe.encode_image(photos, device)
        return encoding

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        return self.encode(text, pictures)

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        others = {name: part for name, part in given.items() if name != "condition"}
        if self.sees:  # [N, pictures, tokens, C]: the network takes pictures as rows
            others["encoder_hidden_states_image"] = others["encoder_hidden_states_image"].flatten(0, 1)
        if not self.first:
            return self.text.call(network, torch.cat([x, given["condition"]], 1), sigma, others, guidance)
        return self.text.call(network, self.whole(x, given), self._levels(sigma), others, guidance)[:, :, 1:]

    def _levels(self, sigma: Tensor) -> Tensor:
        """sigma [N] -> [N, tokens]: 0 for those of the first latent frame."""
        _, count, height, width = self.shape
        tokens = height // self.patch[1] * (width // self.patch[2])
        return torch.cat([sigma.new_zeros(len(sigma), tokens), sigma[:, None].expand(-1, count * tokens)], 1)

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([given["condition"].to(x.dtype), x], 2) if self.first else x
