"""When a discriminator learns, and when the policy waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """How well the discriminator that scored an iteration tells its images. accuracy: share of pairs (real, generated) whose real
    one scores higher, ties half;  margin: mean score of the real ones minus that of the generated ones."""

    accuracy: float
    margin: float


class Decision(NamedTuple):
    """train: the discriminator learns from this iteration;  skip: the policy does not."""

    train: bool
    skip: bool


Trigger = Callable[[int, Seen], Decision]
"""(iteration, what was seen in it) -> Decision."""


def seen(real: Tensor, fake: Tensor) -> Seen:
    """Scores of real and generated images, any shapes; numbers in float64."""
    a, b = real.double().flatten()[:, None], fake.double().flatten()[None]
    return Seen(float(((a > b).double() + (a == b).double() / 2).mean()), float(a.mean() - b.mean()))


def always() -> Trigger:
    """Both learn in every iteration."""
    return lambda iteration, seen: Decision(True, False)


def every(k: int) -> Trigger:
    """The discriminator learns in every k-th iteration, the policy in all.

    Raises: ValueError for k below 1.
    """
    _least(k, 1)
    return lambda iteration, seen: Decision((iteration + 1) % k == 0, False)


def alternate(k: int = 10) -> Trigger:
    """The policy learns in every k-th iteration, the discriminator in all others.

    Raises: ValueError for k below 2, with which nobody would learn to tell.
    Source: Adv-GRPO@8287f90 scripts/train_sd3_fast_dino_patch.py, d_times = 10.
    """
    _least(k, 2)
    return lambda iteration, seen: Decision(*[(iteration + 1) % k != 0] * 2)


def ahead() -> Trigger:
    """The discriminator learns, and the policy waits, where the generated images score higher than the real ones on average.

    Source: Adv-GRPO (2511.20256), its preference mode.
    """
    return lambda iteration, seen: Decision(seen.margin < 0, seen.margin < 0)


def band(low: float = 0.6, high: float = 0.9) -> Trigger:
    """The discriminator learns while its accuracy is below `high`, and below `low` the policy waits for it.

    Raises: ValueError unless 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"the accuracy band {low} to {high} holds nothing; give 0 <= low < high <= 1")
    return lambda iteration, seen: Decision(seen.accuracy < high, seen.accuracy < low)


TRIGGERS: dict[str, tuple[Callable[..., Trigger], type[int] | type[float]]] = {
    "always": (always, int),
    "every": (every, int),
    "alternate": (alternate, int),
    "ahead": (ahead, int),
    "band": (band, float),
}
"""name -> (trigger, type of its numbers)."""


def named(text: str) -> Trigger:
    """The trigger of a text such as "always", "every/4" or "band/0.6/0.9".

    Raises: ValueError for an unknown name or numbers it does not take.
    """
    name, *numbers = text.split("/")
    if name not in TRIGGERS:
        raise ValueError(f"trigger {text!r} does not exist; there are {', '.join(TRIGGERS)}, with numbers as in every/4")
    factory, kind = TRIGGERS[name]
    try:
        return factory(*map(kind, numbers))
    except TypeError:
        raise ValueError(f"trigger {text!r} has {len(numbers)} numbers, which {name} does not take") from None


def _least(k: int, least: int) -> None:
    if k < least:
        raise ValueError(f"every {k}-th iteration cannot be; give at least {least}")
