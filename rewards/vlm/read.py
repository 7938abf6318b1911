"""Readers of a judge's text. What is not there, or out of its range, is NaN: nothing is guessed and nothing raises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

# all repetitions are bounded: a judge may write a hundred thousand blanks
NUMBER = r"(-?\d{1,6}(?:\.\d{1,30})?)(?!\.?\d|\s{0,4}(?:-|–|to\b)\s{0,4}\d)"
"""A number that is not the beginning of a range such as 1-5."""
SHARE = r"(?:\s{0,4}/\s{0,4}\d{1,3})?"
GAP = r"[\s*_]{0,12}"
"""Blanks and Markdown's marks."""
SHORT = 40_000
"""Characters of an answer that are read, from its end: more is no answer."""

Axes = Mapping[str, str]
Reader = Callable[[str, Axes], dict[str, float]]


def labelled(text: str, axes: Axes) -> dict[str, float]:
    """The number behind each label, as in `Style Score (1-5): 3.5`; the last one where a label stands more than once."""
    return {name: _last(rf"{_label(label)}{NUMBER}", text) for name, label in axes.items()}


def tagged(text: str, axes: Axes) -> dict[str, float]:
    """The number between tags of each label, as in `<Score>4</Score>`, or behind an unclosed one."""
    return {name: _last(rf"<{re.escape(label)}>{GAP}{NUMBER}{SHARE}{GAP}(?:<|$)", text) for name, label in axes.items()}


def listed(text: str, axes: Axes) -> dict[str, float]:
    """The numbers of a list behind the axes' label, as in `"score": [20, 23]`, one for each axis."""
    label = next(iter(axes.values()), "")
    found = re.findall(rf"{re.escape(label)}[\"'\s]{{0,8}}[:=]\s{{0,8}}\[([^\[\]]{{0,200}})\]", text, re.IGNORECASE)
    items = [item.strip() for item in found[-1].split(",")] if found else []
    if len(items) != len(axes) or not all(re.fullmatch(r"-?\d+(\.\d+)?", item) for item in items):
        return dict.fromkeys(axes, math.nan)
    return dict(zip(axes, map(float, items), strict=True))


def labelled_pair(text: str, axes: Axes) -> dict[str, float]:
    """Share of the first image on each axis, from `Style Score:`, `Image 1: x` and `Image 2: y` below it: x / (x + y)."""
    both = rf"image {{0,2}}1{GAP}[:=]{GAP}{NUMBER}{SHARE}[\s,;*_]{{0,12}}image {{0,2}}2{GAP}[:=]{GAP}{NUMBER}"
    out = dict.fromkeys(axes, math.nan)
    for name, label in axes.items():
        found = re.findall(rf"{_label(label)}{both}", text, re.IGNORECASE)
        if found:
            one, two = map(float, found[-1])
            out[name] = one / (one + two) if min(one, two) >= 0 and one + two > 0 else math.nan
    return out


def conclusion(text: str, axes: Axes) -> dict[str, float]:
    """1 for `Image 1 is better`, 0 for `Image 2 is better`, 1/2 for `equally good`: the last of them that stands in the text."""
    del axes
    said = r"\bimage {0,2}([12]) (?:is |looks )(?:clearly |slightly |much |overall |the )?better\b|\bequally good\b"
    found = list(re.finditer(said, text, re.IGNORECASE))
    if not found:
        return {"winner": math.nan}
    return {"winner": {"1": 1.0, "2": 0.0}.get(found[-1].group(1), 0.5)}


def tagged_conclusion(text: str, axes: Axes) -> dict[str, float]:
    """What `conclusion` reads between answer tags, NaN without them: an answer cut short has none."""
    # a pattern that looks for the end of every beginning takes a minute for a text of beginnings
    _, begun, rest = text.lower().rpartition("</think>")[2].partition("<answer>")
    said, ended, after = rest.partition("</answer>")
    return conclusion(said, axes) if begun and ended and "<answer>" not in after else {"winner": math.nan}


def winners(text: str, axes: Axes) -> dict[str, float]:
    """`winner`, and `cat_winner` of the first categories in the order of the axes, from a JSON object.

    An unknown winner is NaN; a category that says neither image is NaN too.
    """
    out = {"winner": math.nan, **dict.fromkeys(axes, math.nan)}
    try:
        told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return out
    if not isinstance(told, dict):
        return out
    out["winner"] = _image(told.get("winner"))
    categories = told.get("categories")
    for name, category in zip(axes, categories if isinstance(categories, list) else [], strict=False):
        out[name] = _image(category.get("cat_winner")) if isinstance(category, dict) else math.nan
    return out


READERS: dict[str, Reader] = {
    "labelled": labelled,
    "tagged": tagged,
    "listed": listed,
    "labelled_pair": labelled_pair,
    "conclusion": conclusion,
    "tagged_conclusion": tagged_conclusion,
    "winners": winners,
}


def read(reader: str, text: str, axes: Axes) -> dict[str, float]:
    """A reader by name. Only the end of a text is read that is longer than any answer."""
    return READERS[reader](text[-SHORT:], axes)


def joined(parts: Sequence[float], join: str) -> float:
    """Their "mean" or the "least"; NaN where there are none or one is."""
    if not parts or any(math.isnan(part) for part in parts):
        return math.nan
    return min(parts) if join == "least" else math.fsum(parts) / len(parts)


def _label(label: str) -> str:
    """The label, what may stand in brackets after it, and a colon, with or without Markdown's stars."""
    return rf"{re.escape(label)}{GAP}(?:\([^)\n]{{0,40}}\){GAP})?[:=]{GAP}"


def _last(pattern: str, text: str) -> float:
    found = re.findall(pattern, text, re.IGNORECASE)
    return float(found[-1]) if found else math.nan


def _image(said: object) -> float:
    """1 if text names image 1 alone, 0 for image 2."""
    named = set(re.findall(r"\bimage {0,2}([12])(?!\d| ?/)", said.lower())) if isinstance(said, str) else set()
    return {"1": 1.0, "2": 0.0}[named.pop()] if len(named) == 1 else math.nan
