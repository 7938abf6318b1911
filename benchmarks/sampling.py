"""What the sampler costs, as ratios of times taken in one run:  python benchmarks/sampling.py

overhead   a rollout of the embedded model over its network calls alone (bar: at most 1.02)
tree       16 chains over BranchGRPO's tree of 16 images (bar: at least 1.4 times as long)
comb       TempFlow's schedule with one row an edge, every tooth on a trajectory of its own, over the comb: time to the same reward
           of a toy, the brightness of a latent (bar: at least 2 times as long)
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl import advantage, methods
from flowrl.dist import World
from flowrl.models import load_policy
from flowrl.recipe import PolicySpec
from flowrl.replay import form
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, Rollout, chains, comb, join, laws, rollout, schedules, tree
from flowrl.samplers.noise import Source
from flowrl.types import Outcome
from flowrl.update import normalised


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def overhead(repeats: int) -> list[float]:
    """rollout / its calls alone, for 4 prompts of 8 chains of 10 steps."""
    policy = load_policy(PolicySpec(dtype="float32", max_sequence_length=16))
    cond, shape, source = policy.encode(["a red circle"] * 4), policy.latent_shape(), Source(0, 0)
    plan = chains(policy.sigmas(10), laws.flow_sde(0.7), range(9), 8)
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def predict(x: Tensor, sigma: Tensor, slot: Tensor) -> Tensor:
        asked.append((x, sigma, slot))
        return policy.velocity(x, sigma, cond.take(slot))

    def whole() -> Rollout:
        asked.clear()
        return rollout(plan, predict, 4, shape, lambda slot, node: source.normal(shape, slot, node), slice=32)

    @torch.no_grad()
    def alone() -> None:
        for x, sigma, slot in asked:
            policy.velocity(x, sigma, cond.take(slot))

    whole()
    return [timed(whole) / timed(alone) for _ in range(repeats)]


def branching(repeats: int) -> list[float]:
    """16 chains / BranchGRPO's tree of 16 images, 20 steps, for 4 prompts of the embedded model."""
    policy = load_policy(PolicySpec(dtype="float32", max_sequence_length=16))
    cond, shape, source = policy.encode(["a red circle"] * 4), policy.latent_shape(), Source(0, 0)
    grid, law = schedules.linear_shift(20, 3.0), laws.dance_sde(0.3)
    plans = [chains(grid, law, range(19), 16), tree(grid, law, range(19), {0: 2, 3: 2, 6: 2, 9: 2})]

    def run(plan: Plan) -> Rollout:
        return rollout(
            plan,
            lambda x, sigma, slot: policy.velocity(x, sigma, cond.take(slot)),
            4,
            shape,
            lambda slot, node: source.normal(shape, slot, node),
            slice=32,
        )

    run(plans[1])
    return [timed(lambda: run(plans[0])) / timed(lambda: run(plans[1])) for _ in range(repeats)]


GAIN = 0.5
"""By how many standard deviations the mean reward must have grown."""


@dataclass
class Race:
    """Train the embedded model for bright first latents until the mean reward of an iteration has grown by GAIN; the seconds."""

    plan: Plan
    prompts: int = 4
    limit: int = 60

    def run(self) -> tuple[float, int]:
        policy = load_policy(PolicySpec(dtype="float32", max_sequence_length=16))
        cond, shape = policy.encode(["a red circle"] * self.prompts), policy.latent_shape()
        optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-3)
        objective, credit_of, goal = methods.tempflow_grpo(clip=0.1, beta=0.0).objective, advantage.Group(), None
        start = time.perf_counter()
        for iteration in range(self.limit):
            source = Source(0, iteration)
            ro = rollout(
                self.plan,
                lambda x, sigma, slot: policy.velocity(x, sigma, cond.take(slot)),
                self.prompts,
                shape,
                lambda slot, node, source=source: source.normal(shape, slot, node),
                slice=32,
                batch=64,
            )
            r = ro.states(self.plan.leaves)[:, :, 0].mean((2, 3))
            goal = float(r.mean() + GAIN * r.std()) if goal is None else goal
            if float(r.mean()) > goal:
                return time.perf_counter() - start, iteration
            scores = {"bright": Scores(r, torch.ones_like(r, dtype=torch.bool))}
            outcome = Outcome(self.plan, scores, {"bright": 1.0}, [""] * self.prompts, [{}] * self.prompts, ro.slots, iteration)
            q = normalised([objective.queries(ro, credit_of.apply(outcome, {})[0], source)], [[0]], 1, World())[0]
            assert q is not None
            for rows in q.slices:
                batch = form(q, rows, ro, source)
                u = policy.velocity(batch.x, batch.sigma, cond.take(batch.slot))
                objective.loss(batch, objective.measure(batch, {"current": u})).value.backward()
            optimizer.step()
            optimizer.zero_grad()
        raise RuntimeError(f"the reward did not grow by {GAIN} standard deviations in {self.limit} iterations")


def sharing(repeats: int) -> tuple[list[float], list[int]]:
    """one row an edge / the comb, N = 10 and 6 teeth a step as published."""
    grid, law = schedules.sd3(10), laws.flow_sde(0.7)
    shared = comb(grid, law, range(9), 6)
    apart = join([chains(grid, law, [i], 6) for i in range(9)])
    ratios, counts = [], []
    for _ in range(repeats):
        (slow, many), (fast, few) = Race(apart).run(), Race(shared).run()
        ratios.append(slow / fast)
        counts += [many, few]
    print(f"comb: rows {len(apart.rows)} against {len(shared.rows)}, calls {apart.nfe()} against {shared.nfe()}")
    return ratios, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, found in (("overhead", overhead(args.repeats)), ("tree", branching(args.repeats))):
        print(f"{name:9s} {statistics.median(found):.3f}  ({min(found):.3f} to {max(found):.3f}, {args.repeats} runs)")
    ratios, counts = sharing(max(1, args.repeats // 2))
    print(f"comb      {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f}); iterations to the reward {counts}")


if __name__ == "__main__":
    main()
