"""One way in for every setting: a recipe, a YAML file of its fields and `a.b=1` overrides, checked by the same rules.

Works on any frozen pydantic dataclass. YAML is read by the 1.2 core rules: 3e-4 is a number; no, on and 16:9 are text.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from flowrl.fields import Keys, dotted, fields_of, is_mapping, item_of, kind_at, place, unknown
from flowrl.yamlfile import SettingsError, read, scalar, show, text

__all__ = ["SettingsError", "arguments", "changes", "dump", "load", "resolve"]

T = TypeVar("T")
Tree = dict[str, Any]
NAMED = (("method",), ("data", "selection"))
"""Where a name decides which arguments there are."""


def resolve(recipe: T, overrides: Mapping[str, Any] | Sequence[str] = (), file: str | Path | None = None) -> T:
    """`recipe` with the fields named by `file`, then by `overrides`, replaced and everything validated again.

    overrides: {"optim.lr": 1e-4} with Python values, or ["optim.lr=1e-4"] with YAML ones; a later one wins.
    A list or free mapping replaces the recipe's as a whole; `method.args.noise=0.7` sets one entry, `rewards.0.weight=2` one item.
    Another method.name drops the recipe's method.args, which were the other method's; data.selection likewise.

    Raises: SettingsError for a key that does not exist, a value of the wrong type or out of range, a file that cannot be read.
    """
    kind = type(recipe)
    tree, typed, origin = _plain(recipe), dict[Keys, str](), dict[Keys, str]()
    for path in NAMED:
        if _renamed(tree, file, overrides, path):
            _at(tree, path)["args"] = {}
    if file is not None:
        _lay(kind, tree, origin, read(file), str(file))
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            keys, at = _find(kind, tree, key)
            _lay(kind, tree, origin, _plain(value, is_mapping(at)), "override", keys, at)
    else:
        for key, written in map(_split, overrides):
            keys, at = _find(kind, tree, key)
            value = scalar(written, f"--set {key}")
            if isinstance(value, (bool, int, float)) or not written:
                typed[keys] = written
            _lay(kind, tree, origin, value, "--set", keys, at)
    return _build(kind, tree, origin, typed)


def _at(tree: Any, path: Sequence[str]) -> Any:
    """What stands at a path of keys, None where it ends early."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _renamed(tree: Tree, file: str | Path | None, overrides: Mapping[str, Any] | Sequence[str], path: tuple[str, ...]) -> bool:
    """Whether file or overrides name another method (or what else `path` holds by name) than the recipe does."""
    own = _at(tree, path)
    if not isinstance(own, Mapping) or "name" not in own:
        return False
    given = (
        overrides.items() if isinstance(overrides, Mapping) else ((k, scalar(v, f"--set {k}")) for k, v in map(_split, overrides))
    )
    found: list[Any] = [{} if file is None else _at(read(file), path)]
    for key, value in given:
        keys = tuple(key.split("."))
        if keys == (*path, "name"):
            found.append({"name": value})
        elif keys == path[: len(keys)]:
            found.append(_at(_plain(value, False), path[len(keys) :]))
    return any(isinstance(m, Mapping) and m.get("name", own["name"]) != own["name"] for m in found)


def load(path: str | Path, kind: type[T] | None = None) -> T:
    """The recipe a YAML file holds; fields it leaves out have their defaults.

    kind None: flowrl.recipe.Recipe.
    """
    if kind is None:
        from flowrl.recipe import Recipe

        kind = cast("type[T]", Recipe)
    tree, origin = Tree(), dict[Keys, str]()
    _lay(kind, tree, origin, read(path), str(path))
    return _build(kind, tree, origin, {})


def dump(recipe: object, path: str | Path) -> Path:
    """Write every field as YAML; `load` gives back an equal recipe (a tuple among free arguments is tagged !tuple).

    Raises: SettingsError for a value that no file can hold, such as a function among the arguments.
    """
    tree = _plain(recipe)
    _writable(tree, ())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(tree), encoding="utf-8")
    return path


def arguments(function: Callable[..., Any], given: Mapping[str, Any], where: str = "method.args") -> dict[str, Any]:
    """`given` checked against a function's signature, each value as its annotation has it.

    where: the path before an argument's name. Raises: SettingsError for one that is unknown, missing or of another type.
    """
    hints = typing.get_type_hints(function)
    rows = [(name, hints.get(name, Any), _default(row.default)) for name, row in inspect.signature(function).parameters.items()]
    kind: Any = _checked(dataclasses.make_dataclass("Arguments", rows, kw_only=True))
    tree: Tree = dict(given)
    parts = where.split(".") if where else []
    for part in reversed(parts):
        kind, tree = _checked(dataclasses.make_dataclass("Arguments", [(part, kind)])), {part: tree}
    _check(kind, tree, "", kind, ())
    built: Any = _build(kind, tree, {}, {})
    for part in parts:
        built = getattr(built, part)
    return {name: getattr(built, name) for name in given}


_checked: Callable[[Any], Any] = pydantic_dataclass(config=ConfigDict(arbitrary_types_allowed=True, extra="forbid"))


def _default(value: Any) -> Any:
    return dataclasses.field() if value is inspect.Parameter.empty else dataclasses.field(default_factory=lambda: value)


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"{text!r} sets nothing: write key=value, such as optim.lr=1e-4")
    return key.strip(), value.strip()


def _writable(value: object, keys: Keys) -> None:
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            _writable(key, keys)
            _writable(item, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(cast("Sequence[Any]", value)):
            _writable(item, (*keys, i))
    elif not (value is None or type(value) in (bool, int, float, str)):
        raise SettingsError(
            f"{dotted(keys)} is {show(value)}, which a file cannot hold; use numbers, text, lists and mappings, "
            "or name a function as module:name"
        )


def _plain(value: Any, free: bool = False) -> Any:
    """A dataclass as dicts and lists. Among free arguments tuples stay tuples, so that they come back as tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, dict):
        return {key: _plain(item, True) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, free) for item in cast("Sequence[Any]", value)]
        return tuple(items) if free and isinstance(value, tuple) else items
    return value


def _find(kind: object, tree: Any, key: str) -> tuple[Keys, object]:
    """The keys a dotted path means and the annotation there; below a free mapping they are YAML scalars: fan.2 is the integer 2."""
    found: list[str | int] = []
    at: object = kind
    here: Any = tree
    for part in key.split("."):
        fields, item = fields_of(at), item_of(at)
        step: str | int = part
        if at is Any and here is not None and not isinstance(here, dict):
            raise SettingsError(f"{key}: {dotted(found)} is {show(here)}, which has no parts to set; set it whole")
        if fields is not None:
            if part not in fields:
                raise unknown(kind, key, "")
            at = fields[part]
        elif item is not None:
            size = len(here or ())
            if not part.isdecimal() or int(part) > size:
                raise SettingsError(f"{key}: {dotted(found)} is a list of {size}; give an index from 0 to {size}, not {part!r}")
            step, at = int(part), item
        elif is_mapping(at) and part:
            value = scalar(part, key) if found and at is Any else part
            step, at = value if isinstance(value, (str, int)) else part, Any
        else:
            raise unknown(kind, key, f" ({dotted(found)} has no parts)" if found else "")
        found.append(step)
        if isinstance(here, dict):
            here = here.get(step)
        else:
            here = here[step] if isinstance(here, list) and isinstance(step, int) and step < len(here) else None
    return tuple(found), at


def _put(tree: Any, keys: Keys, value: Any) -> None:
    *path, last = keys
    here: Any = tree
    for key in path:
        if isinstance(here, list) and key == len(here):
            here.append({})
        elif isinstance(here, dict) and not isinstance(here.get(key), (dict, list)):
            here[key] = {}
        here = here[key]  # pyright: ignore[reportCallIssue, reportArgumentType]
    if isinstance(here, list) and last == len(here):
        here.append(value)
    else:
        here[last] = value  # pyright: ignore[reportCallIssue, reportArgumentType]


def _check(kind: object, value: Any, where: str, full: object, prefix: Keys) -> None:
    """Every key of `value` is a field, however deep."""
    fields, item = fields_of(kind), item_of(kind)
    if fields is not None and isinstance(value, dict):
        for key, inner in value.items():
            if key not in fields:
                raise unknown(full, dotted((*prefix, key)), f" in {where}" if where else "")
            _check(fields[key], inner, where, full, (*prefix, key))
    elif item is not None and isinstance(value, list):
        for i, inner in enumerate(value):
            _check(item, inner, where, full, (*prefix, i))


def _lay(kind: object, tree: Tree, origin: dict[Keys, str], value: Any, where: str, keys: Keys = (), at: object = None) -> None:
    """Put `value` at `keys`; a mapping for a section sets the fields it names and leaves the others."""
    at = at if keys else kind
    _check(at, value, where, kind, keys)
    leaves = list(_leaves(at, value, keys)) if fields_of(at) and isinstance(value, dict) else [(keys, value)]
    for leaf, item in leaves:
        _put(tree, leaf, item)
        origin[leaf] = where


def _leaves(kind: object, tree: Tree, prefix: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """What `tree` sets, field by field, so that the fields of a section it leaves out stay as they are."""
    fields = fields_of(kind) or {}
    for key, value in tree.items():
        if fields_of(fields[key]) and isinstance(value, dict):
            yield from _leaves(fields[key], cast(Tree, value), (*prefix, key))
        elif value is not None or not fields_of(fields[key]):  # an empty section has its lines commented out
            yield (*prefix, key), value


def _build(kind: type[T], tree: Tree, origin: Mapping[Keys, str], typed: Mapping[Keys, str]) -> T:
    try:
        built = TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        # `run.name=123`: YAML reads a number where text is wanted, and text is what was typed.
        again = [
            keys for keys in typed if any(e["type"] == "string_type" and place(kind, e["loc"]) == keys for e in error.errors())
        ]
        if again:
            for keys in again:
                _put(tree, keys, typed[keys])
            return _build(kind, tree, origin, {k: v for k, v in typed.items() if k not in again})
        raise SettingsError(_sentences(kind, error, origin)) from None
    wrong = next(_bent(tree, built, ()), None)
    if wrong is not None:
        keys, value, what = wrong
        raise SettingsError(f"{dotted(keys)}: expected {what}, got {show(value)}{_from(origin, keys)}")
    return built


def _bent(given: Any, built: Any, keys: Keys) -> Iterator[tuple[Keys, object, str]]:
    """Values pydantic takes and we do not: true for a number, text for a number, nan anywhere."""
    if isinstance(given, dict):
        for key, value in cast("dict[Any, Any]", given).items():
            inner = cast("dict[Any, Any]", built)[key] if isinstance(built, dict) else getattr(built, str(key))
            yield from _bent(value, inner, (*keys, key))
    elif isinstance(given, (list, tuple)):
        for i, (value, inner) in enumerate(zip(cast("Sequence[Any]", given), built, strict=True)):
            yield from _bent(value, inner, (*keys, i))
    elif isinstance(given, bool) != isinstance(built, bool) or (isinstance(built, (int, float)) and isinstance(given, str)):
        yield keys, given, {bool: "true or false", int: "a whole number", float: "a number"}[type(built)]
    elif isinstance(given, float) and math.isnan(given):
        yield keys, given, "a number"


_EXPECTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list", "list": "a list",
    "dict": "a mapping", "mapping": "a mapping", "none": "null",
}  # fmt: skip
_BOUND = {
    "greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


def _sentences(kind: object, error: ValidationError, origin: Mapping[Keys, str]) -> str:
    found: dict[Keys, tuple[list[str], str]] = {}
    for entry in error.errors():
        keys = place(kind, entry["loc"])
        wanted, got = _problem(entry, kind, keys)
        found.setdefault(keys, ([], got))[0].append(wanted)
    return "\n".join(_sentence(keys, wanted, got) + _from(origin, keys) for keys, (wanted, got) in found.items())


def _sentence(keys: Keys, wanted: Sequence[str], got: str) -> str:
    rest = " or ".join(dict.fromkeys(wanted)).replace(" or expected ", " or ")
    return f"{dotted(keys)}{'' if rest.startswith(('is ', 'must ')) else ':'} {rest}{got}"


def _problem(entry: Any, kind: object, keys: Keys) -> tuple[str, str]:
    """What was wanted and what came, for one of pydantic's errors."""
    name, context = str(entry["type"]), entry.get("ctx", {})
    got = f", got {show(entry['input'])}"
    if name in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "is missing", ""
    if name in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown setting: {unknown(kind, dotted(keys), '')}".partition(": ")[2], ""
    if name in _BOUND:
        field, words = _BOUND[name]
        return f"must be {words} {_number(context[field])}", got
    if name == "literal_error":
        return f"expected {context['expected']}", got
    if name in ("too_long", "too_short"):
        count = context.get("max_length", context.get("min_length"))
        return f"expected {count} values", got
    if name in ("value_error", "assertion_error"):
        return str(context.get("error", entry["msg"])), got
    if name == "dataclass_type":
        return f"expected a mapping of {', '.join(fields_of(kind_at(kind, keys)) or ())}", got
    expected = _EXPECTED.get(name.partition("_")[0])
    return (f"expected {expected}" if expected else str(entry["msg"])), got


def _from(origin: Mapping[Keys, str], keys: Keys) -> str:
    for n in range(len(keys), 0, -1):
        if keys[:n] in origin:
            return f" ({origin[keys[:n]]})"
    return ""


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def changes(old: object, new: object) -> list[str]:
    """What differs between two recipes, a line a field: "method.name: gspo -> cispo"; but for where and how long it runs."""
    found = dict(_values(_plain(old)))
    now = dict(_values(_plain(new)))
    quiet = ("run.folder", "run.iterations", "run.minutes", "run.keep", "run.save_every", "run.device")
    names = [name for name in {**found, **now} if found.get(name) != now.get(name) and name not in quiet]
    return [f"{name}: {found.get(name, 'not set')} -> {now.get(name, 'not set')}" for name in names]


def _values(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted path."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        yield path, tree
        return
    for key, value in items:
        yield from _values(value, f"{path}.{key}" if path else str(key))
