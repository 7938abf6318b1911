"""Distances between texts, in characters inserted, deleted or replaced."""

from __future__ import annotations


def levenshtein(a: str, b: str) -> int:
    """Least number of characters to insert, delete or replace that makes a of b."""
    return 0 if a == b else _last(a, b, list(range(len(b) + 1)))[-1]


def within(part: str, whole: str) -> int:
    """Least `levenshtein` of part to any stretch of whole, the empty one included: at most len(part).

    Source: Sellers, The theory and computation of evolutionary distances, 1980.
    """
    return 0 if part in whole else min(_last(part, whole, [0] * (len(whole) + 1)))


def _last(a: str, b: str, row: list[int]) -> list[int]:
    """Distances of all of a to the first j characters of b, j = 0 .. len(b); row: those of none of a."""
    for index, x in enumerate(a, 1):
        above, row = row, [index]
        for j, y in enumerate(b):
            row.append(min(above[j + 1] + 1, row[j] + 1, above[j] + (x != y)))
    return row
