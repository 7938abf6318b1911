"""A pipeline without its network: what it does before and after the network is asked, at no cost."""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from flowrl.said import first_line

from .infer import Convention, Unknown, near
from .listen import Heard, leaves, patched
from .running import Runner

PROBES = ("a red circle", "two blue squares left of a green circle")
FEW = 2
"""Least steps that every pipeline takes: Mochi's schedule divides by half of them."""
FAR = 17
"""Frames further that are tried: no autoencoder here makes more than 16 of one."""


class Idle:
    """A pipeline that is run without encoding texts anew, and whose network answers with zeros."""

    def __init__(self, runner: Runner, convention: Convention) -> None:
        self.runner, self.pipe, self.convention = runner, runner.pipe, convention
        self._kept: Any = None

    def on(self, texts: bool = True) -> ExitStack:
        """Inside, the network answers at once; texts: and no text is encoded."""
        stack, network, how = ExitStack(), self.runner.network, self.convention

        def zeros(*args: Any, **kwargs: Any) -> Any:
            state = dict(leaves(kwargs)).get(how.state, args[0] if args else None)
            answer = state.new_zeros(len(state), *how.answered)
            return (answer,) if how.template.get("return_dict") is False else _Answer(answer)

        zeros.__signature__ = inspect.signature(network.forward)  # pyright: ignore[reportFunctionMemberAccess]
        stack.enter_context(patched(network, "forward", zeros))
        if texts and hasattr(self.pipe, "encode_prompt"):
            kept = self._texts()
            stack.enter_context(patched(self.pipe, "encode_prompt", lambda *args, **kwargs: kept))
        return stack

    def _texts(self) -> Any:
        """What encode_prompt returns for the probe."""
        if self._kept is not None:
            return self._kept
        answers: list[Any] = []
        right = self.pipe.encode_prompt

        def note(*args: Any, **kwargs: Any) -> Any:
            answers.append(right(*args, **kwargs))
            return answers[-1]

        with patched(self.pipe, "encode_prompt", note):
            self.runner.run(PROBES[:1], 0.0, FEW, stop=1)
        self._kept = answers[0]
        return self._kept

    def through(self, steps: int) -> Heard:
        """A run of that many steps, left when the last begins."""
        with self.on():
            return self.runner.run(PROBES[:1], 0.0, steps, stop=steps)

    def sigmas(self, steps: int) -> Any:
        """A run of that many steps, left when the first begins."""
        with self.on():
            return self.runner.run(PROBES[:1], 0.0, steps, stop=1)

    def next_frames(self, asked: int, x: Tensor) -> int | None:
        """The next number of frames at which the latents are more than x; None where none is seen."""
        with self.on():
            for frames in range(asked + 1, asked + FAR):
                try:
                    heard = self.runner.run(PROBES[:1], 0.0, FEW, stop=1, num_frames=frames)
                except Exception:  # whatever a pipeline raises of a number that it does not draw
                    continue
                if heard.steps and heard.steps[0].x.numel() > x.numel():
                    return frames
        return None

    def decoded(self, last: Tensor) -> Tensor:
        """What the pipeline makes of last states: its own call, all of whose steps end there."""
        right = self.pipe.scheduler.step

        @functools.wraps(right)
        def step(output: Tensor, time: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (last,)  # not rounded to the dtype of x: the autoencoder may have a finer one

        draw = torch.Generator().manual_seed(0)
        with self.on(), patched(self.pipe.scheduler, "step", step):
            return torch.as_tensor(self.runner.call(PROBES[:1], 0.0, FEW, output_type="pt", generator=draw))

    def grid(self, x: Tensor, height: int, width: int) -> tuple[int, int] | None:
        """Where the pipeline takes its tokens [1, L, C] as a picture [1, C, h, w]: its sides; else None.  height, width: in pixels.

        Raises: Unknown for a pipeline that does not begin with the latents it is given.
        """
        candidates: list[tuple[int, int] | None] = [None]
        if x.ndim == 3:
            high = round((x.shape[1] * height / width) ** 0.5)
            candidates += [(high, x.shape[1] // high)] if high and x.shape[1] % high == 0 else []
        why: Exception | None = None
        for sides in candidates:
            given = x if sides is None else x.mT.unflatten(2, sides)
            try:
                with self.on():
                    heard = self.runner.run(PROBES[:1], 0.0, FEW, stop=1, latents=given.clone())
            except Exception as error:  # whatever a pipeline raises of latents of another shape
                why = error
                continue
            if heard.steps and near(heard.steps[0].x, x):
                return sides
        told = "" if why is None else f" ({first_line(why)})"
        raise Unknown(f"given latents, it does not begin with them{told}") from why


class _Answer(tuple):
    """An answer as a pipeline may read it: by index or as .sample."""

    def __new__(cls, value: Tensor) -> _Answer:
        return super().__new__(cls, (value,))

    @property
    def sample(self) -> Tensor:
        return self[0]
