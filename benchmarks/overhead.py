"""What the loop costs beyond the work itself.

Every network, decode and reward call of some iterations is recorded with its inputs, then replayed alone, in order, by a plain
loop;
training calls with their backward. The share printed is replayed / loop, iteration by iteration, median and range.

    python benchmarks/overhead.py [--iterations 5] [--set a.b=1 ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from flowrl import settings
from flowrl.dist import World
from flowrl.loop import Parts, begin, iterate
from flowrl.models import load_policy
from flowrl.recipes import build, named
from flowrl.sizes import derive

Call = Callable[[], object]


def recorded(policy: Any, rewards: dict[str, Any], calls: list[Call]) -> Callable[[], None]:
    """Wrap predict, decode and the rewards so that each call also leaves its own replay in `calls`; returns the way back."""
    predict, decode = policy.predict, policy.decode

    def watched_predict(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        graded = torch.is_grad_enabled()

        def again() -> None:
            with torch.set_grad_enabled(graded):
                u = predict(x, sigma, cond)
            if graded:
                u.backward(torch.ones_like(u))

        calls.append(again)
        return predict(x, sigma, cond)

    def watched_decode(x0: torch.Tensor) -> torch.Tensor:
        calls.append(lambda: decode(x0))
        return decode(x0)

    policy.predict, policy.decode = watched_predict, watched_decode
    originals = dict(rewards)
    for name, (reward, factor) in originals.items():
        rewards[name] = (Watched(reward, calls), factor)

    def back() -> None:
        policy.predict, policy.decode = predict, decode
        rewards.update(originals)

    return back


class Watched:
    """A reward that leaves a replay of each call."""

    def __init__(self, reward: Any, calls: list[Call]) -> None:
        self.reward, self.calls, self.name, self.init = reward, calls, reward.name, reward.init

    def __call__(self, samples: Any, state: Any) -> Any:
        self.calls.append(lambda: self.reward(samples, state))
        return self.reward(samples, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    recipe = settings.resolve(named("shapes"), args.overrides)
    policy = load_policy(recipe.policy, seed=recipe.run.seed)
    method = build.method(recipe.method, recipe.sizes.group)
    rewards = build.rewards(recipe, None, "cpu")
    parts = Parts(recipe, policy, method, rewards, build.prompts(recipe.data)[0], World())
    plan = method.plan_at(0, policy.sigmas(recipe.policy.steps), 0)
    session = begin(parts, derive(recipe.sizes, recipe.sizes.prompts * len(plan.roots), method.updates, 1))
    iterate(parts, session)
    shares = []
    for i in range(args.iterations):
        calls: list[Call] = []
        back = recorded(policy, rewards, calls)
        whole = -time.perf_counter()
        iterate(parts, session)
        whole += time.perf_counter()
        back()
        alone = -time.perf_counter()
        for call in calls:
            call()
        alone += time.perf_counter()
        session.optimizer.zero_grad(set_to_none=True)
        shares.append(alone / whole)
        print(f"iteration {i}: loop {whole:.2f} s, {len(calls)} calls alone {alone:.2f} s, share {alone / whole:.3f}")
    print(
        f"share of the loop spent in network, decode and reward calls: median {statistics.median(shares):.3f} "
        f"({min(shares):.3f} to {max(shares):.3f}), torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
