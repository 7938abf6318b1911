"""Whether a model can be trained on a GPU, and with which settings: peaks counted from the real networks on the meta device."""

from .card import Card, Part, Shape
from .cards import CARDS
from .found import card
from .plan import Peak, Settings, fits, peak
from .presets import SIZES, Preset, overrides, preset, smallest

__all__ = [
    "CARDS",
    "SIZES",
    "Card",
    "Part",
    "Peak",
    "Preset",
    "Settings",
    "Shape",
    "card",
    "fits",
    "overrides",
    "peak",
    "preset",
    "smallest",
]
