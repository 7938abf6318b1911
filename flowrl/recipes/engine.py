"""Which loop a method belongs to: the one place that asks for its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from flowrl import direct, loop
from flowrl.direct import Direct
from flowrl.loop import Parts, Session
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, rollout
from flowrl.samplers.noise import Source
from flowrl.types import Credit, Method, Outcome


class Engine(NamedTuple):
    """iterate: one iteration, its row of metrics;  rehearse: raises what method, plan and rewards have against each other, and
    returns how many network calls' graphs a training row keeps at once."""

    iterate: Callable[[Parts[Any], Session], dict[str, float]]
    rehearse: Callable[[Parts[Any], Plan], int]


def engine(method: Method | Direct) -> Engine:
    return Engine(direct.iterate, direct.rehearse) if isinstance(method, Direct) else Engine(loop.iterate, _rehearse)


IDLE_CLIP = (
    "One optimizer step a rollout: the ratio is 1 where its gradient is taken, so the clip cannot act; raise method.args.updates "
    "where it should."
)


EXCESS = 2.0  # times the noise of a level; the published methods at their published steps stay below on a flow's path


def notes(parts: Parts[Any]) -> list[str]:
    """What a user should know of a method as it is set, a sentence each: for the log and the report."""
    method = parts.method
    said = [IDLE_CLIP] if isinstance(method, Method) and method.idle_clip else []
    plan = method.plan_at(0, parts.policy.sigmas(parts.recipe.policy.steps), 0)
    excess = 1.0 if plan.learned else plan.excess(parts.policy.path)
    if excess > EXCESS:
        said.append(
            f"A step of {parts.recipe.method.name} leaves up to {excess:.1f} times the noise that the model expects there, so that "
            "training sees grainy pictures; lower its noise, or take a method whose steps are exact (ddpo, flow_cps, precise)."
        )
    if not getattr(parts.policy, "pictured", True) and any(image is not None for image in parts.prompts.images):
        said.append("The prompts come with images, which this model is not shown: rewards see them alone.")
    return said


def _credited(parts: Parts[Method], plan: Plan) -> None:
    """What the advantage has against rewards, groups and plan, by made-up scores between 0 and 1."""
    count, leaves = parts.recipe.sizes.prompts, len(plan.leaves)
    draw = torch.Generator().manual_seed(0)
    valid = torch.ones(count, leaves, dtype=torch.bool)
    factors = {name: factor for name, (_, factor) in parts.rewards.items()}
    # factors that add up to more than 1 would leave the range that some advantages ask for: that is the reward's to say
    whole = sum(abs(f) for f in factors.values())
    scores = {name: Scores(torch.rand(count, leaves, generator=draw) / max(whole, 1), valid) for name in factors}
    outcome = Outcome(
        plan,
        scores,
        factors,
        [""] * count,
        [{}] * count,
        torch.arange(count),
        0,
        torch.zeros(count, len(plan.edges)),
        torch.rand(count, leaves, 2, generator=draw) if parts.method.features else None,
    )
    parts.method.advantage.apply(outcome, parts.method.advantage.init())


def _rehearse(parts: Parts[Method], plan: Plan) -> int:
    """What an objective has against a plan, and against so many optimizer steps, is said now, not after the first evaluation and
    rollout.
    """
    updates, prompts, objective = parts.method.updates, parts.recipe.sizes.prompts, parts.method.objective
    if updates > prompts and not objective.separable:
        raise ValueError(
            f"{updates} optimizer steps a rollout over {prompts} prompts: this objective compares the images of a prompt, which "
            f"cannot be parted; use more prompts or --set method.args.updates={prompts}"
        )

    def predict(x: torch.Tensor, sigma: torch.Tensor, slot: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return (x, x) if parts.recipe.policy.noise_head else x

    _credited(parts, plan)
    record = rollout(plan, predict, 1, (1,), lambda slot, node: torch.zeros(1), path=parts.policy.path)
    nothing = torch.zeros(1, len(plan.parent))
    objective.queries(record, Credit(nothing, nothing, nothing), Source(0, 0))
    return 1
