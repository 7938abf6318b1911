"""What the shootout compares, in which order, and its book: one JSON line a finished run."""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flowrl.folder import plain

Line = dict[str, Any]

# method -> (group, arguments). 8 prompts x 12 images an iteration; clips, noise, windows (and how often they move) and updates are
# the published ones. No KL, so that nobody pays for a reference.
METHODS: dict[str, tuple[int, dict[str, Any]]] = {
    "flow_grpo": (12, {"beta": 0.0}),  # published with KL 0.04
    "flow_grpo_fast": (12, {}),
    "mix_grpo": (12, {}),  # the window moves every 25 iterations: once or twice in 4 minutes
    "mix_grpo_flash": (12, {}),
    "branch_grpo": (12, {}),  # fans of 3, 2, 2 at steps 0, 3, 6
    # group counts the children of one step: 4 at each of 9 steps are 36 images and the spine's
    "tempflow_grpo": (4, {"teeth": 4, "beta": 0.0}),  # published with KL 0.004, and 4 spines of 6 teeth
    "g2rpo": (4, {}),  # 4 at each of 8 steps, finished at 3 strides: 89 images; published 12
    "diffusion_nft": (12, {"draws": 4, "kl": 0.0}),  # as the recipe; published with KL 1e-4 and one draw
    "awm": (12, {"beta": 0.0}),  # published with KL 1e-3
    "online_dpo": (12, {}),  # its loss is made of the distance to a reference, which it pays for
}
WARMUP = 2  # the recipe's 5 iterations would be all of a search of the slowest method
SEARCH_SEED = 100
MARKS = (1 / 8, 1 / 4, 1 / 2)  # shares of the time at which a run is looked at, beside its end
LEFT_OUT = -1.0  # the score of a search run that broke down


@dataclass(frozen=True)
class Job:
    """One run, or the base's evaluation. Its fields are what a line is recognised by."""

    kind: str
    method: str
    args: Mapping[str, Any]
    group: int
    lr: float
    seed: int
    minutes: float
    captions: int
    images: int


@dataclass(frozen=True)
class Options:
    """What is compared. rates: candidates of the learning rate, from low to high."""

    methods: Sequence[str] = tuple(METHODS)
    minutes: float = 4.0
    search_minutes: float = 1.0
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
    seeds: Sequence[int] = (0, 1, 2)
    controls: bool = True
    captions: int = 84
    images: int = 2


def key(line: Mapping[str, Any]) -> str:
    """What makes a line the result of a job."""
    return json.dumps([line.get(f.name) for f in fields(Job)], sort_keys=True)


def read(path: Path) -> list[Line]:
    """The finished lines. One that was not written to its end, or is no result, is said and left out."""
    lines: list[Line] = []
    for i, text in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else []):
        try:
            line = json.loads(text) if text.endswith(b"\n") else None
        except ValueError:
            line = None
        if isinstance(line, dict) and "scores" in line:
            lines.append(line)
        else:
            print(f"line {i + 1} of {path.name} is not whole; its run is done again", flush=True)
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line and wait for the disk; half a line that a kill has left at the end goes."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(plain(line), separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def claimed(path: Path, job: Job) -> Iterator[bool]:
    """Whether this process alone has the job; the kernel gives it back when the process ends, however it ends."""
    with path.with_suffix(".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(key(asdict(job)).encode()))
        except OSError:
            yield False
            return
        yield True


def known(names: Sequence[str], table: Collection[str]) -> list[str]:
    """The methods that can be run; the others are named."""
    for name in names:
        if name not in METHODS or name not in table:
            print(f"{name} is not among the methods {'compared' if name not in METHODS else 'of flowrl'}: left out", flush=True)
    return [name for name in names if name in METHODS and name in table]


def chosen(lines: Sequence[Line], searches: Sequence[Job]) -> float | None:
    """The rate whose search ended with the best score, of equal ones the lowest; None before all have ended."""
    done = {key(line): line for line in lines}
    found = [done.get(key(asdict(job))) for job in searches]
    if not all(found):
        return None
    score = {line["lr"]: LEFT_OUT if line["error"] else line["score"] for line in found if line}
    return max(sorted(score), key=lambda rate: score[rate])


def search(o: Options, name: str) -> list[Job]:
    group, args = METHODS[name]
    return [Job("search", name, args, group, rate, SEARCH_SEED, o.search_minutes, o.captions, o.images) for rate in o.rates]


def jobs(o: Options, lines: Sequence[Line]) -> list[Job]:
    """All that can be run now, in order: base, searches, seed after seed, controls; a method's runs follow its whole search."""
    rate = {name: chosen(lines, search(o, name)) for name in o.methods}
    out = [Job("base", "", {}, 0, 0.0, 0, 0.0, o.captions, o.images), *(job for name in o.methods for job in search(o, name))]
    for kind, seed in [*(("run", seed) for seed in o.seeds), *(("control", seed) for seed in o.seeds[:1] if o.controls)]:
        out += [
            Job(kind, name, METHODS[name][1], METHODS[name][0], lr, seed, o.minutes, o.captions, o.images)
            for name, lr in rate.items()
            if lr is not None
        ]
    return out
