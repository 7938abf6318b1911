"""A pipeline's own call, told what the spec sets where the pipeline takes it, and listened to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from flowrl.models.family import NETWORKS
from flowrl.recipe import PolicySpec

from .infer import Unknown
from .listen import Heard, decoding, listening, patched


class Runner:
    """network: the name of the one that denoises.  Guidance is asked for by an argument, or by the pipeline's guider.

    Raises: Unknown for a pipeline without one network that denoises, whose call names no arguments, or in which nothing sets the
    guidance.
    """

    def __init__(self, pipe: Any, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        self.name = _network(pipe)
        self.network.eval()  # as the policy asks it; HiDream's answers in another layout while it trains
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        kinds = {known.kind for known in list(self.parameters.values())[1:]}  # after self
        if kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            raise Unknown(f"the call of {type(pipe).__name__} names no arguments, so that nothing says what can be asked of it")
        self.guider = getattr(pipe, "guider", None)
        knob = "guidance_scale" in self.parameters or "true_cfg_scale" in self.parameters
        if not knob and not hasattr(self.guider, "guidance_scale"):
            raise Unknown(f"{type(pipe).__name__} takes no guidance_scale")

    @property
    def network(self) -> nn.Module:
        return getattr(self.pipe, self.name)

    def own(self, name: str) -> Any:
        """What an argument is where none is given; None where there is none."""
        known = self.parameters.get(name)
        return None if known is None or known.default is inspect.Parameter.empty else known.default

    def told(self, guidance: float) -> dict[str, Any]:
        """The arguments beside prompts and latents."""
        spec = self.spec
        wanted = {
            "guidance_scale": guidance,
            "true_cfg_scale": guidance if "guidance_scale" not in self.parameters else None,
            "height": spec.height,
            "width": spec.width,
            "num_frames": spec.frames,
            "max_sequence_length": spec.max_sequence_length,
            "use_resolution_binning": False,  # it draws another size and stretches it
        }
        return {name: value for name, value in wanted.items() if value is not None and name in self.parameters}

    def call(self, prompts: Sequence[str], guidance: float, steps: int, **more: Any) -> Any:
        """The pipeline's own call, with gradients where its inputs have them."""
        named = {**self.told(guidance), "num_inference_steps": steps, "prompt": list(prompts), **more}
        if guidance > 1 and "negative_prompt" in self.parameters:
            named.setdefault("negative_prompt", [self.spec.negative] * len(prompts))
        call: Any = type(self.pipe).__call__
        # a guider takes 1 for no guidance
        guided = nullcontext() if self.guider is None else patched(self.guider, "guidance_scale", max(guidance, 1.0))
        with guided, decoding(self.pipe):
            made = getattr(call, "__wrapped__", call)(self.pipe, **named)
        return made.frames if hasattr(made, "frames") else made.images

    @torch.no_grad()
    def run(self, prompts: Sequence[str], guidance: float, steps: int, stop: int = 0, **more: Any) -> Heard:
        """stop: leave when this many steps have begun; 0: at the end."""
        self.pipe.set_progress_bar_config(disable=True)
        draw = torch.Generator().manual_seed(0)
        with listening(self.pipe, self.network, lambda heard: len(heard.steps) == stop) as heard:
            heard.made = self.call(prompts, guidance, steps, generator=draw, output_type="pt", **more)
        return heard


def _network(pipe: Any) -> str:
    found = [name for name, part in pipe.components.items() if isinstance(part, nn.Module) and name.startswith(NETWORKS)]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise Unknown(f"{type(pipe).__name__} has {len(found)} networks that denoise ({names}); one is understood")
    return found[0]
