"""Samplers: laws (how noisy is a step), plans (which steps, as a tree), and the rollout that walks them. Needs torch only."""

from . import laws, noise, paths, schedules, solvers, windows
from .density import kl, log_prob
from .laws import Law
from .paths import Path
from .plan import Plan, chains, comb, tree
from .rollout import Rollout, Slice, rollout, units

__all__ = [
    "Law",
    "Path",
    "Plan",
    "Rollout",
    "Slice",
    "chains",
    "comb",
    "kl",
    "laws",
    "log_prob",
    "noise",
    "paths",
    "rollout",
    "schedules",
    "solvers",
    "tree",
    "units",
    "windows",
]
