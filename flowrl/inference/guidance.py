"""Guidance between the base and the tuned weights, in any pipeline whose denoiser carries an adapter."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

DENOISERS = ("transformer", "transformer_2", "unet")
"""Where diffusers' pipelines keep their denoisers."""
_T = TypeVar("_T")


def rlg(u_base: Tensor, u_tuned: Tensor, w: float) -> Tensor:
    """u_base + w (u_tuned - u_base): 0 the base, 1 the tuned model (both bitwise), above 1 extrapolates, 1 to 3 is recommended.

    u_base, u_tuned: guided network outputs of one shape, velocity, epsilon or score alike: these are affine in each other with
    the same numbers for both models. Classifier-free guidance comes first, on each model with one scale; as both are linear,
    mixing its branches first gives the same.
    The score is that of p_base^(1-w) p_tuned^w, of the noisy densities at each level; at level 0, where training was regularised
    with beta times the KL, this is the optimum of beta / w.

    Source: RLG (2508.21016), RLG@57935df `rlg/diffusers_patch/sd3_pipeline_with_rlg.py`.
    Differs: half precision is mixed in float32; the code mixes in the text encoder's dtype.
    """
    # lerp, not the formula: it is exact at both ends
    mixed = torch.lerp(_wide(u_base), _wide(u_tuned), w)
    return mixed.to(u_tuned.dtype)


@contextmanager
def guided(pipe: Any, w: float, skip: int = 0) -> Iterator[None]:
    """Inside, every step of the pipeline is `rlg` of its adapter switched off and on; two calls of the denoiser a step.

    pipe: any diffusers pipeline whose transformer or unet has a LoRA loaded and active (several count as one). Its guidance
    scale, scheduler and batch stay as they are. skip: first steps of each generation that the tuned model takes alone. At the end,
    and on an error, the pipeline is as it was. A LoRA of the text encoders is on in both.

        with guided(pipe, 1.5):
            image = pipe("a red circle").images[0]

    Raises: ValueError for w that is not finite, skip below 0, a pipeline without denoiser or without active adapter, with fused
    weights or a cache between steps, and (on a call) a denoiser whose output is no tensor.
    Source: RLG (2508.21016); skip is `zero_init_step` of RLG@57935df.
    Differs: theirs is a patched SD3 pipeline with two transformers; here one transformer and its adapter's switch.
    """
    check(w)
    if skip < 0:
        raise ValueError(f"skip, the first steps of the tuned model alone, is {skip}; give at least 0")
    with ExitStack() as stack:
        for denoiser in _denoisers(pipe):
            stack.callback(denoiser.register_forward_hook(_Mix(w, skip), with_kwargs=True).remove)
        yield


def check(w: float) -> None:
    """Raises: ValueError for a weight that is not finite."""
    if not math.isfinite(w):
        raise ValueError(f"rlg is {w}; give a finite number: 0 is the base, 1 the tuned model, 1.5 a good start")


class _Mix:
    """The forward hook: asks the denoiser once more without its adapter."""

    def __init__(self, w: float, skip: int) -> None:
        self.w, self.skip, self.levels = w, skip, list[float]()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], tuned: Any) -> Any:
        from flowrl.models.lora import without_adapters

        if self.skip and self.step(module, args, kwargs) < self.skip:
            return tuned
        with without_adapters(module):
            base = module.forward(*args, **kwargs)
        return _mixed(base, tuned, self.w)

    def step(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Which step of its generation a call belongs to: levels of one run move one way, so a step back starts another run."""
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        level = float(torch.as_tensor(given["timestep"], dtype=torch.float64).max())
        seen = self.levels
        if len(seen) > 1 and (level - seen[-1]) * (seen[1] - seen[0]) < 0:
            seen.clear()
        if not seen or level != seen[-1]:
            seen.append(level)
        return len(seen) - 1


def _mixed(base: _T, tuned: _T, w: float) -> _T:
    """Outputs of diffusers' denoisers: a tensor, a tuple that starts with it, or a dataclass with the field `sample`."""
    if isinstance(tuned, Tensor) and isinstance(base, Tensor):
        return rlg(base, tuned, w)
    if isinstance(tuned, tuple) and isinstance(base, tuple):
        return (_mixed(base[0], tuned[0], w), *tuned[1:])
    if dataclasses.is_dataclass(tuned) and not isinstance(tuned, type) and "sample" in {f.name for f in dataclasses.fields(tuned)}:
        return dataclasses.replace(tuned, sample=_mixed(getattr(base, "sample"), getattr(tuned, "sample"), w))  # noqa: B009
    raise ValueError(
        f"the denoiser returned a {type(tuned).__name__}; rlg mixes a tensor, a tuple of them, or .sample of an output"
    )


def _denoisers(pipe: Any) -> list[nn.Module]:
    """Those with an adapter that can be switched off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    what = type(pipe).__name__
    present = {name: part for name in DENOISERS if isinstance(part := getattr(pipe, name, None), nn.Module)}
    if not present:
        raise ValueError(f"{what} has no {', '.join(DENOISERS[:-1])} or {DENOISERS[-1]}; rlg needs a diffusers pipeline with one")
    layers = {name: [m for m in part.modules() if isinstance(m, BaseTunerLayer)] for name, part in present.items()}
    on = [name for name, own in layers.items() if any(m.active_adapters and not m.disable_adapters for m in own)]
    if not on:
        state = (
            "is switched off; call pipe.enable_lora()"
            if any(layers.values())
            else "is missing; call pipe.load_lora_weights(folder)"
        )
        raise ValueError(f"rlg goes from the base to an adapter, which {state} on this {what} first")
    for name in on:
        if any(getattr(m, "merged", False) for m in layers[name]):
            raise ValueError(
                f"the adapter of the {name} is fused into its weights, so the base is gone; call pipe.unfuse_lora() first"
            )
        if getattr(present[name], "is_cache_enabled", False):
            raise ValueError(
                f"the {name} caches features between calls, which would mix base and tuned; call disable_cache() first"
            )
    return [present[name] for name in on]


def _wide(u: Tensor) -> Tensor:
    return u.to(torch.promote_types(u.dtype, torch.float32))
