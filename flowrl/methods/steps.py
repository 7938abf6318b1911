"""Methods whose news is the step they sample with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from flowrl import advantage, objectives
from flowrl.objectives import scales
from flowrl.samplers import Plan, chains, laws, levels, solvers, tree, windows
from flowrl.types import Method, WeightSet

from .average import renewed
from .flow_grpo import reference, throughout


def flow_cps(
    group: int = 24,
    noise: float = 0.8,
    clip: float = 1e-4,
    beta: float = 0.0,
    std: Literal["group", "global"] = "group",
    updates: int = 2,
) -> Method:
    """Flow-GRPO with coefficients-preserving steps, which add no more noise than they take away; every step but the last.

    Source: Flow-CPS (2509.05952), FlowCPS@b402c7a; level as in flow_grpo@9745241 config/grpo.py.
    Differs: scored by the full density of the step, theirs by -(x' - mean)^2 without the std.
    """
    return Method(
        throughout(laws.cps(noise), group),
        advantage.Group(std=std),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def precise(group: int = 8, noise: float = 1.5, clip: float = 4e-6, beta: float = 0.0, updates: int = 1) -> Method:
    """Precise as published for FLUX.2-klein: the exact step of the SDE with the clean prediction held, GRPO-Guard's ratio with |b|
    in place of sigma - sigma', rewards z-scored over the batch before they are summed; clip 4e-6, no KL.

    Source: Precise (2605.23522), Precise@9a84f91.
    Differs: the drift is each edge's own (`objectives.guarded`); steps are divided by |b|, theirs by |b| over its mean.
    """
    return Method(
        throughout(laws.precise(noise), group),
        advantage.Group(combine=advantage.pooled),
        objectives.guard(clip, beta=beta, by="slope"),
        reference(beta),
        updates=updates,
    )


def sage_grpo(
    group: int = 4, noise: float = 0.7, clip: float = 1e-4, beta: float = 1e-5, every: int = 10, updates: int = 1
) -> Method:
    """SAGE-GRPO as published for HunyuanVideo-1.5: Flow-SDE's variance integrated exactly, every step's gradient as large as the
    middle one's, and a KL of 1e-5 to a reference that becomes the policy every `every` iterations.

    Raises: ValueError for every < 1.
    Source: SAGE-GRPO (2603.21872), SAGE-GRPO@c868869.
    Differs: without its second KL, to the policy one step before (weight 0.1); levels and clip are Flow-GRPO's.
    """

    def scale(steps: scales.Steps) -> Tensor:
        return scales.equalised(steps.b, steps.s)

    return Method(
        throughout(laws.sage(noise), group),
        advantage.Group(),
        objectives.clip(clip, beta=beta, scale=scale),
        {"reference": renewed(every)} if beta else {},
        updates=updates,
    )


def longcat(
    group: int = 4,
    noise: float = 1.0,
    cap: float = 0.45,
    low: int = 0,
    high: int = 6,
    clip: float = 1e-3,
    beta: float = 3e-4,
    updates: int = 1,
    seed: int = 0,
) -> Method:
    """LongCat-Video's GRPO: one stochastic step a rollout in [low, high), its std capped, from one initial noise for the group; the
    step's weight undoes how noise grows with the level, rewards are z-scored one by one by the largest std of all groups, and
    summed.

    Source: LongCat-Video (2510.22200) as implemented in GenRL@82a867e.
    Differs: the step is the same for all prompts of an iteration.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        window = windows.jumping(iteration, low, min(high, len(sigmas) - 2), 1, seed)
        return tree(sigmas, laws.longcat(noise, cap), window, {window.start: group})

    def scale(steps: scales.Steps) -> Tensor:
        return scales.undone(steps.sigma, steps.sigma_next, steps.guard)

    return Method(
        plan_at,
        advantage.Group(std="max", combine=advantage.weighted),
        objectives.clip(clip, beta=beta, scale=scale, kl_scale=lambda steps: scale(steps) ** 2),
        reference(beta),
        updates=updates,
    )


def hicogen(
    group: int = 16, noise: float = 1.0, least: float = 0.0, clip: float = 1e-4, beta: float = 0.0, updates: int = 4
) -> Method:
    """HiCoGen's decaying stochasticity: DanceGRPO's step whose level falls from `noise` to `least` along a cosine, most early.

    Its hierarchical reward is a reward (global, subject and relation scores added up), not part of the method.

    Source: HiCoGen (2511.19965).
    Differs: from the text; clip and updates, which it does not give, are DanceGRPO's.
    """
    return Method(
        throughout(laws.decaying(laws.dance_sde, levels.cosine(noise, least)), group),
        advantage.Group(ddof=1, eps=1e-8),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def ddpo(group: int = 4, noise: float = 1.0, clip: float = 1e-4, buffer: int = 16, beta: float = 0.0, updates: int = 2) -> Method:
    """DDPO, the ancestor: DDIM steps with eta 1, a prompt's rewards compared with its own last `buffer` ones, clip 1e-4, no KL.

    A prompt needs `buffer` rewards before it is compared with itself; until then with the whole batch.

    Source: DDPO (2305.13301), ddpo-pytorch@1958463 (clip 1e-4, advantages within 5).
    Differs: the last step is not trained on, for it has no noise on a flow.
    """
    return Method(
        throughout(laws.ddim(noise), group),
        advantage.Tracked(buffer, buffer),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def neighbor_grpo(
    group: int = 12, mix: float = 0.3, anchors: int = 4, power: float = 0.8, clip: float = 1e-4, updates: int = 1
) -> Method:
    """Neighbor-GRPO: no stochastic step at all. A group starts from correlated noises, sqrt(1 - mix^2) shared + mix own, and
    anchors are drawn to the paths of better neighbours; rewards are scaled by their L_p quasi-norm, p = 0.8; DPM-Solver++.

    Source: Neighbor-GRPO (2511.16955).  Differs: written from the text; see `objectives.Neighbor`.
    """

    def plan_at(iteration: int, sigmas: Tensor, slot: int) -> Plan:
        plan = chains(sigmas, laws.ode(), (), group, mix)
        return replace(plan, watched=plan.height > 0)

    weights = {"old": WeightSet("copy", when=lambda iteration, metrics: True)} if updates > 1 else {}
    return Method(
        plan_at,
        advantage.Composed(partial(advantage.quasi, power=power)),
        objectives.neighbor(anchors, clip, old=updates > 1),
        weights,
        updates=updates,
        solver=solvers.dpm(2),
    )
