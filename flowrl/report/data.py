"""What a run folder says, read leniently: every missing or broken piece becomes a sentence instead of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flowrl.folder import RunFolder

Json = dict[str, Any]
STAGES = ("rollout", "decode", "reward", "train")


@dataclass(frozen=True)
class Pair:
    """One held-out image before and after. A file is None if it is not there or not yet made; a score is None if there is none."""

    prompt: str
    task: str | None
    before: Path | None
    after: Path | None
    before_score: float | None
    after_score: float | None


@dataclass(frozen=True)
class Run:
    """A run as far as its folder tells. sheets: (label, file) of the contact sheets in the order they were made."""

    path: Path
    result: Json
    rows: list[Json]
    config: Json
    pairs: list[Pair]
    sheets: list[tuple[str, Path]]
    missing: list[str]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of the rows that have this metric."""
        points = [(float(r["iteration"]), v) for r in self.rows if (v := number(r.get(key))) is not None]
        return [x for x, _ in points], [y for _, y in points]


def number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        return float(value)
    return None


def table(value: object) -> Json:
    """A mapping with text keys, else an empty one."""
    return {str(k): v for k, v in cast(Mapping[Any, Any], value).items()} if isinstance(value, Mapping) else {}


def score(value: object) -> tuple[float | None, float | None, float | None]:
    """(score, low, high) of {"score", "low", "high"} or of a bare number."""
    if isinstance(value, Mapping):
        said = table(value)
        return number(said.get("score")), number(said.get("low")), number(said.get("high"))
    return number(value), None, None


def read(path: Path) -> Run:
    """Raises: FileNotFoundError if there is no such folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give the folder of a run, as printed when it started.")
    missing: list[str] = []
    rows = RunFolder(path).rows()
    result = _result(path, rows, missing)
    config = _config(path, missing)
    if not rows:
        missing.append("metrics.jsonl has no rows, so there are no curves: the run stopped before its first iteration was done.")
    pairs = _pairs(path, missing)
    sheets = _sheets(path / "samples")
    if not pairs and not sheets:
        missing.append("samples/ has no images.")
    return Run(path, result, rows, config, pairs, sheets, missing)


def _result(path: Path, rows: list[Json], missing: list[str]) -> Json:
    try:
        return table(json.loads((path / "result.json").read_text()))
    except FileNotFoundError:
        done = f" after {len(rows)} {'iteration' if len(rows) == 1 else 'iterations'}" if rows else ""
        missing.append(f"There is no result.json: the run is still going or was interrupted{done}. Figures are from metrics.jsonl.")
    except (ValueError, OSError) as error:
        missing.append(f"result.json cannot be read ({error}).")
    return {}


def _config(path: Path, missing: list[str]) -> Json:
    import yaml

    try:
        return table(yaml.safe_load((path / "run.yaml").read_text()))
    except FileNotFoundError:
        missing.append("There is no run.yaml, so the configuration is unknown.")
    except (yaml.YAMLError, ValueError, OSError) as error:
        missing.append(f"run.yaml cannot be read ({str(error).splitlines()[0]}).")
    return {}


def _pairs(path: Path, missing: list[str]) -> list[Pair]:
    index = path / "samples" / "index.jsonl"
    if not index.exists():
        missing.append("There is no samples/index.jsonl, so images before and after cannot be set side by side.")
        return []
    pairs: list[Pair] = []
    lost = broken = 0
    for line in index.read_text(errors="replace").splitlines():
        try:
            row = table(json.loads(line))
        except ValueError:
            broken += 1
            continue
        before, after = table(row.get("before")), table(row.get("after"))
        task = row.get("task")
        first, last = inside(path, before.get("file")), inside(path, after.get("file"))
        lost += (first is None and bool(before.get("file"))) + (last is None and bool(after.get("file")))
        scores = number(before.get("score")), number(after.get("score"))
        pairs.append(Pair(str(row.get("prompt", "")), None if task is None else str(task), first, last, *scores))
    if lost:
        missing.append(f"{lost} of the images named in samples/index.jsonl are not there.")
    if pairs and not any(p.after for p in pairs):
        missing.append("There are no images after training yet.")
    if broken:
        missing.append(f"{broken} lines of samples/index.jsonl cannot be read.")
    return pairs


def inside(path: Path, name: object) -> Path | None:
    """A file named relative to samples/ or to the run's folder; never one outside of it."""
    if not isinstance(name, str) or not name:
        return None
    home = path.resolve()
    for candidate in ((home / "samples" / name).resolve(), (home / name).resolve()):
        if candidate.is_relative_to(home) and candidate.is_file():
            return candidate
    return None


def _sheets(samples: Path) -> list[tuple[str, Path]]:
    steps = sorted((p for p in samples.glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))
    named = [
        ("before", samples / "before.png"),
        *((f"iteration {int(p.stem)}", p) for p in steps),
        ("after", samples / "after.png"),
    ]
    return [(label, file) for label, file in named if file.is_file()]
