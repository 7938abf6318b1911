"""Grids of noise levels: float64 [n + 1], from 1 down to 0. The one source of truth for rollout and replay."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def _steps(n: int) -> None:
    if n < 1:
        raise ValueError(f"a schedule of {n} steps: give at least 1")


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): 0 and 1 stay, a shift above 1 spends more steps at high noise."""
    if not 0 < shift < math.inf:
        raise ValueError(f"a schedule shifted by {shift:g}: give a number above 0 (1 leaves it as it is)")
    return shift * t / (1 + (shift - 1) * t)


def linear_shift(n: int, shift: float = 1.0) -> Tensor:
    """n equal steps from 1 to 0, shifted.

    Source: DanceGRPO, MixGRPO, BranchGRPO, G2RPO `sd3_time_shift`.
    """
    _steps(n)
    return shifted(torch.linspace(1, 0, n + 1, dtype=torch.float64), shift)


def sd3(n: int, shift: float = 3.0, train_steps: int = 1000) -> Tensor:
    """diffusers' FlowMatchEulerDiscreteScheduler with a static shift.

    Its smallest level is shifted twice, once at construction and once when the steps are set, so that the last
    real step is tiny (n = 10, shift = 3: 0.0089 -> 0).

    Source: diffusers 0.42.1 `FlowMatchEulerDiscreteScheduler.set_timesteps`; Stable Diffusion 3 (2403.03206) eq. 23.
    """
    _steps(n)
    smallest = shifted(torch.tensor(1 / train_steps, dtype=torch.float64), shift)
    grid = shifted(torch.linspace(1, float(smallest), n, dtype=torch.float64), shift)
    return torch.cat([grid, grid.new_zeros(1)])


def exponential_shift(t: Tensor, mu: float) -> Tensor:
    """e^mu / (e^mu + 1 / t - 1): `shifted` with shift e^mu."""
    return shifted(t, math.exp(mu))


def dynamic(n: int, mu: float, terminal: float | None = None) -> Tensor:
    """FLUX and Qwen-Image: n levels equally spaced from 1 to 1 / n, shifted by e^mu, then 0.

    mu depends on the size of the image (`linear_mu`, `flux2_mu`).  terminal: stretch the levels so that the last before 0 is this
    one (Qwen-Image: 0.02).

    Source: diffusers 0.42.1 `FlowMatchEulerDiscreteScheduler` with dynamic shifting.
    """
    _steps(n)
    grid = exponential_shift(torch.linspace(1, 1 / n, n, dtype=torch.float64), mu)
    if terminal is not None:
        if n < 2:
            raise ValueError("a schedule of 1 step cannot be stretched to a terminal level; give at least 2 steps")
        grid = 1 - (1 - grid) * (1 - terminal) / (1 - grid[-1])
    return torch.cat([grid, grid.new_zeros(1)])


def linear_mu(tokens: int, base: int = 256, most: int = 4096, low: float = 0.5, high: float = 1.15) -> float:
    """mu of FLUX and Qwen-Image: linear in the number of image tokens, `low` at `base`, `high` at `most`.

    Source: diffusers 0.42.1 `calculate_shift`.
    """
    return low + (high - low) * (tokens - base) / (most - base)


def flux2_mu(tokens: int, n: int) -> float:
    """mu of FLUX.2, an empirical fit in image tokens and steps.

    Up to 4300 tokens it is interpolated in n between a line for 10 steps and one for 200; beyond, it is the line for 200.

    Source: diffusers 0.42.1 `compute_empirical_mu`.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * n + at_200 - 200 * slope


def wan(n: int, shift: float = 3.0, train_steps: int = 1000) -> Tensor:
    """Wan's UniPC levels: the first n of n + 1 equally spaced from 1 to 1 / train_steps, shifted, then 0.

    Source: diffusers 0.42.1 `UniPCMultistepScheduler` with `use_flow_sigmas`.
    Differs: diffusers starts 1e-6 below 1, to keep its solver finite.
    """
    _steps(n)
    grid = shifted(torch.linspace(1, 1 / train_steps, n + 1, dtype=torch.float64), shift)[:-1]
    return torch.cat([grid, grid.new_zeros(1)])


def flash_tail(sigmas: Tensor, last: int, ratio: float, shift: float | None = None, compat: str | None = None) -> Tensor:
    """A shorter schedule: sigmas up to step `last`, the last stochastic one, then a rebuilt tail of max(int((N - last) ratio), 1)
    levels.

    The tail starts at sigmas[last + 1] and its levels are equally spaced to 0 before the shift.  ratio in (0, 1].
    shift: None reads it off `sigmas` where the tail starts; exact for a `linear_shift`.

    Raises: ValueError for a step that does not exist, or a ratio outside (0, 1].
    Source: MixGRPO-Flash (2507.21802), MixGRPO@e5cdd6a `run_sample_step`.
    Differs: a tail of one level ends above 0 there, and a latent that is still noisy is decoded; ours ends at 0.
    compat="mixgrpo@e5cdd6a" is theirs.
    """
    n = len(sigmas) - 1
    if not 0 <= last < n:
        raise ValueError(f"step {last} does not exist: the schedule has steps 0 to {n - 1}")
    if not 0 < ratio <= 1:
        raise ValueError(f"a tail at ratio {ratio:g}: give one above 0 and at most 1")
    if compat not in (None, "mixgrpo@e5cdd6a"):
        raise ValueError(f'compat {compat!r} is unknown to flash_tail; it knows "mixgrpo@e5cdd6a"')
    sigmas = sigmas.double()
    start = 1 - (last + 1) / n
    if shift is None:
        at = float(sigmas[last + 1])
        shift = at * (1 - start) / (start * (1 - at)) if start > 0 else 1.0
    count = int(max((n - last) * ratio, 1))
    tail = shifted(torch.linspace(start, 0, count, dtype=torch.float64), shift)
    if count == 1 and start > 0 and not compat:
        tail = torch.cat([tail, tail.new_zeros(1)])
    return torch.cat([sigmas[: last + 1], tail])


def vp(n: int, alphas_cumprod: Tensor, offset: int = 1, end: Literal["zero", "first"] = "zero") -> Tensor:
    """Levels of a discrete variance-preserving diffusion: sigma = sqrt(1 - alpha_bar) at n times T / n apart. It starts below 1.

    alphas_cumprod: [T].  offset: added to every time (Stable Diffusion: 1).  end: "zero", a clean last state, or "first", the
    lowest trained level.

    Source: DDIM (2010.02502); diffusers 0.42.1 `DDIMScheduler`, spacing "leading".
    Differs: DDPO and Stable Diffusion's own configuration end at the first trained level, alpha_bar[0]: end="first".
    """
    _steps(n)
    if end not in ("zero", "first"):
        raise ValueError(f'end {end!r} of a schedule is unknown; use "zero" or "first"')
    stride = len(alphas_cumprod) // n
    if stride < 1:
        raise ValueError(f"a schedule of {n} steps on a diffusion of {len(alphas_cumprod)} times; give at most that many")
    times = torch.arange(n - 1, -1, -1) * stride + offset
    grid = (1 - alphas_cumprod.double()[times]).sqrt()
    # the first trained level is below the level at `offset` only where offset > 0
    return torch.cat([grid, (1 - alphas_cumprod.double()[:1]).sqrt() if end == "first" else grid.new_zeros(1)])
