"""Flow-GRPO (2505.05470): every step but the last is a stochastic flow step, trained with a clipped ratio and a KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.samplers import Law, Plan, chains, laws, tree, windows
from flowrl.types import Method, WeightSet

from .average import renewed, warming


def reference(beta: float, follow: float | None = None, reset: int | None = None) -> dict[str, WeightSet]:
    """The weight sets a KL of strength beta needs: the start, frozen; with `follow` an average of the weights with that decay; with
    `reset` the policy of every so many iterations.

    Raises: ValueError for a beta below 0, for both, for either without a beta, a decay outside [0, 1) or a reset below 1.
    """
    if not beta >= 0:
        raise ValueError(f"a KL of strength {beta:g} would reward leaving the reference; give 0 or more")
    if not beta:
        if follow is not None or reset is not None:
            raise ValueError("without a KL no reference is asked: give beta, or leave follow and reset out")
        return {}
    if follow is not None and reset is not None:
        raise ValueError("a reference either follows or is reset: give follow or reset, not both")
    if reset is not None:
        return {"reference": renewed(reset)}
    return {"reference": WeightSet("frozen") if follow is None else WeightSet("ema", decay=warming(follow))}


Kind = Literal["flow_sde", "cps", "dance_sde", "precise", "dance_precise", "ddim", "dgpo", "sage", "longcat"]


def law_of(kind: Kind, noise: float) -> Law:
    """The law of that name at one level.

    Raises: ValueError for a name that is no law of one level.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"law {kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
    return getattr(laws, kind)(noise)


def throughout(law: Law, group: int) -> Callable[[int, Tensor, int], Plan]:
    """Chains whose every step but the last is noisy (0.99 of the steps, as Flow-GRPO writes it)."""

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        return chains(sigmas, law, range(int((len(sigmas) - 1) * 0.99)), group)

    return plan_at


def flow_grpo(
    group: int = 24,
    noise: float = 0.7,
    clip: float = 1e-4,
    beta: float = 0.04,
    std: Literal["group", "global"] = "global",
    updates: int = 2,
    compat: str | None = None,
    law: Kind = "flow_sde",
    kl: Literal["exact", "forward"] = "exact",
    follow: float | None = None,
    reset: int | None = None,
    target: float | None = None,
) -> Method:
    """Flow-GRPO as published for SD3.5-M on GenEval: noise 0.7, clip 1e-4, KL 0.04, groups of 24, global std, two updates a
    rollout.

    The last step of the schedule is quiet (their 0.99 of the steps).
    kl: "forward" is RAPO's estimate.  follow, reset: a reference that follows as an average, or becomes the policy every so many
    iterations.  target: beta is adapted so that the KL stays near it (`advantage.Adaptive`).

    Source: Flow-GRPO (2505.05470), flow_grpo@9745241 config/grpo.py.
    Differs: the KL is the exact one of a step; compat="flow_grpo@9745241" multiplies it by sigma - sigma' as they do.
    """

    if not beta and (target is not None or kl != "exact"):
        raise ValueError("target and kl say how the KL is taken, and without a beta there is none: give beta, or leave them out")
    credit = advantage.Group(std=std)
    return Method(
        throughout(law_of(law, noise), group),
        credit if target is None else advantage.Adaptive(credit, target),
        objectives.clip(clip, beta=beta, compat=compat, kl=kl),
        reference(beta, follow, reset),
        updates=updates,
    )


def flow_grpo_fast(
    group: int = 24,
    law: Kind = "cps",
    noise: float = 0.8,
    window: int = 3,
    low: int = 0,
    high: int = 5,
    clip: float = 1e-5,
    beta: float = 0.0,
    std: Literal["group", "global"] = "global",
    updates: int = 2,
    seed: int = 0,
    branching: bool = False,
) -> Method:
    """Flow-GRPO-Fast: only a window of `window` steps, placed anew each iteration in [low, high), is stochastic and trained.

    branching: the form before 2025-10: one initial noise, no noise up to the window, and there the path branches into the group.

    Source: Flow-GRPO (2505.05470), flow_grpo@9745241 config/grpo.py (SD3 fast without guidance: CPS 0.8, window 3 of [0, 5), clip
    1e-5).
    Differs: the window is the same for all samples of an iteration (see `windows.jumping`); CPS steps are scored by their full
    density, theirs by -(x' - mean)^2 without the std.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        steps = windows.jumping(iteration, low, min(high, len(sigmas) - 2), window, seed)
        if branching:
            return tree(sigmas, law_of(law, noise), steps, {steps.start: group})
        return chains(sigmas, law_of(law, noise), steps, group)

    return Method(plan_at, advantage.Group(std=std), objectives.clip(clip, beta=beta), reference(beta), updates=updates)


def grpo_guard(
    group: int = 24,
    law: Kind = "flow_sde",
    noise: float = 0.7,
    clip: float = 2e-6,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 2,
) -> Method:
    """GRPO-Guard as published for SD3.5-M: Flow-GRPO's rollout, the ratio centred and of one spread at every step, clip 2e-6,
    no KL.

    Source: GRPO-Guard (2510.22319), flow_grpo@9745241 config/grpo_guard.py.
    Differs: the drift is each edge's own, theirs one number for the batch (`objectives.guarded`).
    """

    return Method(
        throughout(law_of(law, noise), group),
        advantage.Group(std=std),
        objectives.guard(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def flow_dppo(
    group: int = 24,
    law: Kind = "flow_sde",
    noise: float = 0.7,
    threshold: float = 1e-5,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 2,
) -> Method:
    """Flow-DPPO: Flow-GRPO's rollout without a clip; edges that moved by a KL of `threshold` and would move on are left out.

    Source: Flow-DPPO (2606.11025), verl-omni@a1139ba.
    """

    return Method(
        throughout(law_of(law, noise), group),
        advantage.Group(std=std),
        objectives.dppo(threshold, beta),
        reference(beta),
        updates=updates,
    )


def flow_noise(
    group: int = 24,
    low: float = 0.08,
    high: float = 0.16,
    clip: float = 1e-2,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 2,
) -> Method:
    """Learned noise: the mean of every step but the last is the ODE's, its std per element is the output of a head of the policy
    (policy.noise_head), in [low, high], and is trained along by the ratio of the two Gaussians.

    Source: ReinFlow (2505.22094), std in [0.10, 0.24]; pi_RL (2510.25889), Flow-Noise, [0.08, 0.16].
    Differs: those train robot policies by PPO with a critic and a clip of the joint likelihood; here it is the group's advantage
    and a clip of the mean log-ratio over latent dims.
    """

    return Method(
        throughout(laws.flow_noise(low, high), group),
        advantage.Group(std=std),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )
