"""Parts that do not go together are refused, with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import toy
from method_table import TABLE, parts
from test_method_promises import earned

from flowrl import advantage, methods, objectives
from flowrl.loop import Parts
from flowrl.recipe import MethodSpec, PolicySpec, SizesSpec
from flowrl.recipes import build
from flowrl.recipes.engine import engine
from flowrl.replay import form
from flowrl.samplers import Plan
from flowrl.samplers.noise import Source
from flowrl.types import Credit, Method, Objective, WeightSet

GRID = toy.Policy().sigmas(toy.STEPS)


def asked(objective: Objective, kind: str) -> None:
    """Queries of a plan that is refused, and where the loss refuses it, the loss."""
    got, _ = toy.collected(toy.Policy(), toy.plan(kind))  # pyright: ignore[reportArgumentType]
    ro = got.rollout
    assert ro is not None
    some = torch.ones(len(ro.slots), len(ro.plan.parent))
    q = objective.queries(ro, Credit(some, some, some), Source(0, 0))
    batch = form(q, torch.arange(len(q.row_prompt)), ro, Source(0, 0))
    u = dict.fromkeys(("current", *objective.needs), batch.u_old)
    objective.loss(batch, objective.measure(batch, u))  # pyright: ignore[reportArgumentType]


def composed(objective: Objective, **sets: WeightSet) -> Method:
    return Method(lambda iteration, sigmas, slot: toy.plan("chains"), advantage.Group(), objective, sets)


def rehearsed(method: Method, prompts: int = 4, plan: Plan | None = None, noisy: bool = False) -> None:
    base = parts("flow_grpo")
    recipe = replace(base.recipe, sizes=SizesSpec(prompts=prompts, group=6), policy=PolicySpec(noise_head=noisy))
    of: Parts[Method] = replace(base, method=method, recipe=recipe)
    engine(method).rehearse(of, plan or method.plan_at(0, GRID, 0))


def alone(name: str) -> None:
    """One image a prompt."""
    method = methods.TABLE[name](group=1)
    plan = method.plan_at(0, GRID, 0)
    method.advantage.apply(earned(name, plan, 0), method.advantage.init())


BAD: dict[str, Callable[[], object]] = {
    "needs the weight set 'reference' and declares none: .* add weights=": lambda: composed(objectives.clip(beta=0.1)),
    "needs the weight set 'reference' and declares old": lambda: composed(objectives.dpo(), old=WeightSet("frozen")),
    "needs the weight set 'recent'": lambda: composed(objectives.awm(beta=0)),
    "needs the weight set 'old'": lambda: composed(objectives.nft(kl=0)),
    "needs the weight set 'average'": lambda: replace(composed(objectives.clip()), export="average"),
    "needs the weight set 'behaviour'": lambda: replace(composed(objectives.clip()), sample_from="behaviour"),
    "gspo takes the ratio of a whole trajectory, and on this plan 2 images share a recorded step; use chains": lambda: asked(
        objectives.gspo(), "tree"
    ),
    "gmpo takes the ratio of a whole trajectory, and on this plan 2 images": lambda: asked(objectives.gmpo(), "tree"),
    "disco takes the ratio of a whole trajectory, and on this plan 2 images": lambda: asked(objectives.disco(), "tree"),
    "neighbours need a quiet plan whose states are watched; take the plan of methods.neighbor_grpo": lambda: asked(
        objectives.neighbor(), "ode"
    ),
    "neighbours need a quiet plan": lambda: asked(objectives.neighbor(), "chains"),
    "4 anchors among 2 images of a prompt; use a larger group or fewer anchors": lambda: rehearsed(
        methods.neighbor_grpo(group=2, anchors=4)
    ),
    "a ratio objective needs a plan with noisy steps; this plan has none": lambda: asked(objectives.clip(), "ode"),
    "a ratio objective needs a plan with noisy": lambda: asked(objectives.gspo(), "ode"),
    "a ratio objective needs": lambda: rehearsed(composed(objectives.cispo()), plan=toy.plan("ode")),
    "6 optimizer steps a rollout over 4 prompts: .* cannot be parted; use more prompts or .*updates=4": lambda: rehearsed(
        methods.gspo(group=6, updates=6)
    ),
    "4 optimizer steps a rollout over 2 prompts": lambda: rehearsed(methods.dgpo(updates=4), prompts=2),
    "a group of 1 has nothing to compare with, so every advantage is 0; use at least 2": lambda: build.method(
        MethodSpec("flow_grpo"), 1
    ),
    "has no form for learned noise, whose std changes with the weights; use clip": lambda: rehearsed(
        replace(methods.flow_noise(), objective=objectives.guard()), noisy=True
    ),
    "which all groups are multiples|do not make whole trajectories of 2; make the group a multiple": lambda: build.method(
        MethodSpec("tempflow_grpo", {"teeth": 2}), 3
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_parts_that_do_not_go_together_are_a_sentence(words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BAD[words]()


@pytest.mark.parametrize("name", TABLE)
def test_one_image_a_prompt_is_a_sentence_where_it_has_nothing_to_compare_with(name: str) -> None:
    if TABLE[name].alone is not None:
        return alone(name)
    with pytest.raises(ValueError, match=r"needs at least \d that compete|anchors among 1|make the group a multiple"):
        alone(name)


@pytest.mark.parametrize("updates", [1, 4])
def test_what_goes_together_is_not_refused(updates: int) -> None:
    rehearsed(methods.gspo(group=6, updates=updates))
    rehearsed(methods.flow_grpo(group=6, updates=2 * updates + 5))
