"""The embedded world: captions of coloured shapes in GenEval's six tasks.

A *composition* is what a caption asks for, free of wording: the multiset of (class, colour, count) and the relation.
"a circle left of a square" and "a square right of a circle" are one composition.

Disjointness of the two splits, decided by sha256 of the composition (never of the text):
* two_object, counting, colors, position, color_attr: no composition of a held-out row occurs in a training row.
* single_object has only four compositions; there the unit is (composition, wording): no held-out caption text occurs in training.
Every word of a held-out caption occurs in training captions (`tests/test_shapes_world.py`).

Differs from GenEval: in `two_object`, `counting` and `position` at most one class may carry a colour ("a circle and a red square"),
because four shapes alone give too few compositions; there is no "exclude", since the verifier demands the exact number of objects.
"""

import hashlib
from functools import lru_cache
from itertools import permutations, product
from typing import Literal, NotRequired, TypedDict, cast

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
OPPOSITE = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}

PREFIXES = ("", "a photo of ", "a picture of ", "a drawing of ", "an image of ", "a painting of ", "a sketch of ", "a view of ")
ARTICLES = ("a ", "one ", "a single ")

# Held-out compositions of each task, and captions taken of each; the products are 28.
HELD_OUT: dict[str, tuple[int, int]] = {
    "single_object": (28, 1),
    "two_object": (14, 2),
    "counting": (14, 2),
    "colors": (7, 4),
    "position": (28, 1),
    "color_attr": (28, 1),
}

Split = Literal["train", "heldout"]


# One entry of GenEval's "include"; `position` is [relation, index of the entry it refers to].
# "class" is a keyword of Python, hence the functional form.
Entry = TypedDict("Entry", {"class": str, "count": int, "color": NotRequired[str], "position": NotRequired[list[str | int]]})


class Row(TypedDict):
    """A caption with what it asks for, in the format of GenEval's `evaluation_metadata.jsonl`."""

    tag: str
    include: list[Entry]
    prompt: str


def entry(name: str, count: int = 1, color: str | None = None, position: tuple[str, int] | None = None) -> Entry:
    """An "include" entry with only the keys that are asked for."""
    out: Entry = {"class": name, "count": count}
    if color is not None:
        out["color"] = color
    if position is not None:
        out["position"] = list(position)
    return out


def composition(row: Row) -> str:
    """The wording-free identity of a row: sorted (class, colour, count), and the relation seen from the smaller entry."""
    parts = [f"{e['class']}/{e.get('color', '-')}/{e['count']}" for e in row["include"]]
    for i, e in enumerate(row["include"]):
        if "position" in e:
            relation, other = cast(str, e["position"][0]), cast(int, e["position"][1])
            first, second = parts[i], parts[other]
            if first > second:
                first, second, relation = second, first, OPPOSITE[relation]
            return f"{row['tag']}|{first} {relation} {second}"
    return f"{row['tag']}|{' + '.join(sorted(parts))}"


def phrase(e: Entry, article: str = "a ") -> str:
    """ "a red circle" or "three red circles"."""
    color = f"{e['color']} " if "color" in e else ""
    if e["count"] == 1:
        return f"{article}{color}{e['class']}"
    return f"{NUMBERS[e['count']]} {color}{PLURALS[e['class']]}"


def caption(tag: str, include: list[Entry], prefix: str = "a photo of ", article: str = "a ") -> str:
    """The text of a row. A position row names its second entry first, as GenEval does: "a dog right of a bench"."""
    if tag == "position":
        relation = cast(list[str | int], include[1]["position"])[0]
        return f"{prefix}{phrase(include[1], article)} {relation} {phrase(include[0], article)}"
    return prefix + " and ".join(phrase(e, article) for e in include)


def wording(row: Row) -> tuple[str, str]:
    """The prefix and the article a caption of the world was made with."""
    text = row["prompt"]
    prefix = next(p for p in sorted(PREFIXES, key=len, reverse=True) if text.startswith(p))
    rest = text.removeprefix(prefix)
    return prefix, next((a for a in ARTICLES if rest.startswith(a)), ARTICLES[0])


def _single_colored(a: str, b: str) -> list[tuple[Entry, Entry]]:
    """The pair without colours, and with a colour on either one."""
    plain = [(entry(a), entry(b))]
    return plain + [(entry(a, color=c), entry(b)) for c in COLORS] + [(entry(a), entry(b, color=c)) for c in COLORS]


def _position(a: str, b: str, relation: str) -> list[list[Entry]]:
    return [[x, {**y, "position": [relation, 0]}] for x, y in _single_colored(a, b)]


def _includes(tag: str) -> list[list[Entry]]:
    """All "include" lists of a task; both orders of a pair are listed, as two wordings of one composition."""
    match tag:
        case "single_object":
            return [[entry(s)] for s in SHAPES]
        case "colors":
            return [[entry(s, color=c)] for s, c in product(SHAPES, COLORS)]
        case "counting":
            return [[entry(s, n, c)] for s, n, c in product(SHAPES, NUMBERS, (None, *COLORS))]
        case "two_object":
            return [list(pair) for a, b in permutations(SHAPES, 2) for pair in _single_colored(a, b)]
        case "color_attr":
            pairs = product(permutations(SHAPES, 2), permutations(COLORS, 2))
            return [[entry(a, color=c), entry(b, color=d)] for (a, b), (c, d) in pairs]
        case _:
            pairs = product(permutations(SHAPES, 2), OPPOSITE)
            return [include for (a, b), r in pairs for include in _position(a, b, r)]


def _rows(tag: str) -> list[Row]:
    articles = ARTICLES if tag in ("single_object", "colors") else ARTICLES[:1]
    wordings = list(product(PREFIXES, articles))
    return [
        {"tag": tag, "include": include, "prompt": caption(tag, include, prefix, article)}
        for include in _includes(tag)
        for prefix, article in wordings
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(f"flowrl shapes/{text}".encode()).hexdigest()


def unit(row: Row) -> str:
    """What the splits are disjoint in: the composition, and for single_object also the text."""
    return f"{composition(row)}|{row['prompt']}" if row["tag"] == "single_object" else composition(row)


@lru_cache(maxsize=2)
def _captions(split: Split) -> tuple[Row, ...]:
    out: list[Row] = []
    for tag in TAGS:
        rows = _rows(tag)
        units = sorted({unit(row) for row in rows}, key=_digest)
        n_units, n_each = HELD_OUT[tag]
        held = set(units[:n_units])
        if split == "train":
            out += [row for row in rows if unit(row) not in held]
            continue
        for name in units[:n_units]:
            same = sorted((row for row in rows if unit(row) == name), key=lambda row: _digest(row["prompt"]))
            out += same[:n_each]
    return tuple(out)


def captions(split: Split) -> list[Row]:
    """All rows of a split, in a fixed order.

    "heldout": 168 rows, 28 of each task. "train": everything whose composition is not held out.

    Raises: ValueError for any other split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"captions of split {split!r}: there are only 'train' and 'heldout'.")
    return [cast(Row, {**row, "include": [cast(Entry, dict(e)) for e in row["include"]]}) for row in _captions(split)]


@lru_cache(maxsize=1)
def _by_text() -> dict[str, Row]:
    return {row["prompt"]: row for tag in TAGS for row in _rows(tag)}


def asked(text: str) -> Row | None:
    """What a caption of this world asks for, of either split or left out of both; None for any other text."""
    row = _by_text().get(text)
    return None if row is None else cast(Row, {**row, "include": [cast(Entry, dict(e)) for e in row["include"]]})
