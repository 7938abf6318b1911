"""What every reward takes and returns. Imports torch and nothing else of flowrl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

State = dict[str, Any]
"""A component's own memory: plain data and tensors, passed in and returned, saved in every checkpoint."""


@dataclass(frozen=True)
class Samples:
    """Decoded leaves of one rollout: P prompts, L leaves each.

    pixels: uint8 [P, L, H, W, 3], or [P, L, T, H, W, 3] for video.
    scored: bool [P, L], True where this process owns the leaf; elsewhere pixels are undefined and the score stays invalid.
    rival: long [L], leaves with equal numbers compete (groupwise rewards stay inside one class).
    references: for each prompt its reference images, uint8 [H, W, 3] each, sizes as they come; None: there are none.

    Raises: ValueError if dtypes or sizes do not fit together.
    """

    pixels: Tensor
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    scored: Tensor
    rival: Tensor
    references: Sequence[Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) not in (5, 6) or shape[-1] != 3:
            raise ValueError(
                f"pixels are {self.pixels.dtype} {list(shape)}; give uint8 [P, L, H, W, 3], or [P, L, T, H, W, 3] for video "
                "(float images in [0, 1]: (x * 255).round().clamp(0, 255).to(torch.uint8), channels last)"
            )
        if self.scored.dtype != torch.bool or tuple(self.scored.shape) != shape[:2]:
            raise ValueError(f"scored is {self.scored.dtype} {list(self.scored.shape)}; give bool [P, L] = {list(shape[:2])}")
        if not len(self.prompts) == len(self.metadata) == shape[0]:
            raise ValueError(
                f"there are pixels for {shape[0]} prompts, but {len(self.prompts)} prompts and {len(self.metadata)} metadata; "
                "give one each"
            )
        if self.references is not None and len(self.references) != shape[0]:
            raise ValueError(
                f"there are references for {len(self.references)} of {shape[0]} prompts; give a list each, empty for none"
            )
        if tuple(self.rival.shape) != shape[1:2]:
            raise ValueError(
                f"rival has shape {list(self.rival.shape)}; give [L] = {list(shape[1:2])}, zeros if all leaves compete"
            )


@dataclass(frozen=True)
class Scores:
    """values float32 [P, L]; valid bool [P, L]. What could not be scored is NaN and invalid, never 0."""

    values: Tensor
    valid: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if self.values.shape != self.valid.shape:
            values, valid = list(self.values.shape), list(self.valid.shape)
            raise ValueError(f"scores have shape {values} but valid has {valid}; both must be [P, L]")
        if not torch.isfinite(self.values[self.valid]).all():
            raise ValueError("a score marked valid is not finite; mark it invalid (NaN in values, False in valid)")


@runtime_checkable
class Reward(Protocol):
    """A score for images. Higher is better."""

    @property
    def name(self) -> str: ...

    def init(self) -> State: ...

    def __call__(self, samples: Samples, state: State) -> tuple[Scores, State]: ...


@runtime_checkable
class Compares(Protocol):
    """A reward, or its function, that says whether it may have to see all rivals of an image to score it."""

    @property
    def compares(self) -> bool: ...


@runtime_checkable
class Relative(Protocol):
    """A reward that says whether its scores are among rivals, so that their mean over a group says nothing."""

    @property
    def relative(self) -> bool: ...


@runtime_checkable
class Refers(Protocol):
    """A reward that says whether it cannot do without reference images of the prompts."""

    @property
    def refers(self) -> bool: ...


@runtime_checkable
class Waits(Protocol):
    """A reward, or its function, that says whether its scores are computed elsewhere while this process only waits for them."""

    @property
    def waits(self) -> bool: ...


def waits(value: object) -> bool:
    """Whether something says that it waits."""
    return isinstance(value, Waits) and value.waits


@runtime_checkable
class TrainableReward(Reward, Protocol):
    """A reward that learns from what it scored. What it learns is in its State, so it is saved with the run."""

    def update(self, samples: Samples, state: State) -> tuple[State, Mapping[str, float], bool]:
        """Once an iteration, after all scores are taken: (state, metrics, whether the policy is left as it is this time).

        samples: of all processes, the same in each; what it returns must be the same as well.
        """
        ...


def knowing(reward: Reward) -> Reward:
    """The reward, which must be one that can judge an image outside a training run.

    Raises: ValueError for one that learns.
    """
    if isinstance(reward, TrainableReward):
        where = f"; it needs a folder of references: {reward.name}:FOLDER" if isinstance(reward, Refers) and reward.refers else ""
        raise ValueError(f"reward {reward.name!r} learns in training and knows nothing before: give it to flowrl train{where}")
    return reward


@runtime_checkable
class WithGraph(Protocol):
    """Something that says how its score changes with the image."""

    def with_graph(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """images float [N, (T,) H, W, 3] in [0, 1] -> scores [N], differentiable in images; NaN where it could not score."""
        ...


@runtime_checkable
class DifferentiableReward(Reward, WithGraph, Protocol):
    """A reward that can be trained on by its gradient: `with_graph` agrees with the scores of the images rounded to 8 bits."""


class NotAScore(TypeError):
    """What a reward is, or what it returned, cannot be scores."""


class NotLoaded(RuntimeError):
    """What a reward is made of (weights, a detector, an engine) cannot be had here; one line, in however many a library said it."""

    def __init__(self, said: str) -> None:
        super().__init__(" ".join(said.split()))
