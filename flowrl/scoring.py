"""Scores of what was drawn, the same in every process, and what trainable rewards learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.draw import Drawn, references
from flowrl.overlap import Early
from flowrl.rewards.base import Compares, Reward, Samples, Scores, State, TrainableReward, waits
from flowrl.samplers import Plan


class Unscored(ValueError):
    """Nothing could be scored, by rewards that wait for others: it may be better later."""


@dataclass(frozen=True)
class Lessons:
    """What trainable rewards made of an iteration: their metrics, and whether one of them asks to leave the policy as it is."""

    metrics: Mapping[str, float]
    skip: bool


def gathered(drawn: Drawn, prompts: Prompts, plan: Plan, world: World) -> Samples:
    """The leaves of all prompts from all processes, the same everywhere."""
    own = drawn.samples
    if own is not None and world.size == 1:
        return own
    picture = next(shape for shape in world.gather(None if own is None else tuple(own.pixels.shape[2:])) if shape is not None)
    pixels = torch.zeros(len(prompts), len(plan.leaves), *picture, dtype=torch.uint8, device=world.device)
    if own is not None:
        pixels[drawn.local.to(world.device)] = torch.where(
            own.scored.view(*own.scored.shape, *[1] * len(picture)), own.pixels, 0
        ).to(pixels)
    world.sum(pixels)
    everything = torch.ones(pixels.shape[:2], dtype=torch.bool)
    return Samples(pixels.cpu(), prompts.text, prompts.metadata, everything, plan.rivals, references(prompts))


def scored(
    rewards: Mapping[str, Reward],
    drawn: Drawn,
    states: dict[str, State],
    prompts: Prompts,
    plan: Plan,
    world: World,
    early: Early | None = None,
) -> dict[str, Scores]:
    """Every reward on this process's leaves, gathered to [P, L] of the whole batch. early: has been put all of them, and is asked
    for its rewards' scores last. Rewards that compare see whole prompts: each process takes some.

    Raises: ValueError in every process where a reward that does not wait for others could score no image; whatever a reward
    raises.
    """
    out: dict[str, Scores] = {}
    for name in sorted(rewards, key=lambda name: early is not None and name in early):
        samples, local = drawn.samples, drawn.local
        if apart(rewards[name], world):
            samples, local = gathered(drawn, prompts, plan, world), torch.arange(len(prompts))
            share = (local % world.size == world.rank)[:, None]
            samples = replace(samples, scored=samples.scored & share)
        scores = None
        with world.together():
            if samples is not None:
                if early is not None and name in early:
                    scores, states[name] = early.take(name)
                else:
                    scores, states[name] = rewards[name](samples, states[name])
                scores = replace(scores, valid=scores.valid & samples.scored)
        out[name] = _spread(scores, local, (len(prompts), len(plan.leaves)), world)
        if not out[name].valid.any() and not waits(rewards[name]):
            raise ValueError(_none(name, out[name]))
    return {name: out[name] for name in rewards}


def answered(
    given: Mapping[str, Scores], scores: Mapping[str, Scores], rewards: Mapping[str, Reward], factors: Mapping[str, float]
) -> None:
    """given: as the rewards gave them;  scores: by their rules.

    Raises: ValueError where no image has all the scores that count; Unscored where it may have them later.
    """
    if torch.stack([one.valid for name, one in scores.items() if factors[name]]).all(0).any():
        return
    silent = next((name for name, one in given.items() if not one.valid.any()), None)
    told = f"no image of this iteration could be scored by all of {', '.join(scores)}; see their warnings above"
    kind = Unscored if any(waits(reward) for reward in rewards.values()) else ValueError
    raise kind(told if silent is None else _none(silent, given[silent]))


def _none(name: str, scores: Scores) -> str:
    return f"reward {name!r} could score none of the {scores.valid.numel()} images of this iteration; see its warnings above"


def apart(reward: Reward, world: World) -> bool:
    """Whether a reward compares images that several processes hold."""
    return world.size > 1 and isinstance(reward, Compares) and reward.compares


def _spread(own: Scores | None, local: Tensor, shape: tuple[int, int], world: World) -> Scores:
    """The scores of all processes in one, with their parts."""

    def whole(part: Tensor | None, known: Tensor | None) -> tuple[Tensor, Tensor]:
        values, valid = torch.zeros(shape, device=world.device), torch.zeros(shape, device=world.device)
        if part is not None and known is not None:
            values[local] = torch.where(known, part, 0).float().to(world.device)
            valid[local] = known.float().to(world.device)
        world.sum(values, valid)
        return values.cpu(), valid.cpu() > 0

    values, valid = whole(own and own.values, own and own.valid)
    parts: dict[str, Tensor] = {}
    for name in sorted({name for told in world.gather(list(own.parts) if own else []) for name in told}):
        mine = None if own is None else own.parts.get(name)
        part, known = whole(mine, None if own is None or mine is None else own.valid & mine.isfinite())
        parts[name] = torch.where(known, part, torch.nan)
    return Scores(torch.where(valid, values, torch.nan), valid, parts)


def learned(
    rewards: Mapping[str, Reward], drawn: Drawn, states: dict[str, State], prompts: Prompts, plan: Plan, world: World
) -> Lessons:
    """Every trainable reward's lesson from the images of all processes, once their scores are taken. States go into `states`."""
    learners = {name: reward for name, reward in rewards.items() if isinstance(reward, TrainableReward)}
    if not learners:
        return Lessons({}, False)
    everything, metrics, skips = gathered(drawn, prompts, plan, world), dict[str, float](), list[bool]()
    with world.together():
        for name, reward in learners.items():
            states[name], told, skip = reward.update(everything, states[name])
            metrics |= told
            skips.append(skip)
    return Lessons(metrics, any(skips))
