"""From rewards to credit on the nodes of a plan.

Small pure functions on r [P, L] with a mask: `group`, `several`, `preference`, `diversity`, `selection`, `trees`; with a memory
`history`; ported from language-model RL `ported`, `ported_history`.
Their compositions on plans: `credit`, `leafwise`, `choice`, and around others `wrappers`, `control`.
Statistics are taken in float64; what is invalid takes no part in them and gets advantage 0.
"""

from .choice import Best, Pairs, Rewarded
from .control import Adaptive, Gardo, Gated, Unlikely
from .credit import Composed, Granular, Group, WinRate, rewards, settled, weighed
from .diversity import adapted, diverse, drifted, gate, nearest, uncertainty
from .group import Estimate, best, best_worst, center, quasi, raw, rloo, zscore
from .history import tracked
from .leafwise import Bundled, Dcpo, San, Spo, Tracked, carried
from .ported import d3s, gpg, mc, min_norm, ngrpo, noon, pama, pass_at_k, san, tempo, treepo, unlikely
from .ported_history import Risk, dcpo, earned, followed, riskpo, spo, spo_start, spo_weights
from .preference import win_rate, wins
from .selection import extremes, narrowed, top
from .several import Combine, front, gated, gdpo, pooled, summed, weighted
from .trees import Fusion, below, completions, gains, granular, node_rewards, path_sums, peers, turning
from .wrappers import Downsampled, Extremes, Lifted, Narrowed, Pareto, Pruned, kept, lift

__all__ = [
    "Adaptive",
    "Best",
    "Bundled",
    "Combine",
    "Composed",
    "Dcpo",
    "Downsampled",
    "Estimate",
    "Extremes",
    "Fusion",
    "Gardo",
    "Gated",
    "Granular",
    "Group",
    "Lifted",
    "Narrowed",
    "Pairs",
    "Pareto",
    "Pruned",
    "Rewarded",
    "Risk",
    "San",
    "Spo",
    "Tracked",
    "Unlikely",
    "WinRate",
    "adapted",
    "below",
    "best",
    "best_worst",
    "carried",
    "center",
    "completions",
    "d3s",
    "dcpo",
    "diverse",
    "drifted",
    "earned",
    "extremes",
    "followed",
    "front",
    "gains",
    "gate",
    "gated",
    "gdpo",
    "gpg",
    "granular",
    "kept",
    "lift",
    "mc",
    "min_norm",
    "narrowed",
    "nearest",
    "ngrpo",
    "node_rewards",
    "noon",
    "pama",
    "pass_at_k",
    "path_sums",
    "peers",
    "pooled",
    "quasi",
    "raw",
    "rewards",
    "riskpo",
    "rloo",
    "san",
    "settled",
    "spo",
    "spo_start",
    "spo_weights",
    "summed",
    "tempo",
    "top",
    "tracked",
    "treepo",
    "turning",
    "uncertainty",
    "unlikely",
    "weighed",
    "weighted",
    "win_rate",
    "wins",
    "zscore",
]
