"""What sets one kind of pipeline apart from another. A family asks the pipeline's own parts; nothing of a pipeline is copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from flowrl.recipe import PolicySpec
from flowrl.samplers import Path

from .guidance import Guider

Encoding = Mapping[str, Tensor]
"""What a network call is given of one prompt, by name, without a batch dimension. Rows of different length are padded with zeros at
the end of their first dimension, so a family that has such rows gives a mask along."""

Pictures = Sequence[np.ndarray]
"""The images a prompt comes with (first frame, references), uint8 [H, W, 3] each."""

NETWORKS = ("transformer", "unet")
"""What a pipeline calls its denoising networks; a second expert's name begins with one of these."""

AUTOENCODERS = ("vae", "vqvae")
"""What a pipeline calls what decodes its latents."""

JOINT = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""Endings of the projections of a joint attention, of its image stream and its text stream."""


class Family(Protocol):
    """A pipeline as flowrl asks it, built from (pipe, spec): see FAMILIES.

    modules: names of the trained networks in the pipeline, in the order of `expert`.  shape: dims *d of a state; only what is
      denoised is part of it: a first frame that is given belongs to the encoding, so it has no noise, no density and no loss.
    channels: the dimension of a state that holds channels (0, or -1 for packed tokens).  fps: of videos; None for images.
    pixels: of one image, or of all frames of a video.
    targets, feed_forward: endings of the linear layers an adapter sits on, and those of the feed-forward layers.
    embeds: the network is told the guidance, so that `policy.guidance` is that number and `policy.true_guidance` the factor
    between two predictions.  guidance: the pipeline's own where the user gives none.  pictures: how many images a prompt must
    come with, least and most.
    """

    @property
    def modules(self) -> Sequence[str]: ...

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def channels(self) -> int: ...

    @property
    def pixels(self) -> int: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def targets(self) -> Sequence[str]: ...

    @property
    def feed_forward(self) -> Sequence[str]: ...

    @property
    def guider(self) -> Guider: ...

    @property
    def embeds(self) -> bool: ...

    @property
    def guidance(self) -> float: ...

    @property
    def pictures(self) -> tuple[int, int]: ...

    def sigmas(self, steps: int) -> Tensor:
        """float64 [steps + 1], falling: the levels the pipeline visits, exactly.

        Raises: ValueError for a scheduler whose levels are not those of this path.
        """
        ...

    def expert(self, sigma: float) -> int:
        """Which of the modules predicts at this level."""
        ...

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        """One prompt, by the pipeline's own encoders, on their device."""
        ...

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        """What is guided away from; most pipelines encode it like any prompt."""
        ...

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        """One prediction a row, in the path's parametrisation, float32: x [N, *d] in the network's dtype, sigma [N] float32, given
        [N, ...] by name. guidance: what the network is told, where it `embeds`."""
        ...

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The pipeline's latents: x itself, or x with what the encoding holds of them put back."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The pipeline's latents [N, ...] -> float32 [N, (T,) H, W, 3] in [0, 1], with a graph where they have one."""
        ...

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline's own call, beside prompts, images, latents and steps, that draw what this family draws."""
        ...


@runtime_checkable
class Begins(Protocol):
    """A family whose pipeline does not take its `latents` argument as it is, but mixes something into it first."""

    def begin(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The argument with which the pipeline begins at `whole(x, given)`."""
        ...


@dataclass(frozen=True)
class Size:
    """Pixels and frames that are drawn; frames is 1 for images."""

    height: int
    width: int
    frames: int = 1


def size(spec: PolicySpec, height: int, width: int, multiple: int, most: int | None = None) -> Size:
    """The spec's size, or the family's own height and width.

    multiple: what both must be divisible by.  Raises: ValueError for a size the network cannot have.
    """
    asked = Size(spec.height or height, spec.width or width)
    for name, pixels in (("height", asked.height), ("width", asked.width)):
        if pixels % multiple or (most and pixels > most):
            down, up = pixels // multiple * multiple, -(-pixels // multiple) * multiple
            near = " or ".join(str(n) for n in dict.fromkeys((down, up)) if n and not (most and n > most))
            limit = f", at most {most}" if most else ""
            raise ValueError(f"{name} {pixels}: give a multiple of {multiple}{limit}" + (f", such as {near}" if near else ""))
    return asked


def frames(spec: PolicySpec, own: int, temporal: int) -> int:
    """The spec's number of frames, or the family's own. temporal: frames a latent frame stands for, after the first.

    Raises: ValueError for a number that is not 1 more than a multiple.
    """
    count = spec.frames or own
    if (count - 1) % temporal:
        near = (count - 1) // temporal * temporal + 1
        raise ValueError(
            f"frames {count}: this autoencoder turns {temporal} frames into one after the first; give {near} or {near + temporal}"
        )
    return count


def tokens(spec: PolicySpec, own: int, most: int) -> int:
    """The spec's number of text tokens, or the family's own.

    Raises: ValueError above what the family takes.
    """
    count = spec.max_sequence_length or own
    if count > most:
        raise ValueError(f"max_sequence_length {count}: this family takes at most {most}")
    return count


def photo(picture: np.ndarray) -> Any:
    """uint8 [H, W, 3] as a PIL image: what the pipelines' processors are written for."""
    from PIL import Image

    return Image.fromarray(picture)


def still(spec: PolicySpec, name: str) -> None:
    """Raises: ValueError where frames are asked of a model of images."""
    if spec.frames not in (None, 1):
        raise ValueError(f"frames {spec.frames}: {name} draws images; take policy.frames out")


def visited(scheduler: Any, steps: int, sigmas: Sequence[float] | None = None, mu: float | None = None) -> Tensor:
    """float64 [steps + 1]: the levels a FlowMatchEulerDiscreteScheduler visits, exactly (values are float32's).

    sigmas, mu: what the pipeline gives its scheduler.  With a static shift and no sigmas the scheduler shifts its smallest level
    twice, so the last real level is tiny (10 steps, shift 3: 0.0089).

    Raises: ValueError below 1 step, or for a scheduler that is not a plain falling flow.
    """
    if steps < 1:
        raise ValueError(f"a schedule of {steps} steps; give at least 1")
    scheduler = copy.deepcopy(scheduler)  # deepcopy, not from_config: set_shift leaves the config untouched
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler" or scheduler.config.invert_sigmas:
        raise ValueError(
            f"sigmas of a {type(scheduler).__name__} are not those of this flow; load the model with a "
            "FlowMatchEulerDiscreteScheduler that does not invert its sigmas"
        )
    given = {} if sigmas is None else {"sigmas": list(sigmas)}
    if mu is not None and scheduler.config.use_dynamic_shifting:
        given["mu"] = mu
    scheduler.set_timesteps(**({"num_inference_steps": steps} if sigmas is None else {}), **given)
    return scheduler.sigmas.double()


def euler(scheduler: Any) -> Any:
    """The scheduler itself; in the place of a multistep one of a flow (UniPC, DPM-Solver), a FlowMatchEulerDiscreteScheduler of the
    same shift.

    Differs: multistep ones begin at the shifted 1 - 1 / n of n trained levels or near it, this one at 1.
    """
    config = scheduler.config
    if not (config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"):
        return scheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, shift=config.flow_shift or 1.0)


def linear_mu(scheduler: Any, tokens: int) -> float:
    """Line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) of the scheduler, at an image's tokens."""
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return tokens * slope + config.base_shift - slope * config.base_image_seq_len


def shown(decoded: Tensor) -> Tensor:
    """A decoder's answer [N, 3, (T,) H, W] in [-1, 1] -> float32 [N, (T,) H, W, 3] in [0, 1]."""
    return (decoded * 0.5 + 0.5).clamp(0, 1).movedim(1, -1).float()


def per_channel(values: Sequence[float] | None, like: Tensor, axis: int = 1) -> Tensor:
    """One number a channel, as a tensor that broadcasts over latents [N, C, ...]."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(*[1] * axis, -1, *[1] * (like.ndim - axis - 1))
