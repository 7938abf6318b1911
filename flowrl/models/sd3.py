"""Stable Diffusion 3 and 3.5, and the embedded shapes model: a flow, static or dynamic shift, guidance in one doubled batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .lora import add_lora, without_adapters
from .noise_head import NoiseHead
from .prompts import Cond, Encoding, PromptStore

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""Joint attention of both streams; not the second attention (attn2) of SD3.5-medium. Source: flow_grpo `scripts/train_sd3.py`."""
DECODE_PIXELS = 2**21  # pixels a decoder call: 8 images of 512 x 512, about 3 GB of float32 activations


class SD3Policy:
    """A StableDiffusion3Pipeline as a policy: u = v on the flow path, latents [C, H / 8, W / 8].

    network: what predict calls; a wrapper (DDP, compile) may be put in its place. pipe: the pipeline it came from, still usable.
    """

    path = paths.flow
    family = SimpleNamespace(modules=("transformer",))

    def __init__(self, pipe: StableDiffusion3Pipeline, spec: PolicySpec, device: str = "cpu", seed: int = 0) -> None:
        self.pipe, self.spec, self.device = pipe, spec, torch.device(device)
        transformer = pipe.transformer
        self.dtype: torch.dtype = transformer.dtype
        self._check_sizes()
        for module in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3, pipe.vae):
            if module is not None:
                module.requires_grad_(False).eval().to(self.device)
        if spec.lora.rank:
            add_lora(transformer, spec.lora, TARGETS if spec.lora.targets is None else spec.lora.targets, seed)
        else:
            transformer.requires_grad_(True)
        transformer.eval().to(self.device)
        self.checkpointing(spec.checkpointing)
        self.network: nn.Module = transformer
        self.head = NoiseHead(transformer.config.in_channels, seed=seed).to(self.device) if spec.noise_head else None
        self._heads_on = True
        self._store = PromptStore(self._encode)

    def encode(self, prompts: Sequence[str], guidance: float | None = None) -> Cond:
        """Conditions of these prompts on the policy's device. guidance None: the spec's; above 1 the negative prompt comes along.

        Raises: ValueError for a prompt not seen before free_encoders().
        """
        guidance = self.spec.guidance if guidance is None else guidance
        embeds, pooled = self._store(prompts)
        negative = self._store([self.spec.negative]) if guidance > 1 else (None, None)
        return Cond(embeds, pooled, *negative, guidance).to(str(self.device))

    def free_encoders(self, prompts: Sequence[str] = ()) -> None:
        """Encode these prompts and the negative one, keep every encoding, and drop the text encoders.

        A prompt not seen until then is refused by `encode` from now on.
        """
        self._store.close([*prompts, self.spec.negative])
        self.pipe.register_modules(text_encoder=None, text_encoder_2=None, text_encoder_3=None)

    @torch.no_grad()
    def _encode(self, text: str) -> Encoding:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[text],
            prompt_2=[text],
            prompt_3=[text],
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.spec.max_sequence_length,
        )
        assert embeds is not None and pooled is not None
        return embeds[0].to(self.dtype), pooled[0].to(self.dtype)

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor | tuple[Tensor, Tensor]:
        """`velocity`, or (velocity, raw) of a policy with a noise head. The reference's raw noise is 0: the middle of its range."""
        u = self.velocity(x, sigma, cond)
        if self.head is None:
            return u
        return u, self.head(x, u, sigma.to(x.device)) if self._heads_on else torch.zeros_like(u)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """u_uncond + guidance * (u_cond - u_uncond), or u_cond alone at guidance <= 1.

        x [N, *d], sigma [N] in [0, 1], cond of N rows -> [N, *d] float32. The same batch gives the same bits with and without grad.

        Source: diffusers 0.42.1 `StableDiffusion3Pipeline.__call__`, one call on the batch [uncond; cond], time 1000 sigma.
        Differs: guidance is combined in float32; the pipeline combines in the model's dtype (the same at float32).
        """
        embeds, pooled = cond.doubled()
        x = x.to(self.dtype)
        time = sigma.to(x.device, torch.float32) * self.pipe.scheduler.config.num_train_timesteps
        if cond.guidance <= 1:
            return self._call(x, time, embeds, pooled)
        uncond, text = self._call(torch.cat([x, x]), torch.cat([time, time]), embeds, pooled).chunk(2)
        return uncond + cond.guidance * (text - uncond)

    def _call(self, x: Tensor, time: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        answer = self.network(
            hidden_states=x, timestep=time, encoder_hidden_states=embeds, pooled_projections=pooled, return_dict=False
        )
        return answer[0].float()

    def lane(self, sigma: float) -> int:
        """One network, guided alike at every level."""
        return 0

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters the optimizer moves, with their names in the unwrapped transformer.

        Raises: ValueError for a half-precision network trained as a whole: most of its updates would round to nothing.
        """
        if not self.spec.lora.rank and self.dtype != torch.float32:
            raise ValueError(
                f"full fine-tuning (lora.rank 0) of {str(self.dtype)[6:]} weights loses updates to rounding; "
                "set policy.dtype to float32, or lora.rank above 0"
            )
        head = [] if self.head is None else [(f"noise_head.{name}", p) for name, p in self.head.named_parameters()]
        return [*((name, p) for name, p in self.pipe.transformer.named_parameters() if p.requires_grad), *head]

    @property
    def adapted(self) -> bool:
        """True where an adapter is trained, so that `reference()` can switch it off."""
        return self.spec.lora.rank > 0

    def rows_that_fit(self) -> int:
        """Rows of one training call that free device memory allows, at most 32.

        By estimate: a block keeps about 34 values of a token's width for backward, with checkpointing 2 and one block's 34 at once.
        """
        if self.device.type != "cuda":
            return 32
        config = self.pipe.transformer.config
        _, height, width = self.latent_shape()
        tokens = (height // config.patch_size) * (width // config.patch_size) + 77 + self.spec.max_sequence_length
        values = 2 * config.num_layers + 34 if self.spec.checkpointing else 34 * config.num_layers
        width = config.num_attention_heads * config.attention_head_dim
        row = tokens * width * values * self.dtype.itemsize * (2 if self.spec.guidance > 1 else 1)
        return max(1, min(32, int(0.7 * torch.cuda.mem_get_info(self.device)[0] / row)))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, predict is the frozen base, bitwise.

        Raises: ValueError at lora.rank 0, where the base itself has been trained.
        """
        if not self.spec.lora.rank:
            raise ValueError("reference() switches adapters off, and at lora.rank 0 there is none; keep a frozen weight set")
        self._heads_on = False
        try:
            with without_adapters(self.pipe.transformer):
                yield
        finally:
            self._heads_on = True

    def checkpointing(self, on: bool) -> None:
        """Recompute blocks in backward to save memory; the same numbers."""
        transformer = self.pipe.transformer
        (transformer.enable_gradient_checkpointing if on else transformer.disable_gradient_checkpointing)()

    def sigmas(self, steps: int) -> Tensor:
        """float64 [steps + 1], 1 down to 0: the levels the pipeline visits, exactly (values are float32's).

        With a static shift the scheduler shifts its smallest level twice, so the last real level is tiny (10 steps, shift 3:
        0.0089); with use_dynamic_shifting mu is linear in the number of image tokens.

        Raises: ValueError below 1 step, or for a scheduler that is not a plain falling flow.
        """
        if steps < 1:
            raise ValueError(f"a schedule of {steps} steps; give at least 1")
        scheduler = copy.deepcopy(self.pipe.scheduler)  # deepcopy, not from_config: set_shift leaves the config untouched
        if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler" or scheduler.config.invert_sigmas:
            raise ValueError(
                f"sigmas of a {type(scheduler).__name__} are not those of this flow; load the model with a "
                "FlowMatchEulerDiscreteScheduler that does not invert its sigmas"
            )
        scheduler.set_timesteps(steps, mu=self._mu() if scheduler.config.use_dynamic_shifting else None)
        return scheduler.sigmas.double()

    def _mu(self) -> float:
        """Line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), at this image's tokens."""
        config = self.pipe.scheduler.config
        _, height, width = self.latent_shape()
        patch = self.pipe.transformer.config.patch_size
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return (height // patch) * (width // patch) * slope + config.base_shift - slope * config.base_image_seq_len

    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image's latents."""
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        height, width = ((pixels // scale if pixels else config.sample_size) for pixels in (self.spec.height, self.spec.width))
        return config.in_channels, height, width

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [N, *d] -> uint8 [N, H, W, 3], decoded in pieces of DECODE_PIXELS."""
        return torch.cat([(self.images(part) * 255).round().to(torch.uint8) for part in x0.split(self.decode_rows())])

    def decode_rows(self) -> int:
        """Images a decoder call without a graph has memory for."""
        _, height, width = self.latent_shape()
        return max(1, DECODE_PIXELS // (height * width * self.pipe.vae_scale_factor**2))

    def images(self, x0: Tensor) -> Tensor:
        """Latents [N, *d] -> float32 [N, H, W, 3] in [0, 1], in one piece, with a graph where x0 has one.

        Source: the end of `StableDiffusion3Pipeline.__call__` and `VaeImageProcessor.postprocess`.
        """
        vae = self.pipe.vae
        z = x0.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(z, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()

    def _check_sizes(self) -> None:
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        most = config.pos_embed_max_size * config.patch_size * scale
        for name, pixels in (("height", self.spec.height), ("width", self.spec.width)):
            if pixels and (pixels % (config.patch_size * scale) or pixels > most):
                raise ValueError(f"{name} {pixels}: give a multiple of {config.patch_size * scale}, at most {most}")
        if self.spec.max_sequence_length > 512:
            raise ValueError(f"max_sequence_length {self.spec.max_sequence_length}: this family takes at most 512")
