"""Credit by choice: which leaves of a prompt count at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.advantage import weighed
from flowrl.types import Credit, Outcome, State


@dataclass(frozen=True)
class Pairs:
    """Advantage 1 for the k-th best and -1 for the k-th worst leaf of a prompt, k = 1 ... count, where the one is truly better;
    all others have weight 0. Among equals the first leaf is taken.

    Raises: ValueError for count < 1.
    Source: Flow-GRPO, flow_grpo@ac4c86e stat_tracking.py type "dpo".
    Differs: a prompt of equal rewards has no pair; theirs makes one of its first two leaves.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.count} pairs a prompt: give 1 or more")

    def init(self) -> State:
        return {}

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]:
        r, valid = weighed(outcome)
        a = torch.zeros(r.shape)
        for i in range(len(r)):
            known = valid[i].nonzero().flatten()
            down = known[r[i, known].argsort(descending=True, stable=True)]
            up = known[r[i, known].argsort(stable=True)]
            for winner, loser in zip(down[: self.count], up[: self.count], strict=True):
                if r[i, winner] > r[i, loser]:
                    a[i, winner], a[i, loser] = 1, -1
        return on_leaves(outcome, a, a != 0), state


def on_leaves(outcome: Outcome, advantage: Tensor, used: Tensor) -> Credit:
    """Credit of the leaves alone, from advantage and bool [P, L]."""
    plan = outcome.plan
    whole = torch.zeros(len(advantage), len(plan.parent))
    a, weight = whole.clone(), whole.clone()
    a[:, plan.leaves], weight[:, plan.leaves] = advantage.float(), used.float()
    return Credit(a, weight, weight.clone())
