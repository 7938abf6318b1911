"""Methods of language-model RL on Flow-GRPO's rollout: a denoising step stands for a token, a trajectory for a response."""

from __future__ import annotations

from functools import partial

from flowrl import advantage, objectives
from flowrl.samplers import laws
from flowrl.types import Advantage, Method, Objective

from .flow_grpo import reference, throughout


def _method(group: int, noise: float, credit: Advantage, objective: Objective, beta: float, updates: int) -> Method:
    return Method(throughout(laws.flow_sde(noise), group), credit, objective, reference(beta), updates=updates)


def mc_grpo(group: int = 25, noise: float = 0.7, clip: float = 1e-4, beta: float = 0.04, updates: int = 2) -> Method:
    """MC-GRPO: rewards less their group's median, over the median deviation; the median image is left out.

    Source: MC-GRPO (2601.22582), MC-GRPO@da07745 (one image more than GRPO's group, KL 0.04).
    Differs: see `advantage.mc` for groups whose median deviation is 0.
    """
    return _method(
        group,
        noise,
        advantage.Composed(partial(advantage.mc, drop=True), zero_sum=False),
        objectives.clip(clip, beta=beta),
        beta,
        updates,
    )


def ngrpo(
    group: int = 8,
    noise: float = 0.7,
    best: float = 1.0,
    low: float = 0.8e-4,
    high: float = 1.2e-4,
    beta: float = 0.0,
    updates: int = 2,
) -> Method:
    """NGRPO: mean and std are taken with a perfect image of reward `best` among the group, so that a group that fails alike is
    pushed away from; the clip is wider above than below.

    Source: NGRPO (2509.18851), NGRPO@e7a3804 (r_max 1; clip 0.16 below and 0.24 above 0.2: the same shares of 1e-4 here).
    """
    credit = advantage.Composed(partial(advantage.ngrpo, top=best), zero_sum=False)
    return _method(group, noise, credit, objectives.clip(low, high, beta=beta), beta, updates)


def dcpo(
    group: int = 16, noise: float = 0.7, clip: float = 1e-4, beta: float = 0.0, updates: int = 2, dynamic: bool = False
) -> Method:
    """DCPO's smooth standardisation: each prompt's rewards against its whole history, blended with the present group's.

    Raises: ValueError for dynamic=True: DCPO's clip is made of probabilities of tokens. A step of a flow has a density, for which
    those bounds mean nothing (`objectives.dynamic_range`).
    Source: DCPO (2509.02333), DCPO@01787b0.
    """
    if dynamic:
        raise ValueError(
            "DCPO's dynamic clip is made of the old probability of a token, in [0, 1]; a step of a flow has a density, for which "
            "its bounds have no meaning: leave dynamic False, which clips by a fixed range"
        )
    return _method(group, noise, advantage.Dcpo(), objectives.clip(clip, beta=beta), beta, updates)


def spo(group: int = 2, noise: float = 0.7, clip: float = 1e-4, beta: float = 0.0, updates: int = 2) -> Method:
    """SPO: no group; each prompt's expected reward is tracked over iterations and taken off, then advantages are z-scored over the
    batch. For rewards in [0, 1].

    Source: SPO (2509.13232), verl-recipe@48ea0a7. Goes with data.selection.name=prioritised, its draw of prompts.
    Differs: two images a prompt, theirs one; trackers forget at the rate of a policy that stands still.
    """
    return _method(group, noise, advantage.Spo(), objectives.clip(clip, beta=beta), beta, updates)


def reg_grpo(group: int = 16, noise: float = 0.7, beta: float = 0.0, updates: int = 2) -> Method:
    """Reg-GRPO: the standardised log-ratio of a group is regressed on its standardised rewards. No clip.

    Source: DeepVideo-R1 (2506.07464).  Differs: see `objectives.Reg`.
    """
    return _method(group, noise, advantage.Group(), objectives.reg(beta), beta, updates)


def disco(
    group: int = 8,
    noise: float = 0.7,
    temperature: float | None = 10.0,
    limit: float = 1e-4,
    strength: float = 1e3,
    updates: int = 2,
) -> Method:
    """DisCO: images above their group's mean against those below, by their likelihoods; a hinge on the KL to the old policy instead
    of a clip.

    Source: DisCO (2505.12366), DisCO@bd2b078.
    Differs: right and wrong answers become better and worse than the mean.
    """
    objective = objectives.disco("likelihood", temperature, limit, strength)
    return _method(group, noise, advantage.Group(), objective, 0.0, updates)


def gspo(group: int = 24, noise: float = 0.7, low: float = 3e-4, high: float = 4e-4, beta: float = 0.0, updates: int = 4) -> Method:
    """GSPO: the ratio is that of the whole trajectory, the mean of its steps' log-ratios, and so is its clip.

    Source: GSPO (2507.18071), clip 3e-4 below and 4e-4 above.
    """
    return _method(group, noise, advantage.Group(), objectives.gspo(low, high, beta), beta, updates)


def cispo(
    group: int = 24, noise: float = 0.7, low: float = 10.0, high: float = 1e-4, beta: float = 0.0, updates: int = 4
) -> Method:
    """CISPO: the weight of a step is clipped, its gradient never ends.

    Source: MiniMax-M1 (2506.13585) (no lower end, 0.2 above; 1e-4 on the field's mean log-ratio).
    """
    return _method(group, noise, advantage.Group(), objectives.cispo(low, high, beta), beta, updates)
