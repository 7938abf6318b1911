"""Rewards that wait for a network, asked while the rest of the iteration is still being drawn."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType

import torch
from torch import Tensor

from flowrl.rewards.base import Reward, Samples, Scores, State, waits

Chunk = tuple[Tensor, Samples]


def waiting(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """Those that say they wait (`rewards.base.Waits`)."""
    return {name: reward for name, reward in rewards.items() if waits(reward)}


class Early:
    """Rewards that score chunks of whole prompts as they are put, each in a background thread of its own, in the order put.

    Used in a with statement; what is not scored at its end is given up. States are handed from chunk to chunk and returned by
    `take`, so an iteration that is abandoned changes none.
    """

    def __init__(self, rewards: Mapping[str, Reward], states: Mapping[str, State]) -> None:
        self._lines = {name: Line(reward, states[name]) for name, reward in rewards.items()}

    def __enter__(self) -> Early:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for line in self._lines.values():
            line.leave()

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def put(self, rows: Tensor, samples: Samples) -> None:
        """samples: of the prompts `rows` [p], each put once, all its leaves together: groups are compared within a chunk."""
        for line in self._lines.values():
            line.chunks.put((rows, samples))

    def take(self, name: str) -> tuple[Scores, State]:
        """Scores [P, L] of all that was put, at its rows, and the state after it: what one call with all of it would have returned.

        Raises: whatever the reward raised; ValueError where nothing was put.
        """
        line = self._lines[name]
        line.chunks.put(None)
        return line.done.result()


class Line:
    """One reward's thread.  done: what it scored, once None came through `chunks`."""

    def __init__(self, reward: Reward, state: State) -> None:
        self.reward, self.state = reward, state
        self.chunks: SimpleQueue[Chunk | None] = SimpleQueue()
        self.done: Future[tuple[Scores, State]] = Future()
        self.left = threading.Event()
        # left behind rather than waited for, should the process end before it
        threading.Thread(target=self._run, name="flowrl-early", daemon=True).start()

    def leave(self) -> None:
        """No further chunk is scored."""
        self.left.set()
        self.chunks.put(None)

    def _run(self) -> None:
        told: list[tuple[Tensor, Scores]] = []
        state = self.state
        try:
            while (chunk := self.chunks.get()) is not None and not self.left.is_set():
                rows, samples = chunk
                scores, state = self.reward(samples, state)
                told.append((rows, scores))
            self.done.set_result((joined(told), state))
        except BaseException as error:
            self.done.set_exception(error)


def joined(told: list[tuple[Tensor, Scores]]) -> Scores:
    """Scores of chunks at their rows. A part some chunk does not have is NaN there.

    Raises: ValueError for no chunks, or rows that are not 0, 1, ... once each.
    """
    rows = torch.cat([index for index, _ in told]) if told else torch.zeros(0, dtype=torch.long)
    if not len(rows) or not torch.equal(rows.sort().values, torch.arange(len(rows))):
        raise ValueError(f"chunks hold the prompts {rows.tolist()}; each of 0, 1, ... must come once")
    back = rows.argsort()
    names = dict.fromkeys(name for _, scores in told for name in scores.parts)
    missing = [torch.full_like(scores.values, torch.nan) for _, scores in told]
    parts = {
        name: torch.cat([scores.parts.get(name, none) for (_, scores), none in zip(told, missing, strict=True)])[back]
        for name in names
    }
    return Scores(torch.cat([s.values for _, s in told])[back], torch.cat([s.valid for _, s in told])[back], parts)


def whole(chunks: Sequence[Chunk]) -> Samples | None:
    """Chunks of prompts as one, in the prompts' order; None where there are none."""
    if len(chunks) < 2:
        return chunks[0][1] if chunks else None
    rows = torch.cat([index for index, _ in chunks])
    parts, back = [samples for _, samples in chunks], rows.argsort()
    text = [prompt for part in parts for prompt in part.prompts]
    metadata = [one for part in parts for one in part.metadata]
    given = [one for part in parts for one in (part.references or [None] * len(part.prompts))]
    return Samples(
        torch.cat([part.pixels for part in parts])[back],
        [text[i] for i in back.tolist()],
        [metadata[i] for i in back.tolist()],
        torch.cat([part.scored for part in parts])[back],
        parts[0].rival,
        None if all(one is None for one in given) else [(given[i] or []) for i in back.tolist()],
    )
