"""Settings by the size of the GPU: the first of an ordered list that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .card import Card, Shape
from .found import card as found
from .plan import GB, Peak, Settings, filled, fits, peak

SIZES = (12, 16, 24, 48, 80)
"""GB of the GPUs that presets are listed for."""
REWARD = "pickscore"
"""The reward a preset leaves room for."""
MOST = 32
"""Rows of a training call beyond which there is nothing to gain (sizes.LARGEST_SLICE)."""


@dataclass(frozen=True)
class Rung:
    """Fields that change from this rung on, and the rows a training call must have for it to be taken."""

    changes: dict[str, Any]
    rows: int


LADDER = (
    Rung({}, 4),
    Rung({"offload": ("encoders",)}, 4),  # prompts are encoded once
    Rung({"offload": ("encoders", "vae")}, 4),
    # below four rows without it, recomputing blocks costs less than half-empty calls
    Rung({"checkpointing": True}, 2),
    Rung({"reward_offload": True}, 1),
    Rung({"offload": ("encoders", "vae", "network")}, 1),
    Rung({"optim": "adamw8bit"}, 1),
    Rung({"quantize": "int8"}, 1),
    Rung({"quantize": "nf4"}, 1),
)
"""From what costs nothing to what costs accuracy, each on top of those before it."""


@dataclass(frozen=True)
class Preset:
    """What to set on a GPU of so many GB, and what it comes to."""

    card: Card
    gigabytes: float
    settings: Settings
    peak: Peak

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings by their names in a recipe, without those that are as by default."""
        s = self.settings
        height, width, frames = s.shape
        always = {
            "policy.dtype": s.dtype, "policy.lora.rank": s.rank, "policy.height": height, "policy.width": width,
            "sizes.slice": s.slice,
        }  # fmt: skip
        where_needed = {
            "sizes.batch": s.batch,
            "policy.frames": frames if self.card.video else None,
            "policy.checkpointing": s.checkpointing or None,
            "policy.quantize": s.quantize,
            "policy.offload": list(s.offload) or None,
            "optim.name": None if s.optim == "adamw" else s.optim,
        }
        return {**always, **{name: value for name, value in where_needed.items() if value is not None}}


def settings(card: Card, shape: Shape | None = None, reward: str = REWARD, **changes: Any) -> Settings:
    """The first rung's: nothing saved.

    reward: whose network lies beside the policy.  Raises: ValueError for a reward there is none of.
    """
    from flowrl.rewards.names import known

    return replace(Settings(shape or card.shapes[0], guided=card.guided, reward=int(GB * known(reward).memory)), **changes)


def rungs(start: Settings) -> Iterator[tuple[Settings, int]]:
    """The ladder from these settings down, and the rows each rung must allow."""
    for rung in LADDER:
        start = replace(start, **rung.changes)
        yield start, rung.rows


def preset(card: Card, gigabytes: float, start: Settings | None = None) -> Preset | None:
    """The first rung with room for its rows, at the largest of the card's shapes that has one; None where nothing fits.

    start: settings to begin with, whose shape then stays.
    """
    starts = [settings(card, shape) for shape in card.shapes] if start is None else [start]
    for begun in starts:
        for rung, least in rungs(begun):
            chosen = filled(card, rung, gigabytes, MOST)
            if chosen is not None and chosen.slice >= least:
                chosen = _spared(card, chosen, begun, gigabytes)
                return Preset(card, gigabytes, chosen, peak(card, chosen))
    return None


def _spared(card: Card, chosen: Settings, begun: Settings, gigabytes: float) -> Settings:
    """Without those savings of earlier rungs that turned out not to be needed, the dearest first."""
    parts = ("network", "vae", "encoders")
    without = [{"optim": begun.optim}, {"reward_offload": begun.reward_offload}, *({"offload": part} for part in parts)]
    for change in without:
        part = change.get("offload")
        kept = tuple(p for p in chosen.offload if p != part or p in begun.offload)
        tried = replace(chosen, **({"offload": kept} if part else change))
        if fits(card, tried, gigabytes):
            chosen = tried
    return chosen


def smallest(card: Card) -> int | None:
    """GB of the smallest listed GPU that can train it; None where none can."""
    return next((size for size in SIZES if preset(card, size) is not None), None)


def overrides(model: str, gigabytes: float) -> dict[str, Any]:
    """What `--set` would have to say to train this model on a GPU of so many GB; for `resolve`.

    model: a name of the table, of the hub, or a folder. A reward is moved to the CPU between calls by its own setting
    (rewards.N.offload), which is not among these.

    Raises: ValueError where it does not fit whatever is set, or for an unknown model.
    """
    one = found(model)
    chosen = preset(one, gigabytes)
    if chosen is None:
        least = smallest(one)
        hint = f"it needs {least} GB" if least else "it fits none of the sizes listed by flowrl models"
        raise ValueError(f"{model} cannot be trained on a GPU of {gigabytes:g} GB, whatever is set; {hint}")
    return chosen.overrides
