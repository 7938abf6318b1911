"""Search among initial latents by rankings: a person orders a few images, the next ones follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from flowrl.samplers import noise

_T = TypeVar("_T")
Compat = Literal["zo_ranksgd@13d5a26d"]


def direction(codes: Tensor, center: Tensor, ranking: Sequence[int], compat: Compat | None = None) -> Tensor:
    """Mean of winner - loser over all pairs that the ranking orders: a direction to go, [*d].

    codes [m, *d], drawn around center [*d];  ranking: the k best of them, best first, 1 <= k <= m; the others lose to all of these.
    = sum_i w_i (codes_i - center) / (k (k - 1) / 2 + k (m - k)), w_i = wins - losses: m - 1 - 2 r at place r, -k off the list.

    Raises: ValueError for a ranking that is empty, repeats, or names a code that is not there.
    Source: ZO-RankSGD (2303.03751), its ranking oracle of the k best, without its 1 / mu.
    Differs: the code has w = m - 2 r, which adds the mean of the listed codes; `compat` gives that.
    """
    _check(ranking, len(codes))
    m, k = len(codes), len(ranking)
    weight = torch.full((m,), -float(k), dtype=torch.float64)
    most = m - 1 if compat is None else m
    weight[list(ranking)] = most - 2 * torch.arange(k, dtype=torch.float64)
    pairs = k * (k - 1) / 2 + k * (m - k)
    away = (codes - center).double().flatten(1)
    # one code alone is compared with nothing
    return (weight.to(away.device) @ away / max(pairs, 1)).view(center.shape).to(center)


@dataclass(frozen=True)
class RankSearch:
    """ZO-RankSGD as a value: `ask` for candidates, rank them, `tell` gives the next search.

    Rounds alternate. A *look around*: `shown` codes best + spread z; their ranking gives a direction, averaged with those of the
    looks since the best last moved. Then a *line search*: best + step 2^-i direction for i = 0 to shown - 3, the winner of the
    look around, and last the best itself. Where the ranking starts with another than the last, that is the new best, and the
    average starts anew.

    best [*d]: start here, a prompt's initial latents.  spread: mu.  step: gamma.  shown: images a round, at least 3.
    mean, count: the average direction.  winner: not None during a line search.

    Raises: ValueError for a spread or step that is not above 0, or fewer than 3 shown.
    Source: ZO-RankSGD (2303.03751); their `RankSGD` @13d5a26d.
    Differs: noise is keyed by (seed, turn). As there, candidates are not put back on the sphere that noise lives on: keep the
    step small against 1.
    """

    best: Tensor
    spread: float = 0.1
    step: float = 1.0
    shown: int = 6
    seed: int = 0
    compat: Compat | None = None
    turn: int = 0
    mean: Tensor | None = None
    count: int = 0
    winner: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("spread", self.spread), ("step", self.step)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of the search is {value}; give a number above 0")
        if self.shown < 3:
            raise ValueError(f"{self.shown} images a round; give at least 3: one new, the winner before, and the best so far")

    def ask(self) -> Tensor:
        """The codes to rank, [shown, *d]; the same whenever asked."""
        if self.winner is None or self.mean is None:
            draws = [noise.normal(self.best.shape, self.seed, self.turn, 0, i, "ranking") for i in range(self.shown)]
            return self.best + self.spread * torch.stack(draws).to(self.best)
        sizes = [self.step * 0.5**i for i in range(self.shown - 2)]
        return torch.stack([*(self.best + size * self.mean for size in sizes), self.winner, self.best])

    def tell(self, codes: Tensor, ranking: Sequence[int]) -> RankSearch:
        """The search after these codes were ranked: positions in `codes`, best first; naming the best few is enough.

        Raises: ValueError for a ranking that is empty, repeats, or names a code that is not there.
        """
        _check(ranking, len(codes))
        first, after = codes[ranking[0]], self.turn + 1
        if self.winner is None:
            new = direction(codes, self.best, ranking, self.compat)
            mean = new if self.mean is None else (self.mean * self.count + new) / (self.count + 1)
            return replace(self, turn=after, mean=mean, count=self.count + 1, winner=first)
        if ranking[0] == len(codes) - 1:
            return replace(self, turn=after, winner=None)
        return replace(self, turn=after, best=first, mean=None, count=0, winner=None)


def ranked(search: RankSearch, draw: Callable[[Tensor], _T]) -> Generator[tuple[RankSearch, _T], Sequence[int], None]:
    """Rounds of a search: yields (search so far, draw(codes [shown, *d])), takes the ranking of what was drawn; never ends.

    With a pipeline, draw = lambda codes: [pipe(prompt, latents=code[None]).images[0] for code in codes]. Here codes are points in
    a plane, and who ranks them likes points near (1, 1):

    >>> import torch
    >>> rounds = ranked(RankSearch(torch.zeros(2)), draw=lambda codes: (codes - 1).norm(dim=1))
    >>> search, far = next(rounds)
    >>> for _ in range(60):
    ...     search, far = rounds.send(far.argsort().tolist())
    >>> bool((search.best - 1).norm() < 0.1)
    True
    """
    while True:
        codes = search.ask()
        ranking = yield search, draw(codes)
        search = search.tell(codes, ranking)


def _check(ranking: Sequence[int], m: int) -> None:
    if not ranking or len(set(ranking)) < len(ranking) or not all(0 <= i < m for i in ranking):
        raise ValueError(f"the ranking {list(ranking)} of {m} codes; name some of 0 to {m - 1}, best first, each once")
