"""How a name becomes a reward."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from .base import NotAScore, Reward, WithGraph
from .cache import cached
from .forms import Form, Framewise, Groupwise, Referenced, framewise
from .lift import Differentiable, Lifted, LiftedWithGraph
from .load import FILE, MODULE, load, present
from .place import FRAMES, Place
from .remote.address import open_only
from .row import Row
from .table import TABLE

FIELD = re.compile(r",\s*(?![^,]*\.py:)(\w+)=([^,]*)")
"""What a training run may say of a reward behind its name and weight: ",gate=0.5"."""


def parse(text: str) -> tuple[str, float]:
    """Read "NAME[:variant][=weight]", "module:name[=weight]" or "file.py:function[=weight]" as (what `make` takes, weight).

    The weight is what follows the last "=", finite, negative to be minimised; 1 if there is none. With 0 the reward is scored and
    logged, and may guard the others (a gate), without being trained for.

    Raises: ValueError for a bad weight, a field behind it, an unknown name or credentials in an address; FileNotFoundError for a
    missing file.
    """
    open_only(text)
    if field := FIELD.search(text):
        raise ValueError(
            f"reward {text!r} gives {field[1]}, which only a reward to train for has (flowrl train --reward); leave it out"
        )
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
    _check(name)
    return name, weight


def make(spec: str | Callable[..., Any] | Reward, name: str | None = None, place: Place | str = "cpu") -> Reward:
    """The reward a spec names, loaded and ready. Its `name` is `name`; else what it calls itself (`geneval` names its detector),
    the spec as written, or a function's __name__.

    spec: a name of TABLE with an optional ":variant"; "module:name" or "file.py:function"; a function
    f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> N floats, prompt-major; one marked by `differentiable`, `groupwise`,
    `framewise` or `referenced`; or a Reward.
    place: where rewards with a network of their own put it, and how they call it; and how many frames of a video any but a Reward
    is shown; a device alone will do.

    Raises: ValueError for an unknown name, module or function, or credentials in an address; FileNotFoundError for a missing file;
    TypeError if not callable.
    """
    place = Place(place) if isinstance(place, str) else place
    if not isinstance(spec, str):
        return _lift(spec, name or _called(spec), place.frames)
    open_only(spec)
    _check(spec)
    head, _, variant = spec.partition(":")
    if head not in TABLE:
        return _lift(load(spec, "reward", f"{_nearest(spec.partition(':')[0])} "), name or spec, place.frames)
    row = TABLE[head]
    if variant and not row.variants:
        raise ValueError(f"reward {head!r} has no variants, but {spec!r} asks for {variant!r}; write {head!r}")
    target = load(row.target, "reward")
    if row.variants or row.placed:
        where = {"place": place} if row.placed else {}
        target = target(variant, **where) if variant else target(**where)
    called, frames = name or str(getattr(target, "name", spec)), place.frames or (None if row.whole else FRAMES)
    return _lift(framewise(target) if row.single else target, called, frames, row.pure)


def _lift(value: Any, name: str, frames: int | None, pure: bool = False) -> Reward:
    if isinstance(value, type):
        raise NotAScore(f"reward {name!r} is a class; give an instance of it, or a function of (images, prompts, metadata)")
    if isinstance(value, Reward):
        return value
    if not callable(value) and not isinstance(value, Form):
        what = type(value).__name__
        raise NotAScore(f"reward {name!r} is a {what}, which cannot be called; give a function of (images, prompts, metadata)")
    frames = FRAMES if frames is None and isinstance(value, Framewise) else frames
    scores = Lifted(name, cached(value) if pure and not isinstance(value, Form) else value, frames)
    return LiftedWithGraph(scores, value) if isinstance(value, WithGraph) else scores


def _called(value: Any) -> str:
    value = value.function if isinstance(value, Differentiable | Framewise | Groupwise | Referenced) else value
    return str(getattr(value, "__name__", type(value).__name__))


def known(name: str) -> Row:
    """The row of a name of TABLE.

    Raises: ValueError with the nearest names.
    """
    if name not in TABLE:
        raise ValueError(f"there is no reward {name!r}; {_nearest(name.partition(':')[0])}")
    return TABLE[name]


def _check(spec: str) -> None:
    """Refuse what cannot be a reward, without importing anything."""
    head = spec.partition(":")[0]
    if head in TABLE:
        if spec == f"{head}:":
            raise ValueError(f"reward {spec!r} ends in ':' but names no variant; write {head!r}")
        return
    if FILE.fullmatch(spec):
        present(spec, "reward")
        return
    if spec.endswith(".py"):
        raise ValueError(f"reward {spec!r} names a file but no function in it; write {spec}:FUNCTION")
    if not MODULE.fullmatch(spec):
        raise ValueError(f"there is no reward {spec!r}; {_nearest(head)} Your own is written module:function or file.py:function")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, TABLE, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? Known are {', '.join(TABLE)}." if near else f"known are {', '.join(TABLE)}."
