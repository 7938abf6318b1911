"""Checkpoints that survive a kill, a full disk and a damaged file.

checkpoints/000012/ holds state.pt and manifest.json (sha256 and size of each file, iteration, score). It is written under a hidden
name, flushed and renamed, so a visible one is whole; the hash tells later damage. Hidden names are litter once no writer holds
the lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from flowrl.folder import sync
from flowrl.storage import Sink, storable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Entry:
    """A checkpoint that looks whole from outside: its manifest reads and its files have the sizes it says."""

    path: Path
    iteration: int
    score: float | None


def save(folder: Path | str, iteration: int, state: Mapping[str, Any], score: float | None, keep: int) -> Path:
    """Write checkpoints/<iteration> in one step, then drop old ones: the last `keep`, the best score and this one stay.

    state: tensors, numbers, text, None, and lists, tuples and dicts of them; tensors are stored detached, a view without the rest
    of its storage. A NaN score counts as none. Saving an iteration again replaces it.

    Raises: TypeError naming the key that cannot be stored; OSError with needed and free bytes if the disk is full: the checkpoints
    before are then as they were.
    """
    if iteration < 0 or keep < 1:
        raise ValueError(f"a checkpoint needs iteration >= 0 and keep >= 1, got iteration {iteration} and keep {keep}.")
    stored = storable(state, "state")
    home = Path(folder) / "checkpoints"
    final, temporary = home / f"{iteration:06d}", home / f".new-{iteration:06d}-{uuid.uuid4().hex}"
    score = float(score) if score is not None and math.isfinite(score) else None
    needed = 0
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home, wait=True):
            _clean(home)
            temporary.mkdir()
            with (temporary / "state.pt").open("wb") as file:
                sink = Sink(file)
                torch.save(stored, cast(BinaryIO, sink))
                needed = sink.size
                sink.close()
            manifest = {
                "format": 1,
                "iteration": iteration,
                "score": score,
                "files": {"state.pt": {"sha256": sink.hash.hexdigest(), "size": sink.size}},
            }
            with (temporary / "manifest.json").open("w") as file:
                json.dump(manifest, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            sync(temporary)
            _install(temporary, final)
            _prune(home, final, keep)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error, home, needed) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load(path: Path | str) -> tuple[int, dict[str, Any]]:
    """One checkpoint, verified against its manifest: (iteration, state on the CPU).

    Raises: ValueError saying what is damaged.
    """
    path = Path(path)
    manifest = _manifest(path)
    for name, said in manifest["files"].items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                raise ValueError(f"{name} does not have the sha256 its manifest says")
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad file
        raise ValueError(
            f"state.pt cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    return manifest["iteration"], state


def load_latest(folder: Path | str) -> tuple[int, dict[str, Any], Path]:
    """The newest checkpoint that is whole: (iteration, state on the CPU, its path). Damaged ones are skipped with a warning.

    Raises: FileNotFoundError if there is none.
    """
    home = Path(folder) / "checkpoints"
    if home.is_dir():
        with _lock(home, wait=False) as alone:
            if alone:
                _clean(home)
    damaged: list[tuple[Path, str]] = []
    for path in _visible(home):
        try:
            iteration, state = load(path)
        except (ValueError, OSError) as error:
            damaged.append((path, str(error)))
            continue
        for broken, reason in damaged:
            warnings.warn(f"Checkpoint {broken} is damaged ({reason}) and is skipped; going on from {path}.", stacklevel=2)
        return iteration, state, path
    if damaged:
        told = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
        raise FileNotFoundError(f"No checkpoint in {home} is whole ({told}): start the run again in another folder.")
    raise FileNotFoundError(f"There is no checkpoint in {home}: the run stopped before its first one; start it again.")


def entries(folder: Path | str) -> list[Entry]:
    """Checkpoints that look whole, newest first. Hashes are not checked: that would read everything."""
    found: list[Entry] = []
    for path in _visible(Path(folder) / "checkpoints"):
        try:
            manifest = _manifest(path)
        except (ValueError, OSError):
            continue
        found.append(Entry(path, manifest["iteration"], manifest["score"]))
    return found


def _visible(home: Path) -> list[Path]:
    names = [p for p in home.iterdir() if re.fullmatch(r"\d{6,}", p.name)] if home.is_dir() else []
    return sorted(names, key=lambda p: int(p.name), reverse=True)


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files exist with the sizes it says. Raises ValueError saying what is wrong."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        sizes = {str(name): int(said["size"]) for name, said in manifest["files"].items()}
        whole = manifest["iteration"] == int(path.name) and "state.pt" in sizes and isinstance(manifest["score"], float | None)
    except FileNotFoundError as error:
        raise ValueError("manifest.json is missing") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("manifest.json cannot be read") from error
    if not whole:
        raise ValueError(f"manifest.json is not the one of iteration {int(path.name)}")
    for name, size in sizes.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if (found := (path / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return manifest


@contextmanager
def _lock(home: Path, wait: bool) -> Iterator[bool]:
    """Whether we are alone in the folder: a reader must not take a live writer's files for litter. The system lets go of the lock
    of a killed process. Filesystems without locks tell readers they are not alone, and litter waits for the next save."""
    handle = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def _clean(home: Path) -> None:
    """Remove what killed writes left. A checkpoint that was moved aside and not yet replaced goes back to its place."""
    for path in home.glob(".old-*"):
        final = home / path.name.split("-")[1]
        if not final.exists():
            path.rename(final)
    for pattern in (".new-*", ".old-*"):
        for path in home.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _install(temporary: Path, final: Path) -> None:
    aside = final.with_name(f".old-{final.name}-{uuid.uuid4().hex}")
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(home: Path, written: Path, keep: int) -> None:
    """Damaged ones are neither counted nor dropped. Dropping renames first, so that a kill leaves no half checkpoint in sight."""
    found = entries(home.parent)
    scored = [(e.score, e.iteration, e.path) for e in found if e.score is not None]
    kept = {written, *(e.path for e in found[:keep]), *([max(scored)[2]] if scored else [])}
    for entry in found:
        if entry.path not in kept:
            aside = entry.path.rename(home / f".new-{entry.path.name}-{uuid.uuid4().hex}")
            shutil.rmtree(aside, ignore_errors=True)


def _explained(error: OSError, home: Path, needed: int) -> OSError:
    if error.errno in FULL:
        try:
            free = f"{shutil.disk_usage(home).free} bytes are free"
        except OSError:
            free = "free space unknown"
        text = (
            f"There is no room for a checkpoint in {home} ({error.strerror}): it needs {needed} bytes, {free}. Free "
            "space or lower run.keep, then resume; the earlier checkpoints are untouched."
        )
    else:
        text = f"No checkpoint could be written to {home}: {error.strerror or error}. The earlier checkpoints are untouched."
    explained = OSError(text)
    explained.errno = error.errno
    return explained
