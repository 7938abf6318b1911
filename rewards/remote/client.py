"""The other end of `flowrl serve`: a reward function whose scores come over HTTP, in bounded time, or not at all."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
import numpy as np

from flowrl.rewards.forms import Call, Detailed, Metadata

from . import wire
from .address import address, loopback
from .pictures import Limits
from .token import VARIABLE, hidden, token

AGAIN = (429, 502, 503, 504)
APART = "too large, and may be sent apart"
LARGEST = 64 * 2**20
"""Bytes of an answer."""


@dataclass(frozen=True)
class Patience:
    """Seconds. connect: to reach the server;  read: between two pieces of its answer, so at least what a chunk takes to score;
    total: of a whole call, retries and all, after which what is missing stays missing;  first, longest: pauses before a retry.
    retries: of a chunk.

    Raises: ValueError for anything negative, and for a time of 0.
    """

    connect: float = 10.0
    read: float = 120.0
    total: float = 300.0
    first: float = 0.5
    longest: float = 30.0
    retries: int = 8

    def __post_init__(self) -> None:
        if min(self.connect, self.read, self.total) <= 0 or min(self.first, self.longest, self.retries) < 0:
            raise ValueError(f"{self} cannot be kept; give times above 0, and pauses and retries of at least 0")

    def pause(self, attempt: int, body: bytes) -> float:
        """Before the attempt-th retry (0, 1, ...): first * 2^attempt, at most `longest`, times a factor in [0.5, 1) that differs
        from chunk to chunk and is the same in every run."""
        spread = int.from_bytes(hashlib.blake2b(attempt.to_bytes(4) + body, digest_size=4).digest()) / 2**33
        return min(self.longest, self.first * 2.0 ** min(attempt, 60)) * (0.5 + spread)


class Lost(NamedTuple):
    """Why a chunk has no scores. kind: failures of one kind are told once."""

    kind: str
    said: str


@dataclass(frozen=True)
class Remote:
    """f(images uint8 [N, (T,) H, W, 3], prompts, metadata) -> Detailed of N scores, from a server. Built by `remote`.

    Sent in chunks of whole groups, `chunk` images where groups are small enough, of videos fewer (`fitting`), `parallel` of them at
    a time. A group that is too large for the server goes in halves where the reward does not compare its images. What cannot be had
    in time is NaN, for exactly the images of the chunk, and warned of once for each kind of failure.

    Raises: ValueError where metadata cannot travel or the token is none.
    """

    address: str
    patience: Patience = field(default_factory=Patience)
    chunk: int = 32
    parallel: int = 4
    variable: str = VARIABLE
    warned: set[str] = field(default_factory=set[str], repr=False, compare=False)

    @property
    def waits(self) -> bool:
        """Scoring costs this process next to nothing."""
        return True

    @property
    def compares(self) -> bool:
        """Nobody here knows whether the reward that is served does."""
        return True

    def __call__(self, images: np.ndarray, prompts: list[str], metadata: list[Metadata]) -> Detailed:
        """Images of equal prompts compete."""
        group = np.unique(np.array(prompts, dtype=object), return_inverse=True)[1].reshape(-1) if prompts else np.zeros(0, int)
        return self.on(Call(images, prompts, metadata, [[] for _ in prompts], group))

    def on(self, call: Call) -> Detailed:
        """Scores of a call; see `forms.Form`."""
        cuts = list(chunks(call.group, min(self.chunk, fitting(call.images.shape[1:]))))
        got: dict[int, Detailed | Lost] = {}
        secret = token(self.variable)
        # the last word: a name server that hangs cannot be cancelled
        bounded(lambda: asyncio.run(self._all(call, cuts, got, secret)), self.patience.total + 5)
        return self._joined(len(call.prompts), list(cuts), dict(got))

    async def _all(self, call: Call, cuts: list[np.ndarray], got: dict[int, Detailed | Lost], secret: str | None) -> None:
        patience, gate = self.patience, asyncio.Semaphore(self.parallel)
        times = httpx.Timeout(patience.read, connect=patience.connect, pool=None)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        end = time.monotonic() + patience.total

        async def one(number: int, rows: np.ndarray) -> None:
            async with gate:
                body = await asyncio.to_thread(wire.encode, part(call, rows))
                await self._ask(client, body, len(rows), end, lambda said: got.__setitem__(number, _quiet(said, secret)))
                del body
            told = got.get(number)
            if isinstance(told, Lost) and told.kind == APART and len(rows) > 1:
                first, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
                del got[number]
                cuts[number] = first
                cuts.append(rest)
                await asyncio.gather(one(number, first), one(len(cuts) - 1, rest))

        try:
            async with (
                asyncio.timeout(patience.total),
                httpx.AsyncClient(timeout=times, headers=headers, trust_env=not loopback(self.address)) as client,
            ):
                await asyncio.gather(*(one(number, rows) for number, rows in enumerate(cuts)))
        except TimeoutError:
            pass

    async def _ask(
        self, client: httpx.AsyncClient, body: bytes, count: int, end: float, note: Callable[[Detailed | Lost], None]
    ) -> None:
        """One chunk, again and again. Each failure is noted at once: the time may be up before the next is known."""
        for attempt in range(self.patience.retries + 1):
            pause = self.patience.pause(attempt, body)
            try:
                status, asked, data = await self._post(client, body)
                if status == 200:
                    note(wire.read(data, count))
                    return
                kind = APART if status == 413 and wire.apart(data) else f"status {status}"
                note(Lost(kind, f"the server said {status}: {wire.error(data)}"))
                if status not in AGAIN:
                    return
                pause = max(pause, _seconds(asked))
            except wire.Garbled as garbled:
                note(Lost("garbled", str(garbled)))
                return
            except (httpx.HTTPError, httpx.StreamError) as error:
                note(Lost(type(error).__name__, f"{type(error).__name__}: {error}"))
            if attempt == self.patience.retries or time.monotonic() + pause > end:
                return
            await asyncio.sleep(pause)

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> tuple[int, str, bytes]:
        """Status, Retry-After and body of an answer."""
        data = bytearray()
        async with client.stream("POST", self.address, content=body) as response:
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > LARGEST:
                    raise wire.Garbled(f"its answer is larger than {LARGEST} bytes")
        return response.status_code, response.headers.get("retry-after", ""), bytes(data)

    def _joined(self, count: int, cuts: list[np.ndarray], got: dict[int, Detailed | Lost]) -> Detailed:
        values, parts = np.full(count, np.nan), dict[str, np.ndarray]()
        lost: dict[Lost, int] = {}
        for number, rows in enumerate(cuts):
            told = got.get(number, Lost("late", f"no answer within {self.patience.total:g} s"))
            if isinstance(told, Lost):
                lost[told] = lost.get(told, 0) + len(rows)
                continue
            values[rows] = told.values
            for name, some in told.parts.items():
                parts.setdefault(name, np.full(count, np.nan))[rows] = some
        for why, images in lost.items():
            if why.kind not in self.warned:
                self.warned.add(why.kind)
                warnings.warn(
                    f"remote reward {self.address}: no scores for {images} of {count} images: {why.said}; they are left out, "
                    "and further failures of this kind are counted without a warning",
                    stacklevel=2,
                )
        return Detailed(values, parts)


def remote(variant: str = "", patience: Patience | None = None, chunk: int = 32, parallel: int = 4) -> Remote:
    """A reward served by `flowrl serve` at http://HOST:PORT/NAME. chunk: images a request, parallel: requests at once.

    The token is read from FLOWRL_TOKEN whenever it is needed, and kept nowhere.

    Raises: ValueError for credentials in the address, an address that is none, or chunk or parallel below 1.
    """
    if chunk < 1 or parallel < 1:
        raise ValueError(f"chunk is {chunk} and parallel {parallel}; give at least 1 each")
    return Remote(address(variant), patience or Patience(), chunk, parallel)


def fitting(shape: Sequence[int], limits: Limits | None = None) -> int:
    """How many images [(T,) H, W, 3] go into a request that a server with its usual limits takes, at least 1."""
    limits = limits or Limits()
    frames, pixels = (shape[0] if len(shape) == 4 else 1), max(1, math.prod(shape[:-1]))
    # a PNG of noise has 3 bytes a pixel, in base64 4
    return max(1, min(limits.images // max(1, frames), limits.pixels // pixels, limits.body // (4 * pixels)))


def chunks(group: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows cut into pieces of whole groups, of at most `size` rows unless one group is larger."""
    piece: list[int] = []
    for number in dict.fromkeys(group.tolist()):
        rows = np.flatnonzero(group == number).tolist()
        if piece and len(piece) + len(rows) > size:
            yield np.array(piece)
            piece = []
        piece += rows
    if piece:
        yield np.array(piece)


def part(call: Call, rows: np.ndarray) -> Call:
    """Some rows of a call."""
    index = rows.tolist()
    prompts, metadata, references = ([column[i] for i in index] for column in (call.prompts, call.metadata, call.references))
    return Call(call.images[rows], prompts, metadata, references, call.group[rows])


def bounded(work: Callable[[], None], seconds: float) -> None:
    """Do work in a thread that is left behind after `seconds`; what it raises before is raised here."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="flowrl-remote", daemon=True).start()
    try:
        done.result(seconds)
    except TimeoutError:
        return


def _quiet(told: Detailed | Lost, secret: str | None) -> Detailed | Lost:
    """A server may repeat what it was sent; the token is taken out of it."""
    return Lost(told.kind, hidden(told.said, secret)) if isinstance(told, Lost) else told


def _seconds(after: str) -> float:
    """Retry-After as seconds from now; 0 where it says nothing that can be read."""
    if after.strip().isdecimal():
        return float(after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
