"""The run folder: what a run leaves behind, written so that a kill at any moment leaves whole files.

run.yaml  result.json  metrics.jsonl  report.html  samples/  checkpoints/  lora/
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

MARKS = ("run.yaml", "metrics.jsonl", "result.json", "checkpoints")


@runtime_checkable
class _Array(Protocol):
    """What tensors and numpy values have in common; neither library is imported here."""

    def tolist(self) -> Any: ...


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become None, tensors and arrays numbers or lists, paths text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    # Before float: numpy's float64 is one.
    if isinstance(value, _Array):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: give numbers, text, lists, dicts, tensors or None.")


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk, so that a rename that follows is safe against power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> Path:
    """Replace a file in one step: readers see the old or the new content, never a part.

    Raises: OSError with a sentence if the folder cannot take it; the old file is then untouched.
    """
    # A fixed name, so that the litter of a killed write is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _sentence(
            error, f"{path} could not be written ({len(data)} bytes): {error.strerror}. Free space or choose another folder."
        ) from error
    return path


def _sentence(cause: OSError, text: str) -> OSError:
    """An error of the same kind whose text is just the sentence, with the cause's errno."""
    error = type(cause)(text)
    error.errno = cause.errno
    return error


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. `create` for a new run, `open` for one to resume, score or report. made: the folders that `create` made for
    it, the innermost first."""

    path: Path
    made: tuple[Path, ...] = field(default=(), compare=False, repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Make the folder of a new run; parents are made too. An existing folder is fine unless it holds a run.

        Raises: OSError if something is in the way or nothing can be written there; FileExistsError if it holds a run.
        """
        path = Path(path)
        _no_file_in_the_way(path)
        held = [mark for mark in MARKS if _present(path / mark)]
        if held:
            raise FileExistsError(
                f"{path} already holds a run ({', '.join(held)}): resume that run, choose another folder with "
                "--set run.folder=..., or delete it first."
            )
        folder = cls(path, tuple(one for one in (path / "samples", path, *path.parents) if not one.exists()))
        try:
            _writable(path)
        except BaseException:
            folder.forget()
            raise
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The folder of an existing run.

        Raises: FileNotFoundError if there is no run in it.
        """
        path = Path(path)
        _no_file_in_the_way(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist: give the folder of a run, as printed when it started.")
        if not any(_present(path / mark) for mark in MARKS):
            raise FileNotFoundError(f"{path} holds no run (none of {', '.join(MARKS)}): give the folder that has run.yaml in it.")
        return cls(path)

    def forget(self) -> None:
        """Take `create` back: what it made goes, if there is still nothing in it; what was there before stays as it was."""
        for empty in self.made:
            with suppress(OSError):
                empty.rmdir()

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lora(self) -> Path:
        return self.path / "lora"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row of metrics, handed to the operating system before this returns.

        Raises: ValueError if the row has no whole number "iteration"; OSError if the disk is full.
        """
        iteration = plain(row.get("iteration"))
        if type(iteration) is not int:
            raise ValueError(f"a row of metrics needs a whole number 'iteration', got {iteration!r}.")
        line = json.dumps(plain({**row, "iteration": iteration}), allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            with self.metrics.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                # A line torn by a kill must not swallow this one.
                if end and file.seek(end - 1) is not None and file.read(1) != b"\n":
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise _sentence(
                error, f"{self.metrics} could not be appended to: {error.strerror}. Free space, then resume the run."
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows of metrics, in order; torn lines are skipped."""
        return [row for row, _ in self._lines()]

    def cut(self, iteration: int) -> None:
        """Forget the rows of this iteration and later: what a resumed run will write again. Kept lines stay byte for byte."""
        if self.metrics.exists():
            write_atomic(self.metrics, b"".join(line for row, line in self._lines() if row["iteration"] < iteration))

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        return write_atomic(
            self.path / name, json.dumps(plain(data), indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        )

    def write_yaml(self, name: str, data: Mapping[str, Any]) -> Path:
        import yaml

        text = yaml.safe_dump(plain(data), sort_keys=False, allow_unicode=True, width=120)
        return write_atomic(self.path / name, text.encode())

    def _lines(self) -> list[tuple[dict[str, Any], bytes]]:
        found: list[tuple[dict[str, Any], bytes]] = []
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        for line in content.splitlines(keepends=True):
            row = _row(line)
            if row is not None:
                found.append((row, line))
        return found


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("iteration")) is int else None


def _present(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _no_file_in_the_way(path: Path) -> None:
    for part in (path, *path.parents):
        if part.is_file():
            raise NotADirectoryError(
                f"{part} is a file, so {path} cannot be a run's folder: choose another folder or move the file."
            )


def _writable(path: Path) -> None:
    probe = path / ".flowrl-probe"
    try:
        (path / "samples").mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"flowrl")
        probe.unlink()
    except OSError as error:
        raise _sentence(
            error,
            f"{path} cannot be written to ({error.strerror}): choose another folder with --set run.folder=... or "
            "change its permissions.",
        ) from error
