"""What the sampler costs, as ratios of times taken in one run:  python benchmarks/sampling.py

overhead   a rollout of the embedded model over its network calls alone (bar: at most 1.02)
tree       16 chains over BranchGRPO's tree of 16 images (bar: at least 1.4 times as long)
comb       TempFlow's schedule with one row an edge, every tooth on a trajectory of its own, over the comb: time to the same reward
           of a toy (bar: at least 2 times as long)
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowrl import advantage, methods
from flowrl.dist import World
from flowrl.models import load_policy
from flowrl.recipe import PolicySpec
from flowrl.rewards.base import Scores
from flowrl.samplers import Plan, Rollout, chains, comb, join, laws, rollout, schedules, tree
from flowrl.samplers.noise import Source
from flowrl.types import Outcome
from flowrl.update import form, normalised


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
    """16 chains / BranchGRPO's tree of 16 images, 20 steps, the embedded model."""
    policy = load_policy(PolicySpec(dtype="float32", max_sequence_length=16))
    cond, shape, source = policy.encode(["a red circle"]), policy.latent_shape(), Source(0, 0)
    grid, law = schedules.linear_shift(20, 3.0), laws.dance_sde(0.3)
    plans = [chains(grid, law, range(19), 16), tree(grid, law, range(19), {0: 2, 3: 2, 6: 2, 9: 2})]

    def run(plan: Plan) -> Rollout:
        return rollout(
            plan,
            lambda x, sigma, slot: policy.velocity(x, sigma, cond.take(slot)),
            1,
            shape,
            lambda slot, node: source.normal(shape, slot, node),
            slice=16,
        )

    run(plans[1])
    return [timed(lambda: run(plans[0])) / timed(lambda: run(plans[1])) for _ in range(repeats)]


class Toy(nn.Module):
    """Wide enough that its calls, and not the bookkeeping, are what takes time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        nn.init.zeros_(self.net[4].weight)
        nn.init.zeros_(self.net[4].bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None]
        exact = x * (2 * level - 1) / ((1 - level) ** 2 + level**2)
        return exact + self.net(torch.cat([x, level], 1))


@dataclass
class Race:
    """Train until the mean of `steps` rewards passes `goal`; the seconds that took."""

    plan: Plan
    width: int = 2048
    prompts: int = 4
    goal: float = 0.5
    limit: int = 200

    def run(self) -> tuple[float, int]:
        net = Toy(self.width)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        objective = methods.tempflow_grpo(clip=0.1, beta=0.0).objective
        credit_of, recent = advantage.Group(), []
        start = time.perf_counter()
        for iteration in range(self.limit):
            source = Source(0, iteration)
            ro = rollout(
                self.plan,
                lambda x, sigma, slot: net(x, sigma),
                self.prompts,
                (2,),
                lambda slot, node, source=source: source.normal((2,), slot, node),
                slice=64,
            )
            r = ro.states(self.plan.leaves)[..., 0]
            scores = {"x": Scores(r, torch.ones_like(r, dtype=torch.bool))}
            outcome = Outcome(self.plan, scores, {"x": 1.0}, [""] * self.prompts, [{}] * self.prompts, ro.slots, iteration)
            credit, _ = credit_of.apply(outcome, {})
            q = normalised(objective.queries(ro, credit, source), [0], 1, World())
            assert q is not None
            optimizer.zero_grad()
            for rows in q.slices:
                batch = form(q, rows, ro, source)
                objective.loss(batch, objective.measure(batch, {"current": net(batch.x, batch.sigma)})).value.backward()
            optimizer.step()
            recent = [*recent, float(r.mean())][-3:]
            if sum(recent) / len(recent) > self.goal:
                return time.perf_counter() - start, iteration + 1
        raise RuntimeError(f"the toy's reward stayed below {self.goal} for {self.limit} iterations")


def sharing(repeats: int) -> tuple[list[float], list[int]]:
    """one row an edge / the comb, N = 10 and 6 teeth a step as published."""
    grid, law = schedules.linear_shift(10, 3.0), laws.flow_sde(0.7)
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
