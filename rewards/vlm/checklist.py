"""Questions that depend on each other: what is on a table can only be right if there is a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Node(NamedTuple):
    """One yes-or-no question, and the numbers (from 0) of those it needs."""

    question: str
    needs: tuple[int, ...] = ()


def nodes(metadata: Mapping[str, Any]) -> tuple[Node, ...]:
    """The questions of a prompt, metadata["questions"]: texts, or {"question": text, "needs": [numbers from 0]}; none: empty.

    Raises: ValueError for anything else, for a number that is no other question's, or questions that need each other in a circle.
    """
    given = metadata.get("questions", [])
    if not isinstance(given, list | tuple):
        raise ValueError(f"questions are {type(given).__name__}; give a list of texts or of {{question, needs}}")
    out = tuple(_node(i, one, len(given)) for i, one in enumerate(given))
    order(out)
    return out


def order(some: Sequence[Node]) -> list[int]:
    """Numbers of the questions, each after those it needs.

    Raises: ValueError for a circle.
    """
    done: list[int] = []
    while len(done) < len(some):
        free = [i for i, node in enumerate(some) if i not in done and all(need in done for need in node.needs)]
        if not free:
            circle = [i for i in range(len(some)) if i not in done]
            raise ValueError(f"questions {circle} need each other in a circle; let one of them need nothing")
        done += free
    return done


def passed(some: Sequence[Node], p: Sequence[float], hard: bool) -> float:
    """Mean over the questions of P(yes), with `hard` of 1 where it is above 1/2 and else 0; 0 where a question it needs is not
    answered yes (P <= 1/2), or was itself made 0 by one it needs. NaN where there are no questions, or one that counts was not
    answered.

    Source: DSG (2310.18235), DPG-Bench (2403.05135): a child is 0 if any parent is a no; mean over all. They are `hard`.
    """
    worth: dict[int, float] = {}
    yes: dict[int, float] = {}
    for i in order(some):
        above = [yes[need] for need in some[i].needs]
        fails = any(value == 0 for value in above)
        unknown = not fails and (math.isnan(p[i]) or any(map(math.isnan, above)))
        yes[i] = 0.0 if fails else math.nan if unknown else float(p[i] > 0.5)
        worth[i] = yes[i] if hard or fails or unknown else p[i]
    return math.fsum(worth.values()) / len(worth) if worth else math.nan


def _node(i: int, given: object, count: int) -> Node:
    if isinstance(given, str):
        return Node(given)
    needs = given.get("needs", []) if isinstance(given, Mapping) else None
    text = given.get("question") if isinstance(given, Mapping) else None
    if not isinstance(text, str) or not isinstance(needs, list | tuple):
        raise ValueError(f"question {i} is {given!r}; give a text, or a question and the list of numbers it needs")
    for need in needs:
        if type(need) is not int or not 0 <= need < count or need == i:
            raise ValueError(f"question {i} needs {need!r}; give numbers of other questions, from 0 to {count - 1}")
    return Node(text, tuple(needs))
