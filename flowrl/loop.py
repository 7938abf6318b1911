"""The loop. It knows no method, model or reward by name: plan, collect, credit, queries, update, and the books that are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from flowrl import optimizers
from flowrl.collect import Features, collect
from flowrl.data import Prompts
from flowrl.dist import World
from flowrl.finite import not_finite
from flowrl.recipe import OptimSpec, Recipe
from flowrl.replay import RatioError, Work, anchored, form
from flowrl.rewards import Rule, total
from flowrl.rewards.base import Reward, Scores, State
from flowrl.samplers import Plan
from flowrl.samplers.noise import Source
from flowrl.scoring import Unscored
from flowrl.selection import Chosen, Earned, Selection, earned, uniform
from flowrl.sizes import Sizes, cut
from flowrl.types import Method, Policy
from flowrl.update import Trained, update
from flowrl.weights import Weights
from flowrl.witness import Witness, difference, watched

log = logging.getLogger("flowrl")
T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True)
class Parts(Generic[M]):
    """What a run is made of. method: of this loop or of another (`flowrl.direct`);  rewards: name -> (reward, factor);
    selection: of prompts, and of how many images each gets;  resized: the method at another group size, for a selection that gives
    prompts groups of their own;  features: of images, for advantages that want them;  rules: thresholds and gates of rewards."""

    recipe: Recipe
    policy: Policy
    method: M
    rewards: Mapping[str, tuple[Reward, float]]
    prompts: Prompts
    world: World
    selection: Selection = field(default_factory=uniform)
    resized: Callable[[int], M] | None = None
    features: Features | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict[str, Rule])

    def sized(self, group: int) -> M:
        """Raises: ValueError where the method is known at the recipe's group size only."""
        if group == self.recipe.sizes.group:
            return self.method
        if self.resized is None:
            raise ValueError(f"the selection gives a prompt a group of {group}, but no method of that group was given to the run")
        return self.resized(group)


@dataclass
class Session:
    """Everything that changes while a run runs, and therefore everything a checkpoint holds; but for `fresh`: nothing was done yet
    since the process started, so the last batch of the first rollout is watched, by `witness`; and for `empty`: of how many
    iterations in a row nothing could be scored."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    sizes: Sizes
    states: dict[str, Any]
    iteration: int = 0
    seconds: float = 0.0
    books: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    witness: Witness | None = None
    empty: int = 0

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.weights.state(),
            "optimizer": optimizers.state(self.optimizer),
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
        optimizers.load(self.optimizer, state["optimizer"]["state"])
        if state["books"]["geometry"] == self.books["geometry"]:
            self.sizes = Sizes(*state["sizes"])
        # a run that goes on with another selection or advantage, or is from before there were selections, begins theirs anew
        kept = {name: told for name, told in state["states"].items() if self.states.get(name, {}).keys() <= told.keys()}
        self.states = {**self.states, **kept}
        self.books = {**state["books"], "geometry": self.books["geometry"]}
        self.seconds, self.iteration = state["seconds"], iteration


def begin(parts: Parts[Any], sizes: Sizes) -> Session:
    """A session at iteration 0."""
    weights = Weights(parts.policy, parts.method.weights)
    spec = parts.recipe.optim
    optimizer = optimizers.make(spec, weights.parameters)
    states: dict[str, State] = {name: reward.init() for name, (reward, _) in parts.rewards.items()}
    # what sizes were derived from: a resumed run that still agrees goes on with the sizes it had come down to
    asked = parts.recipe.sizes
    geometry = [parts.world.size, parts.method.updates, asked.prompts, asked.group, asked.slice, asked.batch]
    memory = {"rewards": states, "selection": parts.selection.init(), **parts.method.init()}
    return Session(weights, optimizer, sizes, memory, books={"geometry": geometry})


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


def choose(parts: Parts[Any], iteration: int, state: State) -> Chosen:
    """The prompts of an iteration: a pure function of (seed, iteration) and of what the selection remembers."""
    recipe = parts.recipe
    noise = Source(recipe.run.seed, iteration)
    return parts.selection.choose(parts.prompts, recipe.sizes.prompts, recipe.sizes.group, noise, state)


def warmed(session: Session, spec: OptimSpec) -> float:
    """Set this iteration's learning rate, and return it."""
    lr = spec.lr * min(1.0, (session.iteration + 1) / max(1, spec.warmup))
    optimizers.set_rate(session.optimizer, lr)
    return lr


def keyed(parts: Parts[Any], session: Session) -> Source:
    """The noise of this iteration."""
    return Source(parts.recipe.run.seed, session.iteration)


def batches(plans: list[Plan]) -> list[list[int]]:
    """Slots with equal plans, together."""
    groups: dict[object, list[int]] = {}
    for slot, plan in enumerate(plans):
        groups.setdefault(plan.key, []).append(slot)
    return list(groups.values())


def iterate(parts: Parts[Method], session: Session) -> dict[str, float]:
    """One iteration: returns its row of metrics. Out of memory in the rollout begins it again with half as many rows a call. One
    of which nothing could be scored now (`Unscored`) leaves all but the iteration's number as it was."""
    started = time.perf_counter()
    it = session.iteration
    chosen = choose(parts, it, session.states["selection"])
    prompts = parts.prompts.take(chosen.index)
    sigmas = parts.policy.sigmas(parts.recipe.policy.steps)
    methods = [parts.method] * len(prompts) if chosen.group is None else [parts.sized(int(g)) for g in chosen.group]
    plans = [method.plan_at(it, sigmas, slot) for slot, method in enumerate(methods)]
    lr = warmed(session, parts.recipe.optim)
    row: dict[str, float] = {"iteration": it, **{f"selection/{name}": value for name, value in chosen.metrics.items()}}
    works: list[Work] = []
    told: dict[int, Earned] = {}
    before = {**session.states, "rewards": dict(session.states["rewards"])}
    try:
        for number, slots in enumerate(batches(plans)):
            first, some = slots[0], prompts.take(slots)
            work, new, got = _collect(parts, session, methods[first], some, torch.tensor(slots), plans[first], number)
            works.append(work)
            _accumulate(row, new, len(slots) / len(prompts))
            told |= dict(zip(slots, got, strict=True))
    except Unscored as error:
        log.warning("iteration %d is skipped: %s", it, error)
        session.states = before
        return _passed(session, {"iteration": it, "policy/skipped": 1.0, "reward/invalid": 1.0}, lr, started, session.empty + 1)
    paid = [told[slot] for slot in range(len(prompts))]
    session.states["selection"] = parts.selection.learn(parts.prompts, chosen, paid, session.states["selection"])
    # a trainable reward may want an iteration to itself
    skipped = any(work.got.lessons.skip for work in works)
    row |= {"policy/skipped": 1.0} if skipped else _train(parts, session, works)
    session.fresh = False
    session.weights.follow(it, row)
    _passed(session, row, lr, started)
    session.books["metrics"] = {n: v for n, v in row.items() if not n.startswith("seconds/")}
    return row


def _passed(session: Session, row: dict[str, float], lr: float, started: float, empty: int = 0) -> dict[str, float]:
    """The books of an iteration that is over. empty: how many in a row are without scores."""
    session.iteration, session.empty = session.iteration + 1, empty
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


def _collect(
    parts: Parts[Method], session: Session, method: Method, prompts: Prompts, slots: Tensor, plan: Plan, number: int
) -> tuple[Work, dict[str, float], list[Earned]]:
    """Prompts that share a plan, from rollout to queries, with their row of metrics and what each of them earned."""
    policy, world, run = parts.policy, parts.world, parts.recipe.run
    noise = keyed(parts, session)
    rewards = {name: reward for name, (reward, _) in parts.rewards.items()}
    factors = {name: factor for name, (_, factor) in parts.rewards.items()}

    def attempt(sizes: Sizes) -> Work:
        blocks = cut(plan, len(prompts), sizes, method.updates, world.size, not method.objective.separable, number)
        session.witness = Witness(policy.network, plan) if session.fresh and len(plan.edges) else None
        with session.weights.using(method.sample_from):
            got = collect(
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
                session.witness,
                method.solver,
                parts.features if method.features else None,
                session.books.get("metrics"),
                parts.rules,
            )
        return Work(got, None, blocks)

    work = within_memory(session, attempt)
    got = work.got
    credit, session.states["advantage"] = method.advantage.apply(got.outcome, session.states["advantage"])
    if got.rollout is not None:
        q = method.objective.queries(got.rollout, credit.take(got.local), noise)
        if run.anchor == "replay":
            with session.weights.using(method.sample_from):
                got = replace(got, rollout=anchored(policy, got.rollout, q, got.cond, noise))
        work = replace(work, got=got, queries=q)
    row = {
        **summary(got.outcome.scores, factors, got.scores),
        **got.looks,
        **got.lessons.metrics,
        **{f"seconds/{k}": v for k, v in got.seconds.items()},
    }
    return work, row, earned(got.outcome, credit)


def _train(parts: Parts[Method], session: Session, works: list[Work]) -> dict[str, float]:
    """The optimizer steps of an iteration."""
    method, run = parts.method, parts.recipe.run
    noise, clock = keyed(parts, session), time.perf_counter()
    try:
        trained = update(
            parts.policy,
            session.weights,
            method,
            works,
            session.optimizer,
            parts.recipe.optim.max_norm,
            noise,
            parts.world,
            exact=method.sample_from == "current",
        )
    except RatioError as error:
        raise RatioError(f"{error}: {_named(parts.policy, works[-1], noise, session.witness)}") from None
    for _ in range(trained.halvings):
        shrink(session)
    return {**measured(trained, run.anchor == "replay"), "seconds/train": time.perf_counter() - clock}


def _named(policy: Policy, work: Work, noise: Source, witness: Witness | None) -> str:
    """Where rollout and replay of the first recorded call part; first of all, a weight that is no number."""
    if wrong := not_finite({"": policy.network}):
        return wrong
    ro, q, cond = work.got.rollout, work.queries, work.got.cond
    if ro is None or q is None or witness is None or witness.trace is None:
        return "it was equal when the run started; a kernel is not deterministic, or the weights were changed from outside"
    batch = form(q, q.slices[0], ro, noise)
    with watched(policy.network) as replay:
        policy.predict(batch.x, batch.sigma, cond.take(batch.slot))
    return difference(witness.trace, replay)


def summary(
    scores: Mapping[str, Scores], factors: Mapping[str, float], raw: Mapping[str, Scores] | None = None
) -> dict[str, float]:
    """Mean, spread and best of the weighted sum, and the mean of each reward with its parts as it was given (raw), over what could
    be scored."""
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
    for name, s in (raw or scores).items():
        row[f"reward/{name}"] = float(s.values[s.valid].double().mean())
        row |= {f"reward/{name}/{part}": float(v[s.valid].double().nanmean()) for part, v in s.parts.items()}
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
