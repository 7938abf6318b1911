"""Which steps are stochastic at an iteration: pure functions, nothing to checkpoint, nothing to seed twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from .noise import uniform

Strategy = Literal["progressive", "decay", "exp_decay"]


def _dwell(strategy: Strategy, start: int, every: int, last: int, longest: int, shortest: int) -> int:
    """How many iterations the window stays at `start`."""
    if strategy == "decay":
        return max(shortest, int(longest * (1 - start / last) + shortest * start / last))
    if strategy == "exp_decay":
        return math.ceil(every * math.exp(-0.1 * max(0, start - 13)))
    return every


def sliding(
    iteration: int,
    steps: int,
    size: int,
    every: int = 25,
    stride: int = 1,
    roll_back: bool = True,
    strategy: Strategy = "progressive",
    longest: int = 10,
    shortest: int = 1,
    compat: str | None = None,
) -> range:
    """MixGRPO's moving window: `size` of the `steps` trainable steps, moved by `stride` after it stood for a while.

    progressive: `every` iterations at each place;  decay: from `longest` to `shortest`;  exp_decay: ceil(every exp(-0.1 max(0,
      start - 13))).
    At the end the window returns to 0 (roll_back) or stays.

    Raises: ValueError for a window that does not fit.
    Source: MixGRPO (2507.21802) `GRPOTrainingStates`, where steps = sampling steps - 2.
    Differs: the peer's window shrinks at the end and is empty at start = steps; ours keeps its size. compat="mixgrpo@e5cdd6a"
    is theirs.
    """
    if not 0 < size <= steps:
        fitting = "take more steps" if steps < 1 else "use a size of 1" if steps == 1 else f"use a size from 1 to {steps}"
        room = "1 trainable step" if steps == 1 else f"{max(steps, 0)} trainable steps"
        raise ValueError(f"a window of {size} steps does not fit into {room}; {fitting}")
    if stride < 1 or every < 1:
        raise ValueError(f"a window with stride {stride} that stands {every} iterations never moves on; both must be at least 1")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy {strategy!r} is unknown to sliding; use one of {', '.join(get_args(Strategy))}")
    if compat not in (None, "mixgrpo@e5cdd6a"):
        raise ValueError(f'compat {compat!r} is unknown to sliding; it knows "mixgrpo@e5cdd6a"')
    last = steps if compat else steps - size
    start = stood = 0
    for _ in range(iteration):
        stood += 1
        if stood >= _dwell(strategy, start, every, steps, longest, shortest):
            stood, start = 0, start + stride
            if start > last:
                start = 0 if roll_back else last
    return range(start, min(start + size, steps))


def jumping(iteration: int, low: int, high: int, size: int, seed: int = 0, slot: int = 0) -> range:
    """A window of `size` steps whose start is uniform in [low, high - size], drawn once an iteration and the same for every sample;
    give the prompt's `slot` to draw once a prompt.

    Source: Flow-GRPO-Fast (flow_grpo@9745241 pipelines); MixGRPO's "random"; with a slot and size 1 Flash-GRPO (2605.15980).
    Differs: the peers draw it per process and call, so members of one group may get different windows; Qwen-Image and Bagel reseed
    before every draw, so that theirs never moves.
    """
    if not 0 <= low <= high - size or size < 1:
        raise ValueError(f"no window of {size} steps fits into steps {low} to {high - 1}")
    return range(start := low + int(uniform(seed, iteration, slot, 0, "window") * (high - size - low + 1)), start + size)


def evenly(rounds: int, steps: int) -> list[int]:
    """`rounds` branch points steps // rounds apart, from step 0.

    Source: BranchGRPO (2509.06040) `parse_split_points`, tree_split_rounds.
    """
    if not 1 <= rounds <= steps:
        raise ValueError(f"{rounds} branch points do not fit into {steps} steps")
    return [i * (steps // rounds) for i in range(rounds)]


def recurring(steps: int, size: int, every: int, always: Sequence[int] = ()) -> list[int]:
    """The first `size` of every `every` steps, and the steps in `always`.

    Source: BranchGRPO-Mix (2509.06040), where `always` are the branch points. With every > steps it is one window at the start.
    """
    if size < 0 or every < 1:
        raise ValueError(f"{size} of every {every} steps: give at least 0 of every 1")
    return sorted({i for i in range(steps) if i % every < size} | set(always))


def pruned(iteration: int, depths: Sequence[int], every: int, stop: int) -> list[int]:
    """BranchGRPO's depth pruning: edges into these depths are not trained on; the set slides by one depth every `every` iterations
    towards the root, until its shallowest is at `stop`.

    Source: BranchGRPO@19fbb9f (the paper says towards the leaves).
    """
    if not depths:
        return []
    if every < 1:
        raise ValueError(f"a pruning window that slides every {every} iterations; give at least 1")
    shift = min(iteration // every, max(0, min(depths) - stop))
    return sorted({d - shift for d in depths})
