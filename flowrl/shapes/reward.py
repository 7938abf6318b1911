"""The verifier as a reward of the trainer."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flowrl.shapes.verify import Kind, score
from flowrl.shapes.world import Row

KINDS = ("soft", "strict")
Reward = Callable[[NDArray[np.uint8], Sequence[str], Sequence[Mapping[str, object]]], list[float]]


def rows(metadata: Sequence[Mapping[str, object]]) -> list[Row]:
    """Metadata as rows of the world.

    Raises: ValueError if one lacks "include".
    """
    for i, it in enumerate(metadata):
        if "include" not in it:
            have = ", ".join(it) or "nothing"
            raise ValueError(
                f"the shapes reward needs GenEval metadata with 'include'; number {i} has {have}. Use flowrl.shapes.world.captions."
            )
    return [cast(Row, dict(it)) for it in metadata]


def shapes(kind: str = "soft") -> Reward:
    """f(images uint8 [N, 64, 64, 3], prompts, metadata) -> N floats in [0, 1]; prompts are not read. See `verify.score`.

    Raises: ValueError for a kind that is neither "soft" nor "strict"; f raises it for metadata without "include".
    """
    if kind not in KINDS:
        raise ValueError(f"shapes:{kind} does not exist; there are shapes:soft and shapes:strict.")
    chosen = cast(Kind, kind)

    def reward(images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[float]:
        return [float(value) for value in score(images, rows(metadata), chosen)]

    return reward
