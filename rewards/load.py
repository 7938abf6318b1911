"""Python values by name: "module:name" or "file.py:name"."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[^:/\\]+)")
MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


def load(spec: str, what: str, hint: str = "") -> Any:
    """The object "module:name" or "file.py:name"; what it is for ("reward", "method") and a hint go into the error.

    Raises: ValueError, FileNotFoundError: a sentence, where there is no such thing, or it is no Python; whatever its module raises.
    """
    if not FILE.fullmatch(spec) and not MODULE.fullmatch(spec):
        raise ValueError(f"{what} {spec!r} cannot be found by that name; yours is written module:function or file.py:function")
    where, _, names = spec.rpartition(":")
    if FILE.fullmatch(spec):
        value: Any = _execute(present(spec, what), spec, what)
    else:
        value = _import(where, spec, what, hint)
    for name in names.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            public = [known for known in dir(value) if not known.startswith("_")]
            near = difflib.get_close_matches(name, public, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(public[:20]) or 'no public names'}"
            raise ValueError(f"{what} {spec!r}: {where} has no {name!r}; {hint}") from None
    return value


def present(spec: str, what: str) -> Path:
    """The file of "file.py:name".

    Raises: FileNotFoundError where there is none.
    """
    file = spec.rpartition(":")[0]
    if not Path(file).is_file():
        raise FileNotFoundError(f"{what} {spec!r}: there is no file {file!r} (looked in {Path.cwd()})")
    return Path(file).resolve()


def _import(module: str, spec: str, what: str, hint: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except SyntaxError as error:
        raise _misspelt(error, spec, what) from None
    except ModuleNotFoundError as error:
        # a missing package that the module itself imports is the module's error, not a misspelt name
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise ValueError(
            f"{what} {spec!r}: there is no module {error.name!r}; {hint}"
            "A module of yours must be on PYTHONPATH; a file is written file.py:function"
        ) from error


def _execute(path: Path, spec: str, what: str) -> ModuleType:
    # named by its path, so two files called reward.py live side by side
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ValueError(f"{what} {spec!r}: {path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    sys.path.append(str(path.parent))  # its neighbours can be imported while it loads; last, so it shadows nothing
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise _misspelt(error, spec, what) from None
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(f"{what} {spec!r}: {error}, which it imports; pip install it", name=error.name) from error
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _misspelt(error: SyntaxError, spec: str, what: str) -> ValueError:
    return ValueError(f"{what} {spec!r} is not valid Python: {error.msg} ({error.filename}, line {error.lineno})")
