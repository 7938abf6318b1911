"""A row of the table of rewards."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What `make` needs of a reward, and what `flowrl rewards` tells of it.

    target: "module:name". With neither variants nor placed it is the reward itself; else it is called with the variant (nothing
    if none is given), and with place= if `placed`, and returns the reward.
    about: what it measures;  variants: what may follow the colon, "" for nothing.
    placed: has a network that goes where the user says (`place.Place`);  pure: an image's score depends on image, prompt and
    metadata alone, and costs more than a hash, so answers are kept (`cache.cached`);  whole: it is given every frame of a video,
    unless the user says how many (`place.Place.frames`); others see some, and score their mean;  single: a function of images
    [N, H, W, 3] alone, which is asked of each frame.
    licence: of the weights or the rule;  weights: gigabytes to download, 0 for none;  memory: gigabytes of a GPU at its own dtype
    and batch, from the size of the weights where it was not measured;  range: of the scores;  hacks: how a policy is known to
    cheat it;  needs: packages beyond flowrl's own, as pip names them;  source: paper, code or weights;  example: a command that
    uses it, "" where the name alone scores any images.
    """

    target: str
    about: str
    variants: str = ""
    placed: bool = False
    pure: bool = False
    whole: bool = False
    single: bool = False
    licence: str = ""
    weights: float = 0.0
    memory: float = 0.0
    range: str = ""
    hacks: str = ""
    needs: str = ""
    source: str = ""
    example: str = ""
