"""Methods whose news is what they make of the rewards, on Flow-GRPO's rollout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

from flowrl import advantage, objectives
from flowrl.samplers import laws
from flowrl.types import Method, WeightSet

from .flow_grpo import Kind, flow_grpo_fast, law_of, reference, throughout


def gdpo(
    group: int = 24, law: Kind = "flow_sde", noise: float = 0.7, clip: float = 1e-4, beta: float = 0.04, updates: int = 2
) -> Method:
    """GDPO on Flow-GRPO's rollout: each reward z-scored in its group, then weighed and summed, then z-scored over the batch, so
    that rewards of different spread keep their say.

    Source: GDPO (2601.05242), GDPO@b080e63 (language models; ddof 1, eps 1e-4).
    """
    return Method(
        throughout(law_of(law, noise), group),
        advantage.Group(ddof=1, combine=advantage.gdpo),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def parrot(
    group: int = 8, law: Kind = "flow_sde", noise: float = 0.7, clip: float = 1e-4, beta: float = 0.0, updates: int = 1
) -> Method:
    """Parrot: of all images of the batch only those that no other one dominates in every reward are trained on, each by its rewards
    as they are. For several rewards: of one, a single image of the batch is left.

    Source: Parrot (2401.05675).
    Differs: a clipped ratio on a flow, theirs REINFORCE on DDIM steps; without its tokens that ask for a reward and without
    training the prompt expander.
    """
    return Method(
        throughout(law_of(law, noise), group),
        advantage.Pareto(advantage.Composed(advantage.raw, zero_sum=False)),
        objectives.clip(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def gardo(
    group: int = 24,
    noise: float = 0.7,
    clip: float = 1e-4,
    beta: float = 0.04,
    share: float = 0.1,
    limit: float = 3e-4,
    every: int = 15,
    updates: int = 2,
    compat: str | None = None,
) -> Method:
    """GARDO on Flow-GRPO's rollout: images that differ from their group count more, only those the trained reward overrates (the
    `share` of largest disagreement with the other rewards) are held by the KL, and the reference becomes the policy where the KL
    exceeds `limit`, or every `every` iterations.

    Needs features of the images (recipe: evaluate.features) and further rewards of weight 0. KL 0.04 for text rendering, 0.07 for
    GenEval, 0.01 for FLUX.

    Raises: ValueError for every < 1.
    Source: GARDO (2512.24138), GARDO@1cc77fb.
    Differs: the paper's sign of the gate; compat="GARDO@1cc77fb" is the released code's. Steps are weighed alike, theirs by std.
    """
    if every < 1:
        raise ValueError(f"a reference that is replaced every {every} iterations: give 1 or more")

    def renewed(iteration: int, metrics: Mapping[str, float]) -> bool:
        return advantage.drifted(metrics.get("kl/mean", 0.0), (iteration + 1) % every or every, limit, every)

    credit = advantage.Composed(advantage.center, zero_sum=False)
    return Method(
        throughout(laws.flow_sde(noise), group),
        advantage.Gardo(credit, share, compat=compat),
        objectives.clip(clip, beta=beta),
        {"reference": WeightSet("copy", when=renewed)} if beta else {},
        updates=updates,
        features=True,
    )


def pref_grpo(
    group: int = 8,
    noise: float = 0.7,
    clip: float = 1e-4,
    beta: float = 0.0,
    margin: float = 0.0,
    updates: int = 4,
) -> Method:
    """Pref-GRPO: rewards are how often an image wins against the others of its group, each reward's z-scored and summed, then
    z-scored over the batch (GDPO); GRPO-Guard's ratio.

    margin: scores this close are a tie. A reward may itself compare (a judge of pairs); then its values are win rates already.

    Source: Pref-GRPO (2508.20751), Pref-GRPO@3e787f6 (win rate 0.4 and CLIP 0.6).
    Differs: every step but the last is trained on, theirs a random 60 %.
    """
    return Method(
        throughout(laws.flow_sde(noise), group),
        advantage.WinRate(margin, combine=partial(advantage.gdpo, eps=1e-8)),
        objectives.guard(clip, beta=beta),
        reference(beta),
        updates=updates,
    )


def adv_grpo(
    group: int = 16,
    law: Kind = "cps",
    noise: float = 0.8,
    window: int = 2,
    clip: float = 1e-5,
    std: Literal["group", "global"] = "global",
    updates: int = 2,
) -> Method:
    """Adv-GRPO's optimizer: Flow-GRPO-Fast with a window of 2 steps, groups of 16, clip 1e-5, no KL. What is adversarial is its
    reward, a discriminator that is trained along.

    Source: Adv-GRPO (2511.20256), Adv-GRPO@8287f90.
    """
    return flow_grpo_fast(group, law, noise, window, clip=clip, std=std, updates=updates)
