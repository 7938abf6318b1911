"""Scores for images and videos. Usable alone: needs torch and numpy until a reward that wants more is made.

`make("clip")`, `make("shapes:soft")`, `make("module:name")`, `make("file.py:function")` or `make(function)` give a `Reward`;
`parse("clip=0.5")` reads a name with a weight; `total` adds scores up; `Place` says where networks go.
Functions that see more or say more: `groupwise`, `referenced`, `framewise`, `differentiable`, `Detailed`; `cached` asks a pure one
once. Videos are [N, T, H, W, 3]; a reward of single images is shown 8 of the frames, evenly spread (`Place.frames`).
The names are the rows of `TABLE`.
"""

from .base import Compares, DifferentiableReward, Reward, Samples, Scores, State, TrainableReward
from .cache import cached
from .combine import Rule, ruled, total
from .forms import Detailed, framewise, groupwise, referenced
from .lift import RewardError, differentiable
from .names import make, parse
from .place import Place
from .table import TABLE

__all__ = [
    "TABLE",
    "Compares",
    "Detailed",
    "DifferentiableReward",
    "Place",
    "Reward",
    "RewardError",
    "Rule",
    "Samples",
    "Scores",
    "State",
    "TrainableReward",
    "cached",
    "differentiable",
    "framewise",
    "groupwise",
    "make",
    "parse",
    "referenced",
    "ruled",
    "total",
]
