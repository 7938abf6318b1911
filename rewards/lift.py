"""Any function of images as a reward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Compares, NotAScore, Samples, Scores, State, WithGraph, waits
from .forms import Call, Detailed, Form, Groupwise, detailed
from .videos import chosen

Function = Callable[[np.ndarray, list[str], list[dict[str, Any]]], Any]
"""f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> N floats, prompt-major; NaN or None where it could not score."""


class RewardError(RuntimeError):
    """A reward's own code raised; the cause is chained."""


@dataclass(frozen=True)
class Lifted:
    """A function, plain or of another form (`forms`), as a Reward. It sees the scored leaves only, prompt by prompt, as its own
    copies. frames: of a video it sees so many, see `calling`; None: all.

    State: {"scored": n, "failed": n}, counts over the run. NaN and None count as failed and warn the first time.

    Raises: RewardError if the function raises; TypeError if its result is not numbers; ValueError if their count is wrong or one
    is infinite.
    """

    name: str
    function: Function | Form
    frames: int | None = None

    @property
    def relative(self) -> bool:
        return isinstance(self.function, Groupwise)

    @property
    def compares(self) -> bool:
        """Whether its function is groupwise, or says so of itself (`base.Compares`)."""
        return self.relative or (isinstance(self.function, Compares) and self.function.compares)

    @property
    def waits(self) -> bool:
        """Whether its function says so of itself (`base.Waits`)."""
        return waits(self.function)

    def init(self) -> State:
        return {"scored": 0, "failed": 0}

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        scored = samples.scored.cpu()
        count = int(scored.sum())
        told = detailed(self._call(samples, scored)) if count else Detailed([])
        values = self._spread(told.values, scored, count)
        parts = {name: self._spread(some, scored, count) for name, some in told.parts.items()}
        valid = scored & ~values.isnan()
        failed = count - int(valid.sum())
        if failed and not state["failed"]:
            warnings.warn(
                f"reward {self.name!r} could not score {failed} of {count} images (it returned NaN or None); "
                "they are left out, and further ones are counted without a warning",
                stacklevel=2,
            )
        return Scores(values, valid, parts), {"scored": state["scored"] + count, "failed": state["failed"] + failed}

    def _spread(self, result: Any, scored: Tensor, count: int) -> Tensor:
        """Numbers of the scored leaves at their places in [P, L]."""
        values = torch.full(scored.shape, math.nan, dtype=torch.float32)
        values[scored] = self._numbers(result, count)
        return values

    def _call(self, samples: Samples, scored: Tensor) -> Any:
        call = calling(samples, scored, self.frames)
        try:
            if isinstance(self.function, Form):
                return self.function.on(call)
            return self.function(call.images, call.prompts, call.metadata)
        except Exception as error:
            count = len(call.prompts)
            raise RewardError(f"reward {self.name!r} failed on {count} images: {type(error).__name__}: {error}") from error

    def _numbers(self, result: Any, count: int) -> Tensor:
        numbers = _floats(self.name, result)
        if len(numbers) != count:
            raise ValueError(f"reward {self.name!r} returned {len(numbers)} scores for {count} images; return one number an image")
        values = torch.tensor(numbers, dtype=torch.float64).to(torch.float32)
        infinite = [int(index) for index in values.isinf().nonzero()]
        if infinite:
            raise ValueError(
                f"reward {self.name!r} returned {numbers[infinite[0]]} for image {infinite[0]} of {count}, "
                "which is infinite in float32; return a finite number, or NaN where it could not score"
            )
        return values


def calling(samples: Samples, scored: Tensor, frames: int | None = None) -> Call:
    """What a function is told of the scored leaves, as its own copies. frames: of a video so many are shown, evenly spread from the
    first to the last (`videos.chosen`), and metadata's "fps" is their rate."""
    # one row of the mask is one prompt, so row-major order is prompt-major
    owner, leaf = scored.nonzero().T.tolist()
    pixels, metadata = samples.pixels, [dict(samples.metadata[p]) for p in owner]
    if frames is not None and pixels.ndim == 6 and pixels.shape[2] > frames:
        metadata = [slower(told, pixels.shape[2], frames) for told in metadata]
        pixels = pixels[:, :, chosen(pixels.shape[2], frames)]
    images = pixels[scored.to(pixels.device)].cpu().numpy()
    rival = samples.rival.cpu()[leaf].numpy()
    given = samples.references
    return Call(
        images,
        [samples.prompts[p] for p in owner],
        metadata,
        [[] if given is None else [np.asarray(one) for one in given[p]] for p in owner],
        np.unique(np.stack([owner, rival], 1), axis=0, return_inverse=True)[1].reshape(-1),
    )


def slower(metadata: Mapping[str, Any], total: int, shown: int) -> dict[str, Any]:
    """Metadata of a video of `total` frames of which `shown` are seen: "fps" is theirs."""
    fps = metadata.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or shown < 2:
        return dict(metadata)
    return {**metadata, "fps": fps * (shown - 1) / (total - 1)}


@dataclass(frozen=True)
class LiftedWithGraph:
    """A function that knows its gradient, as a DifferentiableReward. scores: the function lifted;  function: its own."""

    scores: Lifted
    function: WithGraph

    @property
    def name(self) -> str:
        return self.scores.name

    def init(self) -> State:
        return self.scores.init()

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]:
        return self.scores(samples, state)

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Of a video the frames the scores are taken of.

        Raises: RewardError if the function raises; TypeError or ValueError if its result is not a tensor [N].
        """
        frames, told = self.scores.frames, [dict(m) for m in metadata]
        if frames is not None and images.ndim == 5 and images.shape[1] > frames:
            told = [slower(m, images.shape[1], frames) for m in told]
            images = images[:, chosen(images.shape[1], frames)]
        try:
            result = self.function.with_graph(images, list(prompts), told)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise RewardError(f"reward {self.name!r} failed on {len(images)} images: {type(error).__name__}: {error}") from error
        if not isinstance(result, Tensor):
            raise NotAScore(f"reward {self.name!r} returned {_short(result)}; return a tensor of {len(images)} scores with a graph")
        if result.shape != (len(images),):
            shape = list(result.shape)
            raise ValueError(f"reward {self.name!r} returned scores of shape {shape} for {len(images)} images; return shape [N]")
        return result


@dataclass(frozen=True)
class Differentiable:
    """A torch function of float images, scoring uint8 images like any other; see `differentiable`."""

    function: Callable[[Tensor, list[str], list[dict[str, Any]]], Tensor]

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.function(images, list(prompts), [dict(m) for m in metadata])

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.function(torch.from_numpy(images).float() / 255, prompts, metadata)


def differentiable(function: Callable[[Tensor, list[str], list[dict[str, Any]]], Tensor]) -> Differentiable:
    """Marks f(images float [N, (T,) H, W, 3] in [0, 1], prompts, metadata) -> tensor [N] as one whose gradient may be trained on.

    What it returns is a reward function of uint8 images as well, so methods that only need scores take it too.
    """
    return Differentiable(function)


def _floats(name: str, result: Any) -> list[float]:
    return [_float(name, index, value) for index, value in enumerate(_list(name, result))]


def _list(name: str, result: Any) -> list[Any]:
    if isinstance(result, Tensor):
        # numpy has no bfloat16
        result = result.detach().cpu().to(torch.float64).numpy()
    if isinstance(result, list | tuple):
        values: list[Any] = list(result)  # pyright: ignore[reportUnknownArgumentType]
        if len(values) == 2 and isinstance(values[1], dict):
            raise NotAScore(f"reward {name!r} returned a pair (scores, dict); return the scores alone")
        return values
    array = np.asarray(result)
    if array.ndim == 0 or array.dtype.kind not in "biufO":
        raise NotAScore(f"reward {name!r} returned {_short(result)}; return a list, an array or a tensor of N numbers")
    if array.ndim != 1:
        raise ValueError(f"reward {name!r} returned an array of shape {list(array.shape)}; return shape [N], a number an image")
    return array.tolist()


def _float(name: str, index: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is not a number, even if it looks like one")
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise NotAScore(
            f"reward {name!r} returned {_short(value)} for image {index}; return a number, or NaN or None if it could not score"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
