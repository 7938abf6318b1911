"""What may be set of a discriminator, and how a reward's name says it."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from .learning import Adam
from .losses import LOSSES
from .triggers import named

COMPAT = "Adv-GRPO@8287f90"


@dataclass(frozen=True)
class Settings:
    """loss: hinge, bce or pairwise;  trigger: as `triggers.named` reads it;  rate: of Adam;  steps: of Adam an update;  batch:
    images of each kind a step.

    patches: looked at in an image;  share: of the score that is theirs;  patch_loss: weight of their loss beside the class token's;
    hidden: width of the head;  layer: see `extractors.extractor`.
    buffer: generated images remembered, as many of which as there are new ones are learnt from along with these;  r1: weight of
    the gradient penalty;  spectral: bound the head's slope.
    warmup: iterations at the start in which the discriminator learns and the policy waits, since an untrained head says nothing.
    compat: "Adv-GRPO@8287f90" trains the head on tokens as they come and scores it on tokens of length 1, as upstream.

    Raises: ValueError, a sentence, for what cannot be.
    """

    loss: str = "hinge"
    trigger: str = "always"
    rate: float = 1e-4
    steps: int = 1
    batch: int = 64
    patches: int = 64
    share: float = 0.3
    patch_loss: float = 0.3
    hidden: int = 512
    layer: int = -1
    buffer: int = 0
    r1: float = 0.0
    spectral: bool = False
    warmup: int = 1
    seed: int = 0
    compat: str = ""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} of a discriminator does not exist; there are {', '.join(LOSSES)}")
        named(self.trigger)
        for name, least in {"steps": 1, "batch": 1, "patches": 1, "hidden": 1, "buffer": 0, "warmup": 0, "r1": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a discriminator is {getattr(self, name)}; give at least {least}")
        if not 0 <= self.share <= 1 or self.patch_loss < 0 or self.rate <= 0:
            raise ValueError(
                f"share {self.share}, patch_loss {self.patch_loss} and rate {self.rate} of a discriminator: give a share from 0 to "
                "1, a weight of at least 0, a rate above 0"
            )
        if self.compat not in ("", COMPAT):
            raise ValueError(f"compat {self.compat!r} of a discriminator is unknown; there is {COMPAT}")

    @property
    def adam(self) -> Adam:
        return Adam(self.rate)


@dataclass(frozen=True)
class PairSettings:
    """trigger: as `triggers.named` reads it;  rate: of Adam;  layers: last blocks of the vision tower that learn;  batch: pairs a
    step, of which an iteration takes as many as its images fill."""

    trigger: str = "ahead"
    rate: float = 5e-6
    layers: int = 2
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        named(self.trigger)
        if self.rate <= 0 or self.layers < 1 or self.batch < 1:
            raise ValueError(
                f"rate {self.rate}, layers {self.layers} and batch {self.batch} of a discriminator: give a rate above 0, at least "
                "1 layer, at least 1 pair"
            )

    @property
    def adam(self) -> Adam:
        return Adam(self.rate)


class Variant(NamedTuple):
    """What follows a reward's name: a folder of references ("": each prompt's own), a network's name ("": the default)."""

    folder: str
    network: str


S = TypeVar("S", Settings, PairSettings)


def parse(variant: str | None, kind: type[S]) -> tuple[Variant, S]:
    """Read "[FOLDER][@NETWORK][?name:value,name:value]" as (where things are, settings).

    Raises: ValueError for a setting that does not exist or a value of another kind.
    """
    where, _, told = (variant or "").partition("?")
    folder, at, network = where.rpartition("@")
    if not at:
        folder, network = where, ""
    given: dict[str, Any] = {}
    known = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    for word in filter(None, told.split(",")):
        name, colon, text = word.partition(":")
        if name not in known or not colon:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, written name:value"
            raise ValueError(f"setting {word!r} of a discriminator does not exist; {hint}")
        given[name] = _value(name, text, known[name])
    return Variant(folder, network), kind(**given)


def _value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"setting {name} of a discriminator is {text!r}; give true or false")
        return text == "true"
    try:
        return type(default)(text)
    except ValueError:
        what = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"setting {name} of a discriminator is {text!r}; give {what}") from None
