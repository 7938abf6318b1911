"""The loop. It knows no method, model or reward by name: plan, collect, credit, queries, update, and the books that are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from flowrl import data
from flowrl.collect import Collected, collect
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.recipe import OptimSpec, Recipe
from flowrl.rewards import total
from flowrl.rewards.base import Reward, Scores, State
from flowrl.samplers import Plan
from flowrl.samplers.noise import Source
from flowrl.sizes import Block, Sizes, cut
from flowrl.types import Cond, Method, Policy, Queries, Rollout
from flowrl.update import RatioError, Trained, anchored, form, update
from flowrl.weights import Weights
from flowrl.witness import Witness, difference, watched

log = logging.getLogger("flowrl")
T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True)
class Parts(Generic[M]):
    """What a run is made of. method: of this loop or of another (`flowrl.direct`);  rewards: name -> (reward, factor)."""

    recipe: Recipe
    policy: Policy
    method: M
    rewards: Mapping[str, tuple[Reward, float]]
    prompts: Prompts
    world: World


@dataclass
class Session:
    """Everything that changes while a run runs, and therefore everything a checkpoint holds; but for `fresh`: nothing was done yet
    since the process started, so the first rollout is watched."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    sizes: Sizes
    states: dict[str, Any]
    iteration: int = 0
    seconds: float = 0.0
    books: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.weights.state(),
            "optimizer": self.optimizer.state_dict(),
            "states": self.states,
            "seconds": self.seconds,
            "sizes": [self.sizes.slice, self.sizes.batch],
            "books": self.books,
        }

    def load(self, iteration: int, state: Mapping[str, Any]) -> None:
        if set(state["states"]["rewards"]) != set(self.states["rewards"]):
            raise ValueError(
                f"the run was trained for the rewards {', '.join(state['states']['rewards'])}, and is now given "
                f"{', '.join(self.states['rewards'])}; pass the same ones"
            )
        self.weights.load(state["weights"])
        # only the moments: the settings of the optimizer are the recipe's, which a resumed run may change
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]["state"]})
        if state["books"]["geometry"] == self.books["geometry"]:
            self.sizes = Sizes(*state["sizes"])
        self.states, self.books = state["states"], {**state["books"], "geometry": self.books["geometry"]}
        self.seconds, self.iteration = state["seconds"], iteration


def begin(parts: Parts[Any], sizes: Sizes) -> Session:
    """A session at iteration 0."""
    weights = Weights(parts.policy, parts.method.weights)
    spec = parts.recipe.optim
    optimizer = torch.optim.AdamW(weights.parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    states: dict[str, State] = {name: reward.init() for name, (reward, _) in parts.rewards.items()}
    # what sizes were derived from: a resumed run that still agrees goes on with the sizes it had come down to
    asked = parts.recipe.sizes
    geometry = [parts.world.size, parts.method.updates, asked.prompts, asked.group, asked.slice, asked.batch]
    return Session(weights, optimizer, sizes, {"rewards": states, **parts.method.init()}, books={"geometry": geometry})


def within_memory(session: Session, attempt: Callable[[Sizes], T]) -> T:
    """attempt(sizes), begun again with half as many rows a call as long as memory does not suffice; the session keeps those sizes.

    Raises: torch.OutOfMemoryError where one row does not fit.
    """
    while True:
        try:
            return attempt(session.sizes)
        except torch.OutOfMemoryError:
            shrink(session)


def shrink(session: Session) -> None:
    session.sizes = session.sizes.halved()
    log.warning("out of memory: going on with slices of <= %d rows and blocks of <= %d", session.sizes.slice, session.sizes.batch)


def chosen(parts: Parts[Any], iteration: int) -> Prompts:
    """The prompts of an iteration: a pure function of (seed, iteration)."""
    recipe = parts.recipe
    return parts.prompts.take(data.batch(len(parts.prompts), recipe.sizes.prompts, recipe.run.seed, iteration))


def warmed(session: Session, spec: OptimSpec) -> float:
    """Set this iteration's learning rate, and return it."""
    lr = spec.lr * min(1.0, (session.iteration + 1) / max(1, spec.warmup))
    for group in session.optimizer.param_groups:
        group["lr"] = lr
    return lr


def batches(plans: list[Plan]) -> list[list[int]]:
    """Slots with equal plans, together."""
    groups: dict[object, list[int]] = {}
    for slot, plan in enumerate(plans):
        groups.setdefault(plan.key, []).append(slot)
    return list(groups.values())


def iterate(parts: Parts[Method], session: Session) -> dict[str, float]:
    """One iteration: returns its row of metrics. Out of memory in the rollout begins it again with half as many rows a call."""
    started = time.perf_counter()
    it, method = session.iteration, parts.method
    prompts = chosen(parts, it)
    sigmas = parts.policy.sigmas(parts.recipe.policy.steps)
    plans = [method.plan_at(it, sigmas, slot) for slot in range(len(prompts))]
    lr = warmed(session, parts.recipe.optim)
    row: dict[str, float] = {"iteration": it}
    for slots in batches(plans):
        new = _batch(parts, session, prompts.take(slots), torch.tensor(slots), plans[slots[0]])
        _accumulate(row, new, len(slots) / len(prompts))
    session.weights.follow(it)
    session.iteration += 1
    row["optim/lr"] = lr
    row["seconds/total"] = time.perf_counter() - started
    session.seconds += row["seconds/total"]
    return row


def _accumulate(row: dict[str, float], new: Mapping[str, float], share: float) -> None:
    """Batches of one iteration: seconds add up, largest values stay, the rest is averaged by share of prompts."""
    for name, value in new.items():
        if name.endswith(("max_abs", "best")):
            row[name] = max(row.get(name, value), value)
        else:
            row[name] = row.get(name, 0.0) + value * (1.0 if name.startswith("seconds/") else share)


def _batch(parts: Parts[Method], session: Session, prompts: Prompts, slots: Tensor, plan: Plan) -> dict[str, float]:
    """Prompts that share a plan, through all stages."""
    method, policy, world, run = parts.method, parts.policy, parts.world, parts.recipe.run
    noise = Source(run.seed, session.iteration)
    rewards = {name: reward for name, (reward, _) in parts.rewards.items()}
    factors = {name: factor for name, (_, factor) in parts.rewards.items()}

    def attempt(sizes: Sizes) -> tuple[Collected, list[Block], Witness | None]:
        blocks = cut(plan, len(prompts), sizes, method.updates, world.size)
        witness = Witness(policy.network, plan) if session.fresh and len(plan.edges) else None
        with session.weights.using(method.sample_from):
            return (
                collect(
                    policy,
                    plan,
                    prompts,
                    slots,
                    rewards,
                    factors,
                    session.states["rewards"],
                    blocks,
                    sizes,
                    noise,
                    world,
                    witness,
                    method.solver,
                ),
                blocks,
                witness,
            )

    got, blocks, witness = within_memory(session, attempt)
    credit, session.states["advantage"] = method.advantage.apply(got.outcome, session.states["advantage"])
    clock = time.perf_counter()
    q = None if got.rollout is None else method.objective.queries(got.rollout, credit.take(got.local), noise)
    if run.anchor == "replay" and q is not None and got.rollout is not None:
        with session.weights.using(method.sample_from):
            got = replace(got, rollout=anchored(policy, got.rollout, q, got.cond, noise))
    try:
        trained = update(
            policy,
            session.weights,
            method,
            got,
            q,
            blocks,
            session.optimizer,
            parts.recipe.optim.max_norm,
            noise,
            world,
            exact=method.sample_from == "current",
        )
    except RatioError as error:
        raise RatioError(f"{error}: {_named(policy, got.rollout, q, got.cond, noise, witness)}") from None
    for _ in range(trained.halvings):
        shrink(session)
    session.fresh = False
    return {
        **summary(got.outcome.scores, factors),
        **measured(trained, run.anchor == "replay"),
        **{f"seconds/{k}": v for k, v in got.seconds.items()},
        "seconds/train": time.perf_counter() - clock,
    }


def _named(policy: Policy, ro: Rollout | None, q: Queries | None, cond: Cond, noise: Source, witness: Witness | None) -> str:
    """Where rollout and replay of the first recorded call part."""
    if ro is None or q is None or witness is None or witness.trace is None:
        return "it was equal when the run started; a kernel is not deterministic, or the weights were changed from outside"
    batch = form(q, q.slices[0], ro, noise)
    with watched(policy.network) as replay:
        policy.predict(batch.x, batch.sigma, cond.take(batch.slot.to(batch.x.device)))
    return difference(witness.trace, replay)


def summary(scores: Mapping[str, Scores], factors: Mapping[str, float]) -> dict[str, float]:
    """Mean, spread and best of the weighted sum and the mean of each reward, over what could be scored."""
    whole = total(scores, factors)
    good = whole.values[whole.valid].double()
    spread = torch.where(whole.valid, whole.values, torch.nan).double()
    mean = spread.nanmean(1, keepdim=True)
    flat = ((spread - mean).abs().nan_to_num(0).amax(1) < 1e-8).double().mean()
    row = {
        "reward/mean": float(good.mean()),
        "reward/std": float(good.std(correction=0)),
        "reward/best": float(good.max()),
        "reward/zero_variance": float(flat),
        "reward/invalid": float((~whole.valid).double().mean()),
    }
    for name, s in scores.items():
        row[f"reward/{name}"] = float(s.values[s.valid].double().mean())
    return row


def measured(trained: Trained, replayed: bool) -> dict[str, float]:
    """The optimizer steps' metrics; what only means something before the first update is taken from the first step."""
    row = {n: v for n, v in trained.metrics.items() if n not in ("ratio/max_abs",)}
    if "ratio/max_abs" in trained.first:
        row["ratio/first_max_abs"] = trained.first["ratio/max_abs"]
        row["ratio/max_abs"] = trained.metrics["ratio/max_abs"]
        row["clip/pre_update_fraction"] = trained.first["clip/fraction"]
    row["anchored"] = float(replayed or trained.halvings > 0)
    return row
