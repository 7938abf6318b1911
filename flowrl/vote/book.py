"""Writing votes down: a line is on the disk before anyone is told that it counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from flowrl.folder import sync
from flowrl.rewards.votes.book import Entry, entries


@dataclass(frozen=True)
class Book:
    """A book open for writing by one process. held: its lines so far, in order."""

    path: Path
    file: BufferedRandom
    held: list[Entry]

    def add(self, entry: Entry) -> None:
        """Append a line and wait until the disk has it. A line that could not be written whole is taken out again.

        Raises: OSError with a sentence.
        """
        end = self.file.seek(0, os.SEEK_END)
        torn = b""
        if end:
            self.file.seek(end - 1)
            # a line torn by a kill must not swallow this one
            torn = b"" if self.file.read(1) == b"\n" else b"\n"
        try:
            self.file.write(torn + entry.line())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            os.ftruncate(self.file.fileno(), end)
            raise OSError(f"{self.path} could not be written: {error.strerror}; free space, then vote again") from error
        self.held.append(entry)


def opened(path: Path) -> Book:
    """The book, made if there is none.

    Raises: BlockingIOError if another process writes to it; OSError if it cannot be written.
    """
    new = not path.exists()
    file = path.open("a+b")
    _claim(path, file)
    if new:
        sync(path.parent)
    return Book(path, file, entries(path))


def _claim(path: Path, file: BufferedRandom) -> None:
    """Held until the process ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BlockingIOError(f"{path} is being written to by another flowrl vote; use that one, or stop it first") from error
