"""Scores for images and videos. Usable alone: needs torch and numpy until a reward that wants more is made.

`make("clip")`, `make("shapes:soft")`, `make("module:name")`, `make("file.py:function")` or `make(function)` give a `Reward`;
`parse("clip=0.5")` reads a name with a weight; `total` adds scores up. The names are the rows of `TABLE`.
"""

from .base import Reward, Samples, Scores, State
from .combine import total
from .lift import RewardError
from .table import TABLE, make, parse

__all__ = ["TABLE", "Reward", "RewardError", "Samples", "Scores", "State", "make", "parse", "total"]
