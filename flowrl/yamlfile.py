"""YAML by the 1.2 core rules: 3e-4 is a number; no, on and 16:9 are text; a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

__all__ = ["SettingsError", "read", "scalar", "show", "text"]


class SettingsError(ValueError):
    """A setting that cannot be used; the message is a sentence for whoever wrote it."""


_CORE = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    # Keeps the 1.1 rules beside ours, so that text which either reader would take for something else is quoted.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {c: [*rows] for c, rows in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: object) -> bool:
        return True


def _pairs(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _int(loader: yaml.SafeLoader, node: Any) -> int:
    return int(loader.construct_scalar(node))  # PyYAML takes 010 for an octal 8


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    # other plain and quoted styles fold these line ends into spaces
    style = '"' if any(c in data for c in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style)


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


for _tag, _pattern, _first in _CORE:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:map", _pairs)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("!tuple", _tuple)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_sequence("!tuple", data, flow_style=True))


def read(path: str | Path) -> dict[str, Any]:
    """The mapping a file holds; an empty file is an empty one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise SettingsError(f"{path} cannot be read: {reason}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML{_where(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected fields and values such as `optim: {{lr: 3e-4}}`, got {show(tree)}")
    return cast("dict[str, Any]", tree)


def scalar(text: str, where: str) -> Any:
    """One value as typed on a command line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where}: {text!r} is not a YAML value{_where(error)}; quote it if it is text") from None


def _where(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    mark = getattr(error, "problem_mark", None)
    return f": {problem}" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1}): {problem}"


def text(tree: object) -> str:
    """`tree` as a file that `read` gives back equal; text that any YAML reader would take for something else is quoted."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def show(value: object) -> str:
    """A value as a sentence quotes it."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if not isinstance(value, (int, float, str, list, tuple, dict)):
        return f"a {type(value).__name__}"
    written = repr(value)
    return written if len(written) <= 60 else written[:57] + "..."
