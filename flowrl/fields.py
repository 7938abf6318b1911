"""What a dataclass's annotations say about its settings: fields, items, dotted paths."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowrl.yamlfile import SettingsError

Keys = tuple[str | int, ...]


def dotted(keys: Iterable[object]) -> str:
    return ".".join(str(key) for key in keys)


def fields_of(kind: object) -> dict[str, Any] | None:
    """Field -> annotation of a dataclass or an optional one, None for anything else."""
    kind = without_none(kind)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def item_of(kind: object) -> object | None:
    """The annotation of a list's items, None where it is no list or its items are free."""
    kind = without_none(kind)
    if typing.get_origin(kind) in (tuple, list):
        return next((arg for arg in typing.get_args(kind) if arg is not Ellipsis), None)
    return None


def is_mapping(kind: object) -> bool:
    return kind in (dict, Mapping, Any) or typing.get_origin(kind) in (dict, Mapping)


def without_none(kind: object) -> object:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def kind_at(kind: object, keys: Keys) -> object:
    for key in keys:
        kind = (fields_of(kind) or {}).get(str(key)) or item_of(kind)
    return kind


def place(kind: object, loc: Keys) -> Keys:
    """Where in the tree pydantic means, without the branches of unions it appends."""
    keys: list[str | int] = []
    for part in loc:
        if part == "[key]":
            continue
        fields, item = fields_of(kind), item_of(kind)
        if fields is not None and part in fields:
            kind = fields[str(part)]
        elif fields is not None and isinstance(part, str):
            return (*keys, part)
        elif isinstance(part, int):
            kind = item
        elif not is_mapping(kind):
            branches = typing.get_args(kind)
            kind = next((arg for arg in branches if part.startswith(getattr(typing.get_origin(arg), "__name__", "-"))), Any)
            continue
        keys.append(part)
        kind = without_none(kind)
    return tuple(keys)


def paths(kind: object, like: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Every dotted path there is; a list's index is the one `like` has at that depth."""
    for name, inner in (fields_of(kind) or {}).items():
        yield prefix + name
        yield from paths(inner, like[1:], f"{prefix}{name}.")
        index = like[1] if len(like) > 1 and like[1].isdecimal() else "0"
        yield from paths(item_of(inner), like[2:], f"{prefix}{name}.{index}.")


def unknown(kind: object, key: str, where: str) -> SettingsError:
    """Names the paths that end in the same word (`lr` is meant to be `optim.lr`), else the nearest by spelling."""
    known = list(paths(kind, key.split(".")))
    last = key.rpartition(".")[2]
    near = [path for path in known if path.rpartition(".")[2] == last]
    if not near:
        whole = {path: difflib.SequenceMatcher(None, path, key).ratio() for path in known}
        ends = {path: difflib.SequenceMatcher(None, path.rpartition(".")[2], last).ratio() for path in known}
        # a slip in a path that is otherwise right, or else a setting's own name with a slip, in whatever section
        scores = whole if max(whole.values()) > 0.8 else ends if max(ends.values()) > 0.7 else {}
        near = sorted((path for path in scores if scores[path] > max(scores.values()) - 0.05), key=lambda path: -scores[path])
    section = key.rpartition(".")[0]
    beside = fields_of(kind_at(kind, tuple(section.split(".")))) if section else None
    there = f"{section} has {', '.join(beside)}" if beside else f"there are {', '.join(fields_of(kind) or ())}"
    hint = f"did you mean {' or '.join(near[:3])}?" if near else there
    return SettingsError(f"unknown setting {key}{where}: {hint}")
