"""What votes say: how often after beat before, and whether the voting itself was sound."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from flowrl.rewards.votes.book import Vote, better
from flowrl.rewards.votes.head import wilson


def summary(votes: Sequence[Vote]) -> dict[str, Any]:
    """{"votes", "ties", "unsaid", "seconds", "left": {"rate", "low", "high", "n"} | None, "after": the same | None}.

    after: the share of comparisons of an image before with one after that the latter won, ties as half; averaged within a caption
    first, then over n captions, since votes on one caption are not independent; Wilson's 95 % interval of n, which for means inside
    [0, 1] is never too narrow.
    left: the share of decided pairs in which the image shown on the left won; it is half where the voter does not favour a side.
    """
    pairs = [vote for vote in votes if len(vote.images) == 2 and vote.ranks is not None]
    decided = [share for vote in pairs if (share := better(vote, 0, 1)) not in (None, 0.5)]
    by: dict[str, list[float]] = {}
    for vote in votes:
        for won in _after(vote):
            by.setdefault(vote.prompt, []).append(won)
    captions = [float(np.mean(shares)) for _, shares in sorted(by.items())]
    seconds = [vote.seconds for vote in votes]
    return {
        "votes": len(votes),
        "ties": sum(vote.ranks is not None and len(set(vote.ranks)) == 1 for vote in votes),
        "unsaid": sum(vote.ranks is None for vote in votes),
        "seconds": median(seconds) if seconds else None,
        "left": _share([float(share) for share in decided if share is not None]),
        "after": _share(captions),
    }


def sentences(found: dict[str, Any]) -> list[str]:
    """The summary as a person reads it."""
    said = [f"{found['votes']} votes: {found['ties']} about the same, {found['unsaid']} could not say"]
    if found["seconds"] is not None:
        said[0] += f"; {found['seconds']:.1f} seconds each (median)"
    after, left = found["after"], found["left"]
    if after:
        plural = "caption" if after["n"] == 1 else "captions"
        where = "" if after["low"] <= 0.5 <= after["high"] else ", which is not chance"
        said.append(
            f"after beat before in {after['rate']:.0%} (95 % interval {after['low']:.0%} to {after['high']:.0%}, "
            f"{after['n']} {plural}, ties as half){where}"
        )
    if left:
        odd = "" if left["low"] <= 0.5 <= left["high"] else ": the voter favours a side; be careful with these votes"
        said.append(
            f"the image shown first (left or above) won {left['rate']:.0%} "
            f"(95 % interval {left['low']:.0%} to {left['high']:.0%}){odd}"
        )
    return said


def _after(vote: Vote) -> list[float]:
    """1, 0.5 or 0 for each pair of an image after and one before in a vote."""
    sides = [image.side for image in vote.images]
    firsts = [i for i, side in enumerate(sides) if side == "before"]
    lasts = [j for j, side in enumerate(sides) if side == "after"]
    return [share for j in lasts for i in firsts if (share := better(vote, j, i)) is not None]


def _share(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    rate = float(np.mean(values))
    low, high = wilson(rate, len(values))
    return {"rate": rate, "low": low, "high": high, "n": len(values)}
