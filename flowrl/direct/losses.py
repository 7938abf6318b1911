"""What a reward is turned into before it is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

KINDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "minus": lambda r, target: -r,
    "rest": lambda r, target: target - r,
    "hinge": lambda r, target: (target - r).relu(),
    "distance": lambda r, target: (r - target).abs(),
}
"""minus: -r;  rest: target - r;  hinge: relu(target - r), done once the target is reached;  distance: |r - target|."""


@dataclass(frozen=True)
class Loss:
    """scale * kind(r, target), each image on its own: [N] -> [N].

    Raises: ValueError for an unknown kind, or a scale that is not positive.
    Source: hinge 2 (ReFL) and 0.7 (SRPO); rest 1 and distance 10 (AlignProp: HPS, aesthetics); minus (DRaFT).
    """

    kind: str = "minus"
    target: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"loss {self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale:g}, so nothing would be minimised; give a number above 0")

    def __call__(self, r: Tensor) -> Tensor:
        return self.scale * KINDS[self.kind](r, self.target)
