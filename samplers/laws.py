"""How noisy is a step? A law maps (sigma, sigma') to (c, s) of  x' = alpha' x0_hat + c x1_hat + s z.

sigma in (0, 1], sigma' in [0, sigma), float64, broadcastable. Factories take floats or tensors, one entry a row, and raise
ValueError for a level outside the range that their text gives.

The family, with h = lambda(sigma') - lambda(sigma) and lambda = ln(alpha / sigma):

    Euler-Maruyama steps of the reverse SDE (flow_sde, wan_sde, dance_sde, longcat, sage): c = sigma' - s^2 / 2 sigma;
        c^2 + s^2 = sigma'^2 to first order only, so a coarse grid leaves excess noise.
    exact steps of the same SDE with x0_hat frozen (precise, dance_precise, ddim):  c^2 + s^2 = sigma'^2.
    a fixed split of the new noise (cps, dgpo):  c^2 + s^2 = sigma'^2; as steps grow at a fixed level they add ever more noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Alpha = Callable[[Tensor], Tensor]
Law = Callable[..., tuple[Tensor, Tensor]]
"""(sigma, sigma_next, guard, alpha=that of the flow path) -> (c, s). guard: the second sigma of the grid, used where a law is
singular at sigma = 1.
"""
Level = float | Tensor


def _flow(sigma: Tensor) -> Tensor:
    return 1 - sigma


def _number(value: Level, like: Tensor) -> Tensor:
    return value.to(like) if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)


def _within(law: str, name: str, value: Level, most: float = math.inf) -> None:
    """Raises: ValueError for a level outside [0, most], or one that is no number."""
    low, high = (float(value.min()), float(value.max())) if isinstance(value, Tensor) and value.numel() else (value, value)
    if not (isinstance(low, float | int) and 0 <= low <= high <= most and math.isfinite(high)):
        span = f"{low:g}" if low == high or low != low else f"{low:g} to {high:g}"
        raise ValueError(
            f"{law}: {name} is {span}; give {'a number that is at least 0' if most == math.inf else f'one in [0, {most:g}]'}"
        )


def ode() -> Law:
    """The deterministic step: c = sigma', s = 0."""

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return sigma_next, torch.zeros_like(sigma_next)

    return law


def _euler_maruyama(sigma: Tensor, sigma_next: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """c = sigma' - s^2 / 2 sigma: the Euler point and half of the variance times the score, which is -x1_hat / sigma."""
    return sigma_next - variance / (2 * sigma), variance.sqrt()


def _guarded(sigma: Tensor, guard: float) -> Tensor:
    return torch.where(sigma >= 1, _number(guard, sigma), sigma)


def _decay(sigma: Tensor, sigma_next: Tensor, alpha: Alpha) -> Tensor:
    """e^-h = sigma' alpha / (sigma alpha'): 0 at sigma = 1 and at sigma' = 0."""
    return (sigma_next * alpha(sigma) / (sigma * alpha(sigma_next))).clamp(0, 1)


def _split(sigma_next: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """sigma'^2 shared out: kept (a share of variance) stays with x1_hat, the rest is new noise."""
    return sigma_next * kept.sqrt(), sigma_next * (1 - kept).sqrt()


def flow_sde(level: Level) -> Law:
    """Reverse SDE of a flow with diffusion coefficient g = level sqrt(sigma / (1 - sigma)), one Euler-Maruyama step.

    c = sigma' - g^2 (sigma - sigma') / 2 sigma,  s = g sqrt(sigma - sigma').
    level >= 0, 0 is the ODE. At sigma = 1 the denominator takes `guard` for sigma.

    Source: Flow-GRPO (2505.05470) eq. 9; flow_grpo@9745241 `sde_step_with_logprob(sde_type="sde")`.
    Differs: the peer also returns g without sqrt(sigma - sigma') and divides its KL by that; here s is the full std of the step.
    UniRL guards with the constant 0.99: pass it as `guard`.
    """
    _within("flow_sde", "level", level)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        g2 = _number(level, sigma) ** 2 * sigma / (1 - _guarded(sigma, guard))
        return _euler_maruyama(sigma, sigma_next, g2 * (sigma - sigma_next))

    return law


def wan_sde(last: Level = 0.0) -> Law:
    """Euler-Maruyama step with g = last + (guard - last) sigma: the noise level is the schedule's own, there is none to choose.

    c = sigma' - g^2 (sigma - sigma') / 2 sigma,  s = g sqrt(sigma - sigma').  last: the final level of the grid.
    Regular at sigma = 1 (g = guard there) and at sigma' = 0, where the last step still adds noise.

    Source: flow_grpo@9745241 `wan_pipeline_with_logprob.sde_step_with_logprob`; Flash-GRPO (2605.15980).
    """
    _within("wan_sde", "last", last, 1.0)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        low = _number(last, sigma)
        g = low + (guard - low) * sigma
        return _euler_maruyama(sigma, sigma_next, g**2 * (sigma - sigma_next))

    return law


def dance_sde(eta: Level) -> Law:
    """Reverse SDE with a constant diffusion coefficient eta: c = sigma' - eta^2 (sigma - sigma') / 2 sigma, s = eta sqrt(sigma
    - sigma').

    Regular at sigma = 1 and at sigma' = 0, where the last step still adds noise.

    Source: DanceGRPO (2505.07818); DanceGRPO@15cc71d `flux_step`.
    """
    _within("dance_sde", "eta", eta)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return _euler_maruyama(sigma, sigma_next, _number(eta, sigma) ** 2 * (sigma - sigma_next))

    return law


def longcat(level: Level, cap: Level = 0.45) -> Law:
    """Flow-SDE whose step never has a std above `cap`: s = min(level sqrt(sigma / (1 - sigma)) sqrt(sigma - sigma'), cap).

    c = sigma' - s^2 / 2 sigma.  At sigma = 1 the denominator takes `guard` for sigma.

    Source: LongCat-Video (2510.22200) as implemented in GenRL@82a867e.
    """
    _within("longcat", "level", level)
    _within("longcat", "cap", cap)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        variance = _number(level, sigma) ** 2 * sigma / (1 - _guarded(sigma, guard)) * (sigma - sigma_next)
        return _euler_maruyama(sigma, sigma_next, torch.minimum(variance, _number(cap, sigma) ** 2))

    return law


def sage(eta: Level, ceiling: float = 0.997) -> Law:
    """Flow-SDE with its variance integrated exactly over the step; the mean is Euler plus half of that variance times the score.

    s^2 = eta^2 (ln((1 - sigma') / (1 - min(sigma, ceiling))) - (sigma - sigma')),  c = sigma' - s^2 / 2 sigma.
    At sigma = 1 the integral diverges; `ceiling` cuts it off. A step that ends above the ceiling adds no noise.

    Source: SAGE-GRPO (2603.21872); SAGE-GRPO@c868869 `sde_step_with_logprob(sde_type="sage_grpo")`.
    """
    _within("sage", "eta", eta)
    if not 0 < ceiling < 1:
        raise ValueError(f"sage: ceiling is {ceiling:g}; give one above 0 and below 1, where the integral diverges")

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        integral = ((1 - sigma_next) / (1 - sigma.clamp(max=ceiling))).log() - (sigma - sigma_next)
        return _euler_maruyama(sigma, sigma_next, _number(eta, sigma) ** 2 * integral.clamp(min=0))

    return law


def cps(level: Level) -> Law:
    """Coefficient-preserving sampling: c = sigma' cos(level pi / 2), s = sigma' sin(level pi / 2), so c^2 + s^2 = sigma'^2.

    level in [0, 1], 0 is the ODE. The last step (sigma' = 0) is noiseless. At a fixed level it does not converge as steps grow:
    Gaussian data keep 1 - (1 - cos(level pi / 2)) / 2 of their variance; with level falling as 1 / sqrt(steps) it does, to
    first order.

    Source: Flow-CPS (2509.05952); flow_grpo@9745241 `sde_step_with_logprob(sde_type="cps")`.
    Differs: the peer scores the step by -<(x' - mean)^2>; here the density is the Gaussian one (`log_prob(form="bare")` is theirs).
    """
    _within("cps", "level", level, 1.0)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        angle = _number(level, sigma) * (math.pi / 2)
        return sigma_next * angle.cos(), sigma_next * angle.sin()

    return law


def dgpo(eta: Level) -> Law:
    """c = sigma' sqrt(1 - eta^2), s = sigma' eta: CPS by its share of noise instead of an angle. eta in [0, 1], 0 is the ODE.

    The last step (sigma' = 0) is noiseless; as for `cps`, a fixed eta does not converge as steps grow.

    Source: DGPO (2510.08425).
    Differs: the peer scores the step with std eta; s here is the std that was drawn.
    """
    _within("dgpo", "eta", eta, 1.0)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        share = _number(eta, sigma)
        return sigma_next * (1 - share**2).sqrt(), sigma_next * share

    return law


def ddim(eta: Level) -> Law:
    """DDIM with noise: s = eta sigma' sqrt(1 - e^-2h), c = sqrt(sigma'^2 - s^2), on any path; eta = 1 is DDPM's posterior.

    eta in [0, 1], 0 is the ODE. At sigma = 1: s = eta sigma'. The last step (sigma' = 0) is noiseless.
    To first order in the step it is flow_sde(sqrt(2) eta).

    Source: DDIM (2010.02502) eq. 16; ddpo-pytorch@1958463 `ddim_step_with_logprob` (variance-preserving); DiffusionNFT@24af555
    `solver.py` (flow).
    """
    _within("ddim", "eta", eta, 1.0)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return _split(sigma_next, 1 - _number(eta, sigma) ** 2 * (1 - _decay(sigma, sigma_next, alpha) ** 2))

    return law


def precise(eta: Level) -> Law:
    """Flow-SDE solved exactly over the step with x0_hat frozen: c = sigma' e^(-eta^2 h / 2), s = sigma' sqrt(1 - e^(-eta^2 h)).

    eta >= 0, 0 is the ODE. At sigma = 1, h is infinite: c = 0, x0_hat is re-noised afresh and no guard is needed. The last step
    (sigma' = 0) is noiseless. To first order in the step it is flow_sde(eta).

    Source: Precise (2605.23522).
    Differs: the authors' code keeps every std above 1e-6, which at the last step adds a density without meaning.
    """
    _within("precise", "eta", eta)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return _split(sigma_next, _decay(sigma, sigma_next, alpha) ** (_number(eta, sigma) ** 2))

    return law


def dance_precise(eta: Level) -> Law:
    """Dance-SDE solved exactly over the step with x0_hat frozen, w = eta^2 (1 / sigma' - 1 / sigma): c = sigma' e^(-w / 2),
    s = sigma' sqrt(1 - e^-w).

    eta >= 0, 0 is the ODE. Regular at sigma = 1; the last step (sigma' = 0) is noiseless. To first order it is dance_sde(eta).

    Source: the code of Precise (2605.23522).
    """
    _within("dance_precise", "eta", eta)

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return _split(sigma_next, (1 / sigma - 1 / sigma_next).exp() ** (_number(eta, sigma) ** 2))

    return law


@dataclass(frozen=True)
class FlowNoise:
    """The law of `flow_noise`. `std` turns the policy's raw output into the std of every element."""

    low: float
    high: float

    def __call__(self, sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return sigma_next, torch.full_like(sigma_next, math.sqrt(self.low * self.high))

    def std(self, raw: Tensor) -> Tensor:
        """low^(1 - w) high^w with w = (tanh(raw) + 1) / 2; float32 or better, as raw."""
        low, high = math.log(self.low), math.log(self.high)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return (low + (high - low) * (raw.tanh() + 1) / 2).exp()


def flow_noise(low: float, high: float) -> FlowNoise:
    """Learned noise: the mean is the ODE's (c = sigma'), the std is per element the output of a head of the policy, in [low, high].

    As a law it stands for the middle of its range, sqrt(low high), where a plan wants one number. The rollout takes the std from
    the head, replay recomputes it with the current weights, and it carries gradient.

    Raises: ValueError unless 0 < low < high.
    Source: ReinFlow (2505.22094), ReinFlow@aed2819 `ExploreNoiseNet`, std in [0.10, 0.24]; pi_RL (2510.25889), [0.08, 0.16].
    """
    if not 0 < low < high:
        raise ValueError(f"learned noise between {low:g} and {high:g}: give 0 < low < high")
    return FlowNoise(low, high)


def decaying(make: Callable[[Tensor], Law], level: Callable[[Tensor], Tensor]) -> Law:
    """A law whose level depends on where the step starts: `make(level(sigma))`. `samplers.levels` has the published shapes.

    Source: HiCoGen (2511.19965), decaying(dance_sde, levels.cosine(1.0)); Dynamic-TreeRPO (2509.23352), levels by depth.
    """

    def law(sigma: Tensor, sigma_next: Tensor, guard: float, alpha: Alpha = _flow) -> tuple[Tensor, Tensor]:
        return make(level(sigma))(sigma, sigma_next, guard, alpha=alpha)

    return law
