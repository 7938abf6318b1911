"""Discrete variance-preserving diffusion as diffusers keeps it: its levels, its path, and the scheduler that walks it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.samplers import paths
from flowrl.samplers.paths import VP

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler


def ddim(scheduler: Any) -> DDIMScheduler:
    """The DDIM scheduler of the same trained levels, in the place of the sampler a checkpoint brings (PNDM, Euler, DPM-Solver).

    Its step is the ODE of the path, and its noisy step is `laws.ddim`. Clipping of x0 is off: a clipped step is none of the path.
    Spacing "linspace" becomes "leading", since DDIM then steps to other levels than it next asks at.

    Raises: ValueError for a scheduler that is not one of this diffusion.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    kind = type(scheduler).__name__
    if "beta_schedule" not in scheduler.config:
        raise ValueError(f"a {kind} holds no levels of a diffusion (no beta_schedule); load the model with a DDIMScheduler")
    ours: dict[str, Any] = {"clip_sample": False, "thresholding": False}
    if scheduler.config.get("timestep_spacing") == "linspace":
        ours["timestep_spacing"] = "leading"
    found: Any = DDIMScheduler.from_config(scheduler.config, **ours)
    return found


def path(scheduler: DDIMScheduler) -> VP:
    """Raises: ValueError for a prediction that is not of this path."""
    config: Any = scheduler.config
    return paths.vp(config.prediction_type, scheduler.alphas_cumprod.double())


def visited(scheduler: DDIMScheduler, steps: int) -> Tensor:
    """float64 [steps + 1]: sqrt(1 - alpha_bar) of the times the scheduler visits (float32's alpha_bar). It starts below 1, and ends
    at 0 or, without set_alpha_to_one, at the first trained level.

    Raises: ValueError for a number of steps at which DDIM has no consistent levels.
    """
    trained = len(scheduler.alphas_cumprod)
    if not 1 <= steps <= trained:
        raise ValueError(f"a schedule of {steps} steps on a diffusion of {trained} times; give 1 to {trained}")
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    after = times - trained // steps  # where its steps arrive
    if times[0] >= trained or not torch.equal(after[:-1], times[1:]):
        config: Any = scheduler.config
        near = [n for n in range(1, trained + 1) if trained % n == 0 and n not in (1, steps)]
        raise ValueError(
            f"{steps} steps with spacing {config.timestep_spacing!r}: DDIM would step to other levels than it asks at; "
            f"give a number that divides {trained}, such as {min(near, key=lambda n: abs(n - steps))}"
        )
    last = scheduler.alphas_cumprod[after[-1]] if after[-1] >= 0 else scheduler.final_alpha_cumprod
    sigmas = (1 - torch.cat([scheduler.alphas_cumprod[times], last.view(1)]).double()).sqrt()
    if sigmas[-1] >= sigmas[-2]:
        raise ValueError(
            "the scheduler's last step ends at the level where it starts (set_alpha_to_one false and steps_offset 0); "
            "set steps_offset to 1 in its configuration"
        )
    return sigmas
