"""The words GenEval's metadata is made of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

_COCO = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter,
    bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
    skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
    fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
CLASSES: tuple[str, ...] = tuple(name.strip() for name in _COCO.split(","))
"""The 80 classes in COCO's order. Three are not called as in COCO: computer mouse, tv remote, computer keyboard."""

COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
TAGS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks."""

OTHER_NAMES: Mapping[str, str] = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "doughnut": "donut",
    "hair dryer": "hair drier",
    "television": "tv",
}
"""What detectors call GenEval's classes: COCO's own names, and those of older label files."""


def called(name: str) -> str | None:
    """GenEval's name of a detector's class, None where it has none."""
    name = name.strip().lower().replace("_", " ")
    name = OTHER_NAMES.get(name, name)
    return name if name in CLASSES else None


def labels(names: Mapping[int, str], what: str) -> dict[int, str]:
    """A detector's class numbers as GenEval's names; classes GenEval does not know are left out.

    names: of each number, as in a model's id2label; 80 names that say nothing ("LABEL_0") are taken to be in COCO's order.

    Raises: ValueError where one of the 80 is missing, as its prompts could never be right.
    """
    if len(names) == len(CLASSES) and all(re.fullmatch(r"LABEL_\d+", name) for name in names.values()):
        return dict(enumerate(CLASSES))
    known = {number: called(name) for number, name in names.items()}
    found = {number: name for number, name in known.items() if name is not None}
    missing = [name for name in CLASSES if name not in found.values()]
    if missing:
        raise ValueError(
            f"{what} cannot judge GenEval: it has no class for {', '.join(missing[:5])} ({len(missing)} of 80 are missing); "
            "give a detector trained on COCO"
        )
    return found


def one_of(word: object, known: Collection[str], what: str) -> str:
    """Raises: ValueError, naming the nearest, where the word is none of those known."""
    if isinstance(word, str) and word in known:
        return word
    near = difflib.get_close_matches(str(word), list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"GenEval knows no {what} {word!r}; {hint}")
