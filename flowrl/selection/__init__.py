"""Which prompts an iteration trains on, and how many images each gets. The one table of names."""

from __future__ import annotations

from collections.abc import Callable

from .bandits import bandit
from .base import Chosen, Earned, Selection, earned
from .budgets import knapsack, xrpo
from .draws import uniform
from .weighted import prioritised, variance_aware

TABLE: dict[str, Callable[..., Selection]] = {
    "uniform": uniform,
    "variance_aware": variance_aware,
    "knapsack": knapsack,
    "xrpo": xrpo,
    "bandit": bandit,
    "prioritised": prioritised,
}

__all__ = [
    "TABLE",
    "Chosen",
    "Earned",
    "Selection",
    "bandit",
    "earned",
    "knapsack",
    "prioritised",
    "uniform",
    "variance_aware",
    "xrpo",
]
