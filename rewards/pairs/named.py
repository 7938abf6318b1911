"""Win rates by name: [OPPONENTS:]NAME."""

from __future__ import annotations

from flowrl.rewards.forms import Groupwise
from flowrl.rewards.place import Place

from .judge import scored
from .winrate import winrate


def winrate_of(variant: str | None = None, place: Place | None = None) -> Groupwise:
    """Win rate of each image in its group; see `winrate`.

    variant: "NAME", the name of another reward: the image with the higher score wins, equal scores tie;
    "vlm:TEMPLATE@MODEL" with a template that compares two images: the model decides, both orders asked and averaged (and
    UnifiedReward-Flex's categories count as much as its verdict);
    "OPPONENTS:NAME", such as "8:vlm:unifiedreward-think@...": against so many others instead of all.

    Raises: ValueError without a name; whatever making the other reward raises.
    """
    head, colon, rest = (variant or "").partition(":")
    opponents, name = (int(head), rest) if colon and head.isdecimal() else (None, variant or "")
    if not name:
        raise ValueError("a win rate of what? Write winrate:NAME, such as winrate:clip, or winrate:vlm:TEMPLATE@MODEL")
    if name.startswith("vlm:"):
        from flowrl.rewards.vlm.named import pair, split

        asked, _ = split(name.removeprefix("vlm:"))
        if asked.compares:
            return winrate(pair(name.removeprefix("vlm:"), place), opponents, aspects=asked.aspects)
    from flowrl.rewards.names import make

    return winrate(scored(make(name, place=place or "cpu")), opponents)
