"""Win rates as rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.rewards.base import waits
from flowrl.rewards.forms import Detailed, Groupwise, Metadata, column, groupwise

from .judge import Judge, judging
from .rates import COMPAT, blended, hardened, verdicts_of, win_rate
from .seats import placed, schedule, upper


@dataclass(frozen=True)
class WinRate:
    """f(images of one prompt, prompt, metadata) -> their win rates; see `winrate`."""

    judge: Judge
    opponents: int | None = None
    both_orders: bool = True
    margin: float | None = None
    aspects: float = 0.0
    compat: str | None = None

    @property
    def waits(self) -> bool:
        return waits(self.judge)

    def __call__(self, images: np.ndarray, prompt: str, metadata: Metadata) -> Detailed:
        count = len(images)
        if count < 2:
            return Detailed(np.full(count, np.nan))
        pairs = self.pairs(images, prompt, metadata)
        told = self.judge.seated(images, pairs, prompt, metadata)
        verdicts = self._verdicts(told.values, pairs, count)
        parts = {name: self._verdicts(some, pairs, count) for name, some in told.parts.items()}
        decimals = 3 if self.compat else None
        rate = overall = win_rate(verdicts, decimals)
        rates = {name: win_rate(some) for name, some in parts.items()}
        if self.aspects > 0 and rates:
            rate = blended(
                overall, torch.stack(list(rates.values()), -1), torch.ones(len(rates)), self.aspects, decimals, self.compat
            )
        compared = verdicts.isfinite().sum(1)
        met = np.zeros((count, count), dtype=bool)
        met[pairs[:, 0], pairs[:, 1]] = met[pairs[:, 1], pairs[:, 0]] = True
        counts = {"comparisons": compared, "unreadable": torch.from_numpy(met.sum(1)) - compared}
        return Detailed(rate, {"overall": overall, **rates, **counts})

    def pairs(self, images: np.ndarray, prompt: str, metadata: Metadata) -> np.ndarray:
        """What the judge is asked, long [M, 2], the first shown first."""
        if self.compat:
            return upper(len(images))
        seats = placed(images, prompt, metadata)[schedule(len(images), self.opponents)]
        return np.concatenate([seats, seats[:, ::-1]]) if self.both_orders else seats

    def _verdicts(self, values: Any, pairs: np.ndarray, count: int) -> Tensor:
        p = column(values, len(pairs))
        wrong = p[(p < 0) | (p > 1)]
        if len(wrong):
            raise ValueError(
                f"a judge answered {wrong[0]:g}; give P(A is better) in [0, 1], NaN where unreadable; scores: pairs.judge.scored"
            )
        asked = torch.full((count, count), torch.nan, dtype=torch.float64)
        asked[pairs[:, 0], pairs[:, 1]] = torch.from_numpy(np.where(np.isnan(p), 0.5, p) if self.compat else p)
        verdicts = verdicts_of(asked, self.both_orders and not self.compat)
        return verdicts if self.margin is None else hardened(verdicts, self.margin)


def winrate(
    judge: Judge | Callable[[np.ndarray, np.ndarray, str], Any],
    opponents: int | None = None,
    both_orders: bool = True,
    margin: float | None = None,
    aspects: float = 0.0,
    compat: str | None = None,
) -> Groupwise:
    """Win rate of each image against others of its prompt and rival class, in [0, 1].

    r_i = mean of its verdicts: P(i is better), 1 a win, 0 a loss, 1/2 a tie. Their mean over a group is 1/2 where all comparisons
    were read, so a small gap of scores cannot become a large advantage.
    A comparison that could not be read is left out; an image without any has no score, and so has one without rivals. So it is no
    judge of held-out images drawn one a prompt, nor of progress: name another in `evaluate.rewards`.

    judge: f(images A, images B, prompt) -> P(A is better), NaN where unreadable; a `Judge`: a VLM's, or `scored(function, margin)`.
    opponents: each image meets so many others, chosen by a hash of contents, equally many for all (one more where that number and
    the group are odd); None: all, which costs G (G - 1) / 2 comparisons a prompt.
    both_orders: a pair is asked in both orders and averaged; half read is unread. Else it is asked once, each image first as often
    as second (to within one).
    margin: verdicts within it of 1/2 are ties, beyond it wins and losses; None: probabilities count as they are.
    aspects: weight of the mean win rate of the judge's aspects beside the overall one's 1; 1 for UnifiedReward-Flex.
    compat: "Pref-GRPO@3e787f6": all pairs i < j asked once, i first; unreadable counts 1/2 for both; three decimals.
    Parts: overall, each aspect, comparisons read and unreadable ones of each image.

    Raises: ValueError for less than one opponent, a margin outside [0, 1/2), a negative weight, an unknown compat, or compat with
    opponents; TypeError for a judge that is none.
    Source: Pref-GRPO (2508.20751) sec. 3; Pref-GRPO@3e787f6 `unifiedreward_think.py`, `unifiedreward_flex.py`.
    Differs: asks both orders and leaves out what it could not read; see compat.
    """
    if compat not in (None, COMPAT):
        raise ValueError(f'winrate() knows compat "{COMPAT}", not {compat!r}')
    if compat and opponents is not None:
        raise ValueError(f"{COMPAT} compares all, but opponents is {opponents}; leave one of them out")
    if not aspects >= 0:
        raise ValueError(f"the weight of aspects is {aspects:g}; give 0 or more")
    schedule(2, opponents)
    if margin is not None:
        hardened(torch.tensor(0.5), margin)
    return groupwise(WinRate(judging(judge), opponents, both_orders, margin, aspects, compat))


def champion(
    judge: Judge | Callable[[np.ndarray, np.ndarray, str], Any],
    images: np.ndarray,
    prompt: str,
    metadata: Metadata | None = None,
    both_orders: bool = True,
) -> tuple[int, np.ndarray]:
    """The best of N images by its wins against all others, and all their wins [N]: a reference to compare with later.

    wins_i = sum of verdicts, after ties 1/2; the earlier image where wins are equal.

    Raises: ValueError for less than two images, or where no comparison was read.
    Source: RewardDance (2509.08826): the reference is the best of N of the untrained model by pairwise win counts.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: the best of at least 2 is asked for")
    told = WinRate(judging(judge), both_orders=both_orders, margin=0.0)(images, prompt, metadata or {})
    rate, compared = column(told.values, len(images)), column(told.parts["comparisons"], len(images))
    if not compared.any():
        raise ValueError(f"no comparison of {len(images)} images could be read; look at what the judge answers")
    wins = np.where(compared > 0, rate * compared, 0.0)
    return int(np.argmax(wins)), wins
