"""A pipeline's conventions, read off one run of it: which argument is the state, which the time, and what the answer means."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from flowrl.models.guidance import Combine, linear, rescaled, token_norm, zero_based

from .listen import Call, Heard, Step, leaves

CLOSE = 1e-4
"""Largest relative difference at which two tensors of the run count as the same: float32 rounding of a combination."""
COMBINES: Mapping[str, Combine] = {
    "linear": linear,
    "zero-based": zero_based,
    "linear, rescaled per token": token_norm,
    "linear, rescaled": rescaled(1.0),
}


class Unknown(ValueError):
    """A convention that is not understood."""


@dataclass(frozen=True)
class Line:
    """An argument that is factor * x + offset, rounded where it is an integer; shape: its own, without the batch. x is the
    guidance, or the clock: sigma on a flow, and the trained time of a variance-preserving diffusion.

    divisor: it is rounded before it is divided by this, and once more after it.
    """

    factor: float
    offset: float
    dtype: torch.dtype
    shape: tuple[int, ...]
    divisor: float = 1.0

    def at(self, x: Tensor) -> Tensor:
        """x [N] -> the argument [N, ...]."""
        told = self.divisor * (self.factor * x + self.offset)
        told = (told if self.dtype.is_floating_point else told.round()).to(self.dtype)
        told = told if self.divisor == 1 else told / self.divisor
        return told.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


@dataclass(frozen=True)
class Convention:
    """state: the argument that holds the state, with dimensions of 1 inserted at `inserted`; constant channels may follow it.
    times: what follows the clock, by path; told: what follows the guidance.
    rows: what differs by prompt, with the dimension along which it does; template: the whole call, as it was made for one row.
    answered: the dims of an answer; sign: of it; channels: how many of its first ones are the prediction, None for all.
    combine, joined, first: how two predictions became one, whether they came from one call, and whether the negative is the first.
    """

    state: str
    inserted: tuple[int, ...]
    times: Mapping[str, Line]
    told: Mapping[str, Line]
    rows: Mapping[str, int]
    template: Mapping[str, Any]
    answered: tuple[int, ...]
    sign: int
    channels: int | None
    combine: str | None
    joined: bool
    first: bool


def near(a: Tensor, b: Tensor) -> bool:
    """Whether they are the same in the coarser of their precisions: what a pipeline casts is itself, rounded."""
    return apart(a, b) <= CLOSE


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in the coarser of their precisions, relative to the largest value of b."""
    if a.shape != b.shape:
        return math.inf
    coarser = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    a, b = a.to(coarser).float(), b.to(coarser).float()
    gap = float((a - b).abs().max()) / max(1e-6, float(b.abs().max()))
    return math.inf if math.isnan(gap) else gap


def coarse(dtype: torch.dtype) -> bool:
    """Whether it rounds more than what is the same may differ."""
    return dtype.is_floating_point and torch.finfo(dtype).eps > CLOSE


def state_of(step: Step, call: Call) -> tuple[str, tuple[int, ...], int]:
    """(path, inserted dimensions, copies along the batch) of the argument that is the state.

    Raises: Unknown where no argument is.
    """
    for path, value in leaves(call.given):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        for copies in (1, 2):
            x = torch.cat([step.x] * copies)
            for inserted in ((), *((d,) for d in range(1, x.ndim + 1))):
                wide = x
                for d in inserted:
                    wide = wide.unsqueeze(d)
                if near(value, wide) or (not inserted and _leads(value, x)):
                    return path, inserted, copies
    raise Unknown("no argument of the network is the state that the scheduler is given (scaled, joined with others, or a list?)")


def _leads(value: Tensor, x: Tensor) -> bool:
    """Whether the state is followed by channels that are the same in every row, so that no prompt is in them."""
    rest = value[:, x.shape[1] :] if value.ndim == x.ndim else value
    return value.ndim == x.ndim and near(value[:, : x.shape[1]], x) and bool((rest == rest[:1]).all())


def times_of(steps: Sequence[Step], clock: Tensor, state: str) -> dict[str, Line]:
    """Arguments that change from step to step, as lines in the clock [steps].

    Raises: Unknown for one that changes otherwise, or where none does.
    """
    found: dict[str, Line] = {}
    every = [dict(leaves(step.calls[0].given)) for step in steps]
    for path, value in every[0].items():
        if path == state or not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            continue
        told = [torch.as_tensor(given[path]) for given in every]
        if all(t.shape == told[0].shape and torch.equal(t, told[0]) for t in told):
            continue
        if any(t.shape != told[0].shape or t.numel() == 0 or bool((t != t.flatten()[0]).any()) for t in told):
            raise Unknown(f"the argument {path!r} changes from step to step, and is not one number a step")
        y = torch.stack([t.flatten()[0].double() for t in told])
        x = clock[: len(steps)].double()
        line = _line(x, y, told[0])
        if line is None:
            raise Unknown(f"the argument {path!r} is no line in the level: {y.tolist()} at {x.tolist()}")
        found[path] = line
    if not found:
        raise Unknown("no argument of the network changes with the level, so it is not told the time")
    return found


def _line(x: Tensor, y: Tensor, seen: Tensor) -> Line | None:
    """The line in x that y is, of round numbers; None where it is none.  seen: the argument."""
    factor = float((y[0] - y[-1]) / (x[0] - x[-1]))
    offset = float(y[0] - factor * x[0])
    if coarse(seen.dtype):
        round_ = _roundest(x, y, factor, offset, torch.finfo(seen.dtype).eps)
        return round_ and Line(*round_, seen.dtype, tuple(seen.shape[1:]))
    slack = 0.5 if not seen.is_floating_point() else 1e-3 * abs(factor)
    if float((factor * x + offset - y).abs().max()) > slack:
        return None
    rounded = round(factor) if abs(factor) > 10 else round(factor, 3)
    return Line(float(rounded), float(round(offset, 3)), seen.dtype, tuple(seen.shape[1:]))


def _roundest(x: Tensor, y: Tensor, factor: float, offset: float, eps: float) -> tuple[float, float] | None:
    """(factor, offset) of the fewest digits that are y up to its rounding.

    In bfloat16 1000 sigma is 2 off, and so is any factor that is read off it.
    """
    if not factor:
        return None
    first = math.floor(math.log10(abs(factor)))
    for digits in range(4):
        rounded, shifted = round(factor, digits - first), round(offset, digits - first)
        if rounded and float((rounded * x + shifted - y).abs().max()) <= eps * float(y.abs().max()):
            return float(rounded), float(shifted)
    return None


def divided(times: Mapping[str, Line], steps: Sequence[Step], clock: Tensor, trained: float) -> dict[str, Line]:
    """Times in half precision, by the divisor that most steps [many] show: some pipelines round a time in thousands and divide it
    then. Networks multiply it again, so that a rounding moves what they see by a whole radian."""

    def missed(path: str, line: Line) -> int:
        told = [torch.as_tensor(dict(leaves(step.calls[0].given))[path]).flatten()[0] for step in steps]
        return int((line.at(clock.double().cpu()).reshape(len(steps), -1)[:, 0] != torch.stack(told).cpu()).sum())

    found = dict(times)
    for path, line in times.items():
        if coarse(line.dtype):
            found[path] = min((line, replace(line, divisor=trained)), key=lambda line, path=path: missed(path, line))
    return found


def told_of(guided: Call, plain: Call, scale: float) -> dict[str, Line]:
    """Arguments by which the network is told the guidance: those of a call at `scale` that differ from a call at 0.

    Raises: Unknown for one that is not a number a row.
    """
    found: dict[str, Line] = {}
    before = dict(leaves(plain.given))
    for path, value in leaves(guided.given):
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            continue
        if path not in before:
            raise Unknown(f"the argument {path!r} is there with guidance only")
        there, here = torch.as_tensor(value), torch.as_tensor(before[path])
        if there.shape == here.shape and torch.equal(there, here):
            continue
        if there.shape != here.shape or bool((there != there.flatten()[0]).any()) or bool((here != here.flatten()[0]).any()):
            raise Unknown(f"the argument {path!r} changes with the guidance, and is not one number a row")
        ends = torch.tensor([float(here.flatten()[0]), float(there.flatten()[0])], dtype=torch.float64)
        line = _line(torch.tensor([0.0, scale], dtype=torch.float64), ends, there)
        if line is None:
            raise Unknown(f"the argument {path!r} changes with the guidance, and is no multiple of it: {ends.tolist()}")
        found[path] = line
    return found


def same_answer(answer: Tensor, output: Tensor) -> tuple[int, int | None] | None:
    """(sign, channels) by which an answer is what the scheduler is given; None where it is not."""
    for channels in (None, output.shape[1]):
        part = answer if channels is None else answer[:, :channels]
        for sign in (1, -1):
            squeezed = part if part.ndim == output.ndim else part.reshape(output.shape) if part.numel() == output.numel() else part
            if near(sign * squeezed, output):
                return sign, channels
    return None


def combined(steps: Sequence[Step], scale: float, copies: int) -> tuple[str, int, int | None, bool]:
    """(combination, sign, channels, negative first) by which two answers became what the scheduler is given.

    In half precision it is the one that comes nearest, since the pipeline's own rounding is in between.

    Raises: Unknown where no known combination does at every step, or several do as well as each other.
    """
    output, answer = steps[0].output, _answer(steps[0])
    half = coarse(answer.dtype)
    limit = 4 * torch.finfo(answer.dtype).eps if half else CLOSE
    found: dict[tuple[str, int, int | None, bool], float] = {}
    for meaning in product(COMBINES, (1, -1), (None, output.shape[1]), (True, False)):
        name, sign, channels, first = meaning
        if channels is not None and answer.shape[1] == channels:
            continue  # all of them
        gap = max(_gap(step, COMBINES[name], sign, first, channels, scale, copies) for step in steps)
        if gap <= limit:
            found[meaning] = gap
            if not half:
                return meaning
    if not found:
        raise Unknown(f"how two predictions are combined at guidance {scale:g} is none of: {', '.join(COMBINES)}")
    best, *others = sorted(found, key=lambda meaning: found[meaning])
    if others and found[others[0]] <= 2 * found[best]:
        said = f"{best[0]!r} and {others[0][0]!r}" if best[0] != others[0][0] else f"two forms of {best[0]!r}"
        raise Unknown(
            f"in {str(answer.dtype)[6:]} two predictions are too near each other to tell {said} at guidance {scale:g} apart "
            "(policy.dtype float32 tells more)"
        )
    return best


def _gap(step: Step, combine: Combine, sign: int, first: bool, channels: int | None, scale: float, copies: int) -> float:
    """Between what the scheduler is given and a combination, taken in float32 or in the precision of the answers."""
    answers = [call.answer for call in step.calls if call.answer is not None]
    a, b = answers[0].chunk(2) if copies == 2 else answers[:2]
    if channels is not None and a.shape != step.output.shape:
        a, b = a[:, :channels], b[:, :channels]
    if a.shape != step.output.shape:
        return math.inf
    negative, positive = (a, b) if first else (b, a)

    def gap(dtype: torch.dtype) -> float:
        level = torch.zeros(len(step.x), dtype=dtype)
        return apart(sign * combine(positive.to(dtype), negative.to(dtype), scale, step.x.to(dtype), level), step.output)

    return min(gap(dtype) for dtype in {torch.float32, a.dtype})


def rows_of(one: Call, two: Call, known: Collection[str]) -> dict[str, int]:
    """What holds a row a prompt, and the dimension along which: 1 in a call for one prompt, 2 in one for two.  known: left out.

    Raises: Unknown for an argument that changes its shape otherwise.
    """
    found: dict[str, int] = {}
    both = dict(leaves(two.given))
    for path, value in leaves(one.given):
        if path in known or not isinstance(value, Tensor):
            continue
        other = both.get(path)
        if not isinstance(other, Tensor):
            raise Unknown(f"the argument {path!r} is there for one prompt and not for two")
        differ = [d for d in range(value.ndim) if other.ndim == value.ndim and other.shape[d] != value.shape[d]]
        if len(differ) == 1 and (value.shape[differ[0]], other.shape[differ[0]]) == (1, 2):
            found[path] = differ[0]
        elif other.shape != value.shape:
            raise Unknown(f"the argument {path!r} is {list(value.shape)} for one prompt and {list(other.shape)} for two")
    return found


def learned(guided: Heard, plain: Heard, two: Heard, scale: float, clock: Tensor) -> Convention:
    """From a run with guidance `scale`, one without, and one of two prompts. clock: of each step.

    Raises: Unknown, with what is not understood.
    """
    steps = plain.steps
    if len(steps) < 2 or any(len(step.calls) != 1 for step in steps):
        counts = [len(step.calls) for step in steps]
        raise Unknown(f"without guidance the network is called {counts} times a step, where once is understood")
    call = steps[0].calls[0]
    state, inserted, copies = state_of(steps[0], call)
    if copies != 1:
        raise Unknown("without guidance the network is still given the state twice")
    times = times_of(steps, clock, state)
    answer = _answer(steps[0])
    meaning = same_answer(answer, steps[0].output)
    if meaning is None:
        raise Unknown("what the scheduler is given is not the network's answer, nor its negative, nor a part of it")
    told, two_as_one = _guided(guided, call, scale, meaning)
    rows = rows_of(call, two.steps[0].calls[0], {state, *times, *told})
    return Convention(
        state, inserted, times, told, rows, call.given, tuple(answer.shape[1:]), *meaning, *(two_as_one or (None, False, True))
    )


def _guided(
    heard: Heard, plain: Call, scale: float, meaning: tuple[int, int | None]
) -> tuple[dict[str, Line], tuple[str, bool, bool] | None]:
    """(what the network is told of the guidance, (combination, joined, negative first) or None where there is only one prediction).

    Raises: Unknown for anything else.
    """
    counts = {len(step.calls) for step in heard.steps}
    _, _, copies = state_of(heard.steps[0], heard.steps[0].calls[0])
    if counts == {1} and copies == 1:
        return told_of(heard.steps[0].calls[0], plain, scale), None
    if counts not in ({1}, {2}) or copies != 3 - max(counts):
        often = " or ".join(str(n) for n in sorted(counts))
        raise Unknown(f"with guidance the network is called {often} times a step on {copies} copies of the state")
    combine, *means, first = combined(heard.steps, scale, copies)
    if tuple(means) != meaning:
        raise Unknown("the answer means one thing with guidance and another without it")
    return {}, (combine, copies == 2, first)


def _answer(step: Step) -> Tensor:
    answer = step.calls[0].answer
    if answer is None:
        raise Unknown("the network's answer was not seen")
    return answer
