"""The one thread of a server that scores: models are not thread-safe. Requests that wait for one reward become one call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from flowrl.rewards.base import Reward, Samples, State
from flowrl.rewards.forms import Call, Detailed


@dataclass(frozen=True, eq=False)
class Job:
    """A call that waits for its scores."""

    reward: str
    call: Call
    answer: Future[Detailed] = field(default_factory=Future[Detailed])

    def beside(self, other: Job) -> bool:
        """Whether the two can be scored in one call."""
        return self.reward == other.reward and self.call.images.shape[1:] == other.call.images.shape[1:]


class Worker:
    """Rewards by name, scored in a thread of its own, `batch` images a call at most where requests are joined.

    A joined call that raises is made again request by request, so only the guilty one fails.
    """

    def __init__(self, rewards: Mapping[str, Reward], batch: int) -> None:
        self.rewards, self.batch = rewards, batch
        self.states: dict[str, State] = {name: reward.init() for name, reward in rewards.items()}
        self.waiting: deque[Job] = deque()
        self.ready = threading.Condition()
        threading.Thread(target=self._run, name="flowrl-reward", daemon=True).start()

    def ask(self, reward: str, call: Call) -> Future[Detailed]:
        """Scores to come. Cancelled before they are begun, they are never taken."""
        job = Job(reward, call)
        with self.ready:
            self.waiting.append(job)
            self.ready.notify()
        return job.answer

    def _run(self) -> None:
        while True:
            jobs = [job for job in self._next() if job.answer.set_running_or_notify_cancel()]
            if jobs:
                self._score(jobs)

    def _next(self) -> list[Job]:
        """The oldest job, and those that can be scored with it."""
        with self.ready:
            self.ready.wait_for(lambda: self.waiting)
            first = self.waiting.popleft()
            taken, count = [first], len(first.call.prompts)
            for job in list(self.waiting):
                if job.beside(first) and count + len(job.call.prompts) <= self.batch:
                    self.waiting.remove(job)
                    taken.append(job)
                    count += len(job.call.prompts)
            return taken

    def _score(self, jobs: Sequence[Job]) -> None:
        name = jobs[0].reward
        try:
            told, state = scored(self.rewards[name], joined([job.call for job in jobs]), self.states[name])
        except BaseException as error:  # a reward that calls sys.exit() must not end the thread
            if len(jobs) == 1:
                jobs[0].answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
                return
            for job in jobs:
                self._score([job])
            return
        self.states[name] = state
        start = 0
        for job in jobs:
            cut = slice(start, start + len(job.call.prompts))
            job.answer.set_result(Detailed(told.values[cut], {part: some[cut] for part, some in told.parts.items()}))
            start = cut.stop


def joined(calls: Sequence[Call]) -> Call:
    """Calls with images of one size as one; images of different calls do not compete."""
    if len(calls) == 1:
        return calls[0]
    starts = np.cumsum([0, *(int(call.group.max()) + 1 for call in calls)])
    return Call(
        np.concatenate([call.images for call in calls]),
        [prompt for call in calls for prompt in call.prompts],
        [one for call in calls for one in call.metadata],
        [some for call in calls for some in call.references],
        np.concatenate([call.group + start for call, start in zip(calls, starts[:-1], strict=True)]),
    )


def scored(reward: Reward, call: Call, state: State) -> tuple[Detailed, State]:
    """A reward's scores of a call: values float64 [N], NaN where it could not score, and parts. Groups of one size at a time."""
    values = np.full(len(call.prompts), np.nan)
    parts: dict[str, np.ndarray] = {}
    for rows in sizes(call.group):
        scores, state = reward(_samples(call, rows), state)
        values[rows] = torch.where(scores.valid, scores.values, torch.nan).cpu().numpy()
        for name, some in scores.parts.items():
            parts.setdefault(name, np.full(len(values), np.nan))[rows] = some.cpu().numpy()
    return Detailed(values, parts), state


def sizes(group: np.ndarray) -> Iterator[np.ndarray]:
    """Rows [P, L] of the groups that have L images, for each L."""
    _, number, count = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(number.reshape(-1), kind="stable")
    mine = np.split(order, np.cumsum(count)[:-1])
    for size in np.unique(count):
        yield np.stack([rows for rows in mine if len(rows) == size])


def _samples(call: Call, rows: np.ndarray) -> Samples:
    first = rows[:, 0].tolist()
    return Samples(
        torch.from_numpy(call.images[rows]),
        [call.prompts[i] for i in first],
        [call.metadata[i] for i in first],
        torch.ones(rows.shape, dtype=torch.bool),
        torch.zeros(rows.shape[1], dtype=torch.long),
        [call.references[i] for i in first] if any(call.references) else None,
    )
