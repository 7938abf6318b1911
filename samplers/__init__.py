"""Samplers: laws (how noisy is a step), plans (which steps, as a tree), and the rollout that walks them. Needs torch only."""

from . import clipped, laws, levels, multistep, noise, paths, schedules, solvers, windows
from .builders import chains, comb, join, merged, own_share, tree
from .density import kl, log_prob
from .laws import Law
from .paths import Path
from .plan import Plan
from .rollout import Rollout, progress, rollout, units
from .walk import Slice, joined

__all__ = [
    "Law",
    "Path",
    "Plan",
    "Rollout",
    "Slice",
    "chains",
    "clipped",
    "comb",
    "join",
    "joined",
    "kl",
    "laws",
    "levels",
    "log_prob",
    "merged",
    "multistep",
    "noise",
    "own_share",
    "paths",
    "progress",
    "rollout",
    "schedules",
    "solvers",
    "tree",
    "units",
    "windows",
]
