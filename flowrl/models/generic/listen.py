"""A pipeline run once while its scheduler and its network are listened to."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from flowrl.models.family import AUTOENCODERS


class Enough(BaseException):
    """Leaves a pipeline from inside; no error, so that no pipeline catches it."""


@dataclass
class Call:
    """One network call: its arguments by name, and the first tensor it returned."""

    given: Mapping[str, Any]
    answer: Tensor | None = None


@dataclass
class Step:
    """One step: the network calls before it, and what the scheduler was given and gave."""

    calls: list[Call]
    output: Tensor
    time: Any
    x: Tensor


@dataclass
class Heard:
    steps: list[Step] = field(default_factory=list[Step])
    calls: list[Call] = field(default_factory=list[Call])
    sigmas: Tensor | None = None
    made: Any = None


def first_tensor(value: Any) -> Tensor:
    """The answer of a network, however it is packed.

    Raises: ValueError where there is no tensor in it.
    """
    while not isinstance(value, Tensor):
        if isinstance(value, Mapping):
            value = next(iter(value.values()))
        elif isinstance(value, list | tuple) and value:
            value = value[0]
        else:
            raise ValueError(f"the network answers with a {type(value).__name__}, in which there is no tensor")
    return value


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name is `value` inside."""
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def decoding(pipe: Any) -> Iterator[None]:
    """Inside, the pipeline's autoencoder decodes in its own precision, whatever that of the latents it is given.

    flowrl keeps it in float32 beside a network in half precision, and most pipelines hand it latents as they have them.
    """
    with ExitStack() as stack:
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name.startswith(AUTOENCODERS) and hasattr(part, "decode"):
                stack.enter_context(patched(part, "decode", _cast_first(part)))
        yield


def _cast_first(coder: Any) -> Callable[..., Any]:
    right = coder.decode

    def cast(value: Any) -> Any:
        return value.to(coder.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    @functools.wraps(right)
    def decode(*args: Any, **kwargs: Any) -> Any:
        return right(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return decode


@contextmanager
def listening(pipe: Any, network: nn.Module, stop: Callable[[Heard], bool] = lambda heard: False) -> Iterator[Heard]:
    """Records calls of `network` and steps of the pipeline's scheduler inside.  stop(heard), asked when a step begins: leave then.

    The tensors of a call are cloned, since pipelines write into their own.
    """
    heard, names = Heard(), list(inspect.signature(network.forward).parameters)
    right = pipe.scheduler.step

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.calls.append(Call(_cloned({**dict(zip(names, args, strict=False)), **kwargs})))

    def after(module: nn.Module, args: Any, answer: Any) -> None:
        heard.calls[-1].answer = first_tensor(answer).detach().clone()

    @functools.wraps(right)
    def step(output: Tensor, time: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.steps.append(Step(heard.calls, output.detach().clone(), time, x.detach().clone()))
        heard.calls = []
        heard.sigmas = getattr(pipe.scheduler, "sigmas", None)
        if stop(heard):
            raise Enough
        return right(output, time, x, *args, **kwargs)

    handles = [network.register_forward_pre_hook(before, with_kwargs=True), network.register_forward_hook(after)]
    try:
        with patched(pipe.scheduler, "step", step):
            yield heard
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _cloned(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cloned(part) for part in value) if type(value) in (list, tuple) else copy.copy(value)
    return value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested lists, tuples and dicts: "added/time_ids", "rotary/0"."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{name}/{key}" if name else str(key))
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            yield from leaves(part, f"{name}/{i}")
    else:
        yield name, value


def filled(value: Any, put: Callable[[str, Any], Any], name: str = "") -> Any:
    """The same nesting with put(path, leaf) in the place of every leaf."""
    if isinstance(value, Mapping):
        return {key: filled(part, put, f"{name}/{key}" if name else str(key)) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(filled(part, put, f"{name}/{i}") for i, part in enumerate(value))
    return put(name, value)
