"""GenEval's rules: what a prompt's metadata asks for, and whether detected objects are that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .objects import OFFICIAL, Detections, Limits, Thing, sorted_things
from .words import CLASSES, COLOURS, RELATIONS, TAGS, one_of

ColoursOf = Callable[[Sequence[Thing], str], Sequence[str]]
"""(objects, their class) -> the colour of each, one of `words.COLOURS`."""


@dataclass(frozen=True)
class Clause:
    """`count` objects of a class, of a colour, in a relation to the objects of the include clause number `target`."""

    name: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Task:
    """What a prompt asks for. exclude: fails if there are as many objects as a clause says."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """correct: the official judgement;  strict: counts are equal, not only reached;  soft: share of what was asked for, in [0, 1];
    flow_grpo: their own soft score, at most 1."""

    correct: bool
    strict: bool
    soft: float
    flow_grpo: float


def read(metadata: Mapping[str, Any]) -> Task:
    """GenEval's metadata {tag, include: [{class, count, color?, position?: [relation, index]}], exclude?: [{class, count}]}.

    Raises: ValueError for a missing or unknown tag, class, colour or relation, a count below 1, a position that points at no
    earlier clause, or nothing asked for.
    """
    if "tag" not in metadata or "include" not in metadata:
        have = ", ".join(map(str, metadata)) or "nothing"
        raise ValueError(f"GenEval needs metadata with 'tag' and 'include', as in evaluation_metadata.jsonl; a prompt's has {have}")
    include = tuple(_clause(item, index) for index, item in enumerate(_items(metadata["include"], "include")))
    exclude = tuple(_clause(item, 0) for item in _items(metadata.get("exclude") or (), "exclude"))
    if not include:
        raise ValueError("GenEval's metadata asks for nothing: 'include' is empty; give at least one {class, count}")
    return Task(one_of(metadata["tag"], TAGS, "tag"), include, exclude)


def judge(task: Task, detections: Detections, colours: ColoursOf, limits: Limits = OFFICIAL) -> Verdict:
    """All four judgements of one picture.

    correct: every include clause in turn takes the `count` highest of its class; there must be that many, all of its colour, and
    each in the relation to each of the objects its target clause took, if that clause held. No exclude clause reaches its count.
    strict: the same with exactly `count` objects of each class, exclude clauses not looked at.
    flow_grpo: the mean over all clauses of 1 - |count - found| / count; 0 beside it where found differs and a colour or relation
    was asked for; else 1 - |count - so coloured| / count for a colour and, if that is 1, 1 for a relation that holds and 0 for one
    without a target. A relation that fails gives both 0 and 1.
    soft: the same with each term at least 0, and only 0 for a relation that fails. 1 where strict holds and only there.

    Source: djghosh13/geneval@16f1681 `evaluation/evaluate_images.py`; yifan123/reward-server@7131478 `reward_server/gen_eval.py`.
    Differs: boxes are float64 here, float32 there, which can differ within rounding of the margin. Where nothing is included the
    official judgement is that of the exclude clauses and flow_grpo's is 0; `read` refuses such metadata.
    """
    threshold = limits.counting if task.tag == "counting" else limits.threshold
    found = sorted_things(detections, threshold, limits.most)
    held: list[_Held] = []
    for clause in task.include:
        held.append(_include(clause, found.get(clause.name, []), held, colours, limits.margin))
    excluded = any(len(found.get(clause.name, [])) >= clause.count for clause in task.exclude)
    correct = all(one.reached is not None for one in held) and not excluded
    theirs = [term for one in held for term in one.terms]
    ours = [max(term, 0.0) for one in held for term in (one.terms[:-1] if one.failed_relation else one.terms)]
    return Verdict(correct, all(one.exact for one in held), float(np.mean(ours)), float(np.mean(theirs)))


def relations(a: np.ndarray, b: np.ndarray, margin: float = OFFICIAL.margin) -> frozenset[str]:
    """Where box a lies of box b: none, one or two of `words.RELATIONS`.

    With o = centre a - centre b and o' = sign(o) max(|o| - margin (size a + size b), 0) on each axis, d = o' / |o|: left of where
    d_x < -1/2, right of where d_x > 1/2, above where d_y < -1/2, below where d_y > 1/2 (y points down). None where both |o'| are
    below 0.001 pixels. Boxes left, top, right, bottom in pixels.

    Source: djghosh13/geneval@16f1681 `evaluation/evaluate_images.py::relative_position`; d is over |o|, not |o'|.
    """
    sizes = np.abs(a[2:] - a[:2]) + np.abs(b[2:] - b[:2])
    offset = (a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2
    apart = np.sign(offset) * np.maximum(np.abs(offset) - margin * sizes, 0)
    if (np.abs(apart) < 1e-3).all():
        return frozenset()
    x, y = (apart / np.linalg.norm(offset)).tolist()
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(name for name in RELATIONS if holds[name])


@dataclass(frozen=True)
class _Held:
    """One include clause. reached: the objects it took, None where it failed;  exact: its objects are exactly those asked for;
    terms: of flow_grpo's mean;  failed_relation: the last two are the 0 and the 1 of a relation that fails."""

    reached: list[Thing] | None
    exact: bool
    terms: tuple[float, ...]
    failed_relation: bool = False


def _include(clause: Clause, things: list[Thing], before: list[_Held], colours: ColoursOf, margin: float) -> _Held:
    count, found = clause.count, len(things)
    exact = found == count
    asks = clause.colour is not None or clause.relation is not None
    terms = (1 - abs(count - found) / count, *((0.0,) if asks and not exact else ()))
    if found < count:
        return _Held(None, False, terms)
    taken = things[:count]
    if clause.colour is not None:
        coloured = list(colours(taken, clause.name)).count(clause.colour)
        terms += (1 - (count - coloured) / count,) if exact else ()
        if coloured < count:
            return _Held(None, False, terms)
    if clause.relation is None:
        return _Held(taken, exact, terms)
    return _placed(clause, taken, before[clause.target], terms, exact, margin)


def _placed(clause: Clause, taken: list[Thing], target: _Held, terms: tuple[float, ...], exact: bool, margin: float) -> _Held:
    """The relation of a clause whose count and colour hold.

    Target objects that were reached but not exactly are a target to the official judgement and none to flow_grpo's.
    """
    holds = target.reached is not None and all(
        clause.relation in relations(one.box, other.box, margin) for one in taken for other in target.reached
    )
    reached = taken if holds else None
    if not exact:
        return _Held(reached, False, terms)
    if not target.exact:
        return _Held(reached, False, (*terms, 0.0))
    return _Held(reached, holds, (*terms, 1.0) if holds else (*terms, 0.0, 1.0), failed_relation=not holds)


def _clause(item: Mapping[str, Any], index: int) -> Clause:
    name = one_of(item.get("class"), CLASSES, "class")
    count = item.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"GenEval's metadata asks for {count!r} of class {name!r}; give a count of 1 or more")
    colour = None if item.get("color") is None else one_of(item["color"], COLOURS, "color")
    if item.get("position") is None:
        return Clause(name, count, colour)
    place = item["position"]
    if isinstance(place, str) or not isinstance(place, Sequence) or len(place) != 2:
        raise ValueError(f"GenEval's metadata has position {place!r}; give [relation, index of an earlier clause]")
    target = place[1]
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < index:
        raise ValueError(f"GenEval's metadata puts clause {index} beside clause {target!r}; give the index of an earlier clause")
    return Clause(name, count, colour, one_of(place[0], RELATIONS, "relation"), target)


def _items(value: Any, what: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not all(isinstance(one, Mapping) for one in value):
        raise ValueError(f"GenEval's metadata has {what} {value!r}; give a list of {{class, count}}")
    return list(value)
