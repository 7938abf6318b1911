"""Imperfect captions: the base learns from captions as wrong as web captions are, which leaves a reward something to do.

A caption is made from a copy of the picture's row in which, independently and with the probabilities below, things are swapped
or left out. What the picture shows never changes.
"""

import numpy as np

from flowrl.shapes.world import ARTICLES, COLORS, NUMBERS, OPPOSITE, Entry, Row, caption, entry, wording

SWAP_COLOR = 0.12  # each named colour is another one
DROP_COLOR = 0.05  # each named colour is not said
SWAP_COUNT = 0.22  # a number of two to four is another one of them
SWAP_RELATION = 0.18  # the relation is one of the other three
DROP_RELATION = 0.05  # "and" instead of the relation
LEAVE_OUT = 0.10  # of two objects only one is named

RATES = {
    "swap_color": SWAP_COLOR,
    "drop_color": DROP_COLOR,
    "swap_count": SWAP_COUNT,
    "swap_relation": SWAP_RELATION,
    "drop_relation": DROP_RELATION,
    "leave_out": LEAVE_OUT,
}


def _other(values: tuple[str, ...], value: str, rng: np.random.Generator) -> str:
    rest = [v for v in values if v != value]
    return rest[rng.integers(len(rest))]


def _entry(e: Entry, rng: np.random.Generator) -> Entry:
    color, count = e.get("color"), e["count"]
    if color is not None:
        chance = rng.random()
        if chance < SWAP_COLOR:
            color = _other(COLORS, color, rng)
        elif chance < SWAP_COLOR + DROP_COLOR:
            color = None
    if count > 1 and rng.random() < SWAP_COUNT:
        rest = [n for n in NUMBERS if n != count]
        count = rest[rng.integers(len(rest))]
    out = entry(e["class"], count, color)
    if "position" in e:
        out["position"] = e["position"]
    return out


def _tag(include: list[Entry]) -> str:
    """The task a caption with these entries belongs to."""
    if any("position" in e for e in include):
        return "position"
    if len(include) == 2:
        return "color_attr" if all("color" in e for e in include) else "two_object"
    if include[0]["count"] > 1:
        return "counting"
    return "colors" if "color" in include[0] else "single_object"


def mislabel(row: Row, rng: np.random.Generator) -> Row:
    """The row that an imperfect caption of this row's picture describes; its prompt is that caption."""
    prefix, article = wording(row)
    include = [_entry(e, rng) for e in row["include"]]
    if row["tag"] == "position":
        chance = rng.random()
        relation, other = include[1].pop("position", ["left of", 0])
        if chance < SWAP_RELATION:
            include[1]["position"] = [_other(tuple(OPPOSITE), str(relation), rng), other]
        elif chance >= SWAP_RELATION + DROP_RELATION:
            include[1]["position"] = [relation, other]
    if len(include) == 2 and rng.random() < LEAVE_OUT:
        kept = include[rng.integers(2)]
        kept.pop("position", None)
        include, article = [kept], ARTICLES[rng.integers(len(ARTICLES))]
    tag = _tag(include)
    return {"tag": tag, "include": include, "prompt": caption(tag, include, prefix, article)}
