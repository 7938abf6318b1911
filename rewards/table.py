"""The names of rewards, and how a name becomes a reward."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .base import Reward, WithGraph
from .lift import Differentiable, Lifted, LiftedWithGraph

HERE = __name__.rpartition(".")[0]


class Row(NamedTuple):
    """target "module:function". variants "": the function is the reward itself; else it is called with the variant
    (nothing if none is given), and with device= if `device`, and returns the reward."""

    target: str
    about: str
    variants: str = ""
    device: bool = False


TABLE: dict[str, Row] = {
    "shapes": Row("flowrl.shapes.reward:shapes", "exact verifier of the embedded shapes world", "soft (default) or strict"),
    "clip": Row(
        f"{HERE}.clip:clip",
        "cosine of image and prompt under a CLIP model; default: the embedded tiny one",
        "MODEL/PRETRAINED, hf-hub:OWNER/NAME or local-dir:FOLDER",
        device=True,
    ),
    "jpeg_compressibility": Row(f"{HERE}.jpeg:jpeg_compressibility", "minus the size of the JPEG file in kB (DDPO)"),
    "jpeg_incompressibility": Row(f"{HERE}.jpeg:jpeg_incompressibility", "size of the JPEG file in kB (DDPO)"),
}

_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[^:/\\]+)")
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


def parse(text: str) -> tuple[str, float]:
    """Read "NAME[:variant][=weight]", "module:name[=weight]" or "file.py:function[=weight]" as (what `make` takes, weight).

    The weight is what follows the last "=", finite and not 0, negative to be minimised; 1 if there is none.

    Raises: ValueError for a bad weight or an unknown name; FileNotFoundError for a missing file.
    """
    name, equals, number = text.strip().rpartition("=")
    if not equals or ":" in number or "/" in number:  # an "=" inside a path or a variant
        name, number = text.strip(), "1"
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(
            f"the weight of reward {text!r} is {number!r}, not a number; write NAME=0.5, or NAME for weight 1"
        ) from None
    if not math.isfinite(weight):
        raise ValueError(f"the weight of reward {text!r} is {weight}; give a finite number")
    if weight == 0:
        raise ValueError(f"the weight of reward {text!r} is 0, so it would change nothing; leave the reward out or give a weight")
    _check(name)
    return name, weight


def make(spec: str | Callable[..., Any] | Reward, name: str | None = None, device: str = "cpu") -> Reward:
    """The reward a spec names, loaded and ready. Its `name` is the spec as written (a function's __name__), or `name`.

    spec: a name of TABLE with an optional ":variant"; "module:name" or "file.py:function"; a function
    f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> N floats, prompt-major; one marked by `differentiable`; or a Reward.
    device: where rewards with a network of their own put it.

    Raises: ValueError for an unknown name, module or function; FileNotFoundError for a missing file; TypeError if not callable.
    """
    if not isinstance(spec, str):
        return _lift(spec, name or _called(spec))
    name = name or spec
    _check(spec)
    head, _, variant = spec.partition(":")
    if head not in TABLE:
        return _lift(_load(spec), name)
    row = TABLE[head]
    if variant and not row.variants:
        raise ValueError(f"reward {head!r} has no variants, but {spec!r} asks for {variant!r}; write {head!r}")
    target = _load(row.target)
    if not row.variants:
        return _lift(target, name)
    where = {"device": device} if row.device else {}
    return _lift(target(variant, **where) if variant else target(**where), name)


def _lift(value: Any, name: str) -> Reward:
    if isinstance(value, type):
        raise TypeError(f"reward {name!r} is a class; give an instance of it, or a function of (images, prompts, metadata)")
    if isinstance(value, Reward):
        return value
    if not callable(value):
        what = type(value).__name__
        raise TypeError(f"reward {name!r} is a {what}, which cannot be called; give a function of (images, prompts, metadata)")
    scores = Lifted(name, value)
    return LiftedWithGraph(scores, value) if isinstance(value, WithGraph) else scores


def _called(value: Any) -> str:
    value = value.function if isinstance(value, Differentiable) else value
    return str(getattr(value, "__name__", type(value).__name__))


def _check(spec: str) -> None:
    """Refuse what cannot be a reward, without importing anything."""
    head = spec.partition(":")[0]
    if head in TABLE:
        if spec == f"{head}:":
            raise ValueError(f"reward {spec!r} ends in ':' but names no variant; write {head!r}")
        return
    if match := _FILE.fullmatch(spec):
        if not Path(match["file"]).is_file():
            raise FileNotFoundError(f"reward {spec!r}: there is no file {match['file']!r} (looked in {Path.cwd()})")
        return
    if spec.endswith(".py"):
        raise ValueError(f"reward {spec!r} names a file but no function in it; write {spec}:FUNCTION")
    if not _MODULE.fullmatch(spec):
        raise ValueError(f"there is no reward {spec!r}; {_nearest(head)} Your own is written module:function or file.py:function")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, TABLE, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? Known are {', '.join(TABLE)}." if near else f"known are {', '.join(TABLE)}."


def _load(spec: str) -> Any:
    where, _, names = spec.rpartition(":")
    value: Any = _execute(Path(where).resolve(), spec) if _FILE.fullmatch(spec) else _import(where, spec)
    for name in names.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            public = [known for known in dir(value) if not known.startswith("_")]
            near = difflib.get_close_matches(name, public, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(public[:20]) or 'no public names'}"
            raise ValueError(f"reward {spec!r}: {where} has no {name!r}; {hint}") from None
    return value


def _import(module: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # a missing package that the module itself imports is the module's error, not a misspelt name
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise ValueError(
            f"reward {spec!r}: there is no module {error.name!r}; {_nearest(spec.partition(':')[0])} "
            "A module of yours must be on PYTHONPATH; a file is written file.py:function"
        ) from error


def _execute(path: Path, spec: str) -> ModuleType:
    # named by its path, so two files called reward.py live side by side
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ValueError(f"reward {spec!r}: {path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    sys.path.append(str(path.parent))  # its neighbours can be imported while it loads; last, so it shadows nothing
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
