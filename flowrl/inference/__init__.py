"""More from a trained model without training it: guidance between base and tuned weights, best of n, SVDD, search by rankings.

Needs torch only, until a pipeline with an adapter is really there.
"""

from .best import Best, best, best_of, judge, kl_bound, success
from .guidance import guided, rlg
from .lookahead import chances, svdd
from .ranking import RankSearch, direction, ranked

__all__ = [
    "Best",
    "RankSearch",
    "best",
    "best_of",
    "chances",
    "direction",
    "guided",
    "judge",
    "kl_bound",
    "ranked",
    "rlg",
    "success",
    "svdd",
]
