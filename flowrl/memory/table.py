"""The counted numbers of every card as data: building networks of 20 B parameters takes minutes, reading a file does not.

`python -m flowrl.memory.table [NAME ...]` counts again and writes table.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .card import Card, Shape
from .cards import CARDS
from .meta import Body, Costs, Encoder, Facts

FILE = "table.json"


@cache
def table() -> dict[str, Facts]:
    """name -> facts, as last counted."""
    read = json.loads((files("flowrl.memory") / FILE).read_text(encoding="utf-8"))
    return {name: _facts(told) for name, told in read.items()}


def facts(card: Card) -> Facts:
    """Of the table, or counted now for a card that is not in it (from a folder of one's own)."""
    if CARDS.get(card.name) == card and card.name in table():
        return table()[card.name]
    from . import meta

    return meta.count(card, ())


def costs(card: Card, shape: Shape) -> Costs:
    """Of the table, or counted now (10 to 60 s)."""
    known = table().get(card.name) if CARDS.get(card.name) == card else None
    if known is not None and shape in known.at:
        return known.at[shape]
    from . import meta

    return meta.costs(meta.same(card), shape)


def _facts(told: dict[str, Any]) -> Facts:
    body = {**told["body"], "features": {int(width): count for width, count in told["body"]["features"].items()}}
    at = {}
    for text, lines in told["at"].items():
        height, width, frames = map(int, text.split("x"))
        at[height, width, frames] = Costs(**lines)
    return Facts(Body(**body), tuple(Encoder(**one) for one in told["encoders"]), told["vae"], at)


def _told(one: Facts) -> dict[str, Any]:
    at = {"x".join(map(str, shape)): asdict(row) for shape, row in one.at.items()}
    return {"body": asdict(one.body), "encoders": [asdict(e) for e in one.encoders], "vae": one.vae, "at": at}


def main(names: list[str]) -> None:
    """Count these cards (none: all), and write each as soon as it is known."""
    from . import meta

    path = Path(__file__).with_name(FILE)
    for name in names or CARDS:
        began = time.time()
        told = _told(meta.count(CARDS[name]))
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = {key: {**known, name: told}[key] for key in CARDS if key in known or key == name}
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
