"""Direct reward gradients: methods that differentiate the reward through the decoder and the sampler, and their own small loop."""

from .loop import iterate, rehearse, smooth
from .losses import Loss
from .methods import TABLE, Direct, alignprop, draft, drtune, refl, srpo
from .schemes import Branch, Known, Rows, Scheme, Truncated, View
from .travel import Route, route, travel

__all__ = [
    "TABLE",
    "Branch",
    "Direct",
    "Known",
    "Loss",
    "Route",
    "Rows",
    "Scheme",
    "Truncated",
    "View",
    "alignprop",
    "draft",
    "drtune",
    "iterate",
    "refl",
    "rehearse",
    "route",
    "smooth",
    "srpo",
    "travel",
]
