"""Scores for images and videos. Usable alone: needs torch and numpy until a reward that wants more is made.

`make("clip")`, `make("shapes:soft")`, `make("module:name")`, `make("file.py:function")` or `make(function)` give a `Reward`;
`parse("clip=0.5")` reads a name with a weight; `total` adds scores up; `differentiable(function)` marks one with a gradient.
The names are the rows of `TABLE`.
"""

from .base import DifferentiableReward, Reward, Samples, Scores, State
from .combine import total
from .lift import RewardError, differentiable
from .table import TABLE, make, parse

__all__ = [
    "TABLE",
    "DifferentiableReward",
    "Reward",
    "RewardError",
    "Samples",
    "Scores",
    "State",
    "differentiable",
    "make",
    "parse",
    "total",
]
