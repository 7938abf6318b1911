"""Files of prompts as rows. One function a format; each streams, and names file and line of what it cannot read."""

from __future__ import annotations

import csv
import difflib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Row = str | dict[str, Any]
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PICTURES = (*IMAGES, ".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi")
"""Images and videos."""
# what may be JSON; NaN and Infinity, which Python reads too, stay text
_JSON = re.compile(r"-?\d.*|true|false|null|[\[{].*", re.DOTALL)
_QUOTED = re.compile(r'"([^"]|"")*"')


@dataclass(frozen=True)
class Table:
    """Rows of one source, numbered as a person would find them.

    rows: (number, a text or a dict); unit: what the number counts ("line", "row", "item").
    columns: names known before the first row. root: the folder image paths are relative to.
    image: the column of images, if the format has one. encoded: cells are text, to be read by `cell`.
    """

    source: str
    unit: str
    rows: Iterable[tuple[int, Row]]
    columns: Sequence[str] | None = None
    root: Path | None = None
    image: str | None = None
    encoded: bool = False


def cell(text: str) -> Any:
    """A metadata cell of CSV or TSV: a number, true, false, null, list or object in JSON is that value, anything else is text.

    >>> [cell(x) for x in ("3", "-1.5e2", "007", "[1, 2]", "{not json}", "true", "")]
    [3, -150.0, '007', [1, 2], '{not json}', True, None]
    """
    if not text:
        return None
    if not _JSON.fullmatch(text.strip()):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; a byte-order mark is dropped. Raises: ValueError with line and byte if not UTF-8."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, byte {error.start + 1}: 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
                ) from None


def text(path: Path) -> Table:
    """A prompt a line; empty lines are skipped."""
    return Table(str(path), "line", ((number, line) for number, line in lines(path) if line.strip()))


def jsonl(path: Path) -> Table:
    """A JSON object or string a line; empty lines are skipped."""

    def rows() -> Iterator[tuple[int, Row]]:
        for number, line in lines(path):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    where = f"{path}, line {number}, character {error.colno}"
                    raise ValueError(f"{where}: not JSON ({error.msg}); write one JSON object a line") from None

    return Table(str(path), "line", rows(), root=path.parent)


def json_list(path: Path) -> Table:
    """One JSON list of objects or strings."""
    whole = "".join(line for _, line in lines(path))
    if not whole.strip():
        return Table(str(path), "item", ())
    try:
        value: Any = json.loads(whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, character {error.colno}: not JSON ({error.msg})") from None
    if not isinstance(value, list):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not a list; write a list of prompts or of objects")
    items = enumerate(cast(list[Row], value), 1)
    return Table(str(path), "item", items, root=path.parent)


def comma(path: Path) -> Table:
    """CSV: a header, then rows quoted as spreadsheets do, where a quoted cell may hold line ends."""
    csv.field_size_limit(1 << 30)  # JSON in a cell may be longer than the module's 128 KiB
    reader = csv.reader((line for _, line in lines(path)), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        start = 1
        try:
            for cells in reader:
                if cells:
                    yield start, cells
                start = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}; check the quotes") from None

    return _headed(path, rows())


def tab(path: Path) -> Table:
    """TSV: a header, then a row a line. A cell that is one quoted string is unquoted; other quotes are part of the text."""

    def bare(text: str) -> str:
        return text[1:-1].replace('""', '"') if _QUOTED.fullmatch(text) else text

    rows = ((number, [bare(text) for text in line.rstrip("\r\n").split("\t")]) for number, line in lines(path) if line.strip())
    return _headed(path, rows)


def _headed(path: Path, cells: Iterator[tuple[int, list[str]]]) -> Table:
    """The first row names the columns; those without a name (a saved index) are dropped."""
    header = next(cells, (1, list[str]()))[1]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"{path}, line 1: the column {twice[0]!r} occurs twice; rename one")

    def rows() -> Iterator[tuple[int, Row]]:
        for number, row in cells:
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {number}: {len(row)} cells, but the header has {len(header)}; quote what holds a separator"
                )
            yield number, {name: value for name, value in zip(header, row, strict=True) if name}

    return Table(str(path), "line", rows(), [name for name in header if name], path.parent, encoded=True)


def parquet(path: Path) -> Table:
    """A parquet file, in batches; columns of bytes (images inside the file) are not read."""
    pq = need("pyarrow.parquet", "pyarrow", f"{path} is a parquet file")
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    names = [field.name for field in file.schema_arrow if "binary" not in str(field.type)]

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        for batch in file.iter_batches(columns=names):
            for row in batch.to_pylist():
                number += 1
                yield number, row

    return Table(str(path), "row", rows(), names, path.parent)


def hub(name: str) -> Table:
    """hf:OWNER/NAME[/CONFIG][:SPLIT], split "train" by default."""
    datasets = need("datasets", "datasets", f"{name} is a Hugging Face dataset")
    path, _, split = name.removeprefix("hf:").partition(":")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3:
        raise ValueError(f"{name!r} is not hf:OWNER/NAME:SPLIT (or hf:OWNER/NAME/CONFIG:SPLIT)")
    try:
        loaded = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train")
    except Exception as error:
        raise ValueError(f"{name} could not be loaded: {error}") from error
    return dataset(loaded, name)


def dataset(value: Any, name: str = "dataset") -> Table:
    """A loaded datasets.Dataset or IterableDataset; images, audio and video inside it are not read."""
    features: dict[str, Any] = dict(value.features or {})
    media = [column for column, feature in features.items() if type(feature).__name__ in ("Image", "Audio", "Video")]
    rows: Iterable[Row] = value.remove_columns(media) if media else value
    return Table(name, "row", enumerate(rows, 1), [column for column in features if column not in media] or None)


def listed(rows: Sequence[Row]) -> Table:
    """A list of texts or dicts."""
    return Table("the list of prompts", "item", enumerate(rows, 1))


def captions(folder: Path) -> Table:
    """Images or videos with captions beside them: photo.png and photo.txt."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        known = "train.txt, train_metadata.jsonl, metadata.jsonl, metadata.csv"
        raise ValueError(f"{folder} holds no prompts: neither {known} nor images ({', '.join(PICTURES)})")

    def rows() -> Iterator[tuple[int, Row]]:
        for number, picture in enumerate(pictures, 1):
            caption = picture.with_suffix(".txt")
            if not caption.is_file():
                raise ValueError(f"{picture} has no caption; write it to {caption.name} beside it")
            words = " ".join(line.strip() for _, line in lines(caption)).strip()
            if not words:
                raise ValueError(f"{caption} is empty; write the caption of {picture.name}")
            yield number, {"text": words, "file_name": picture.name}

    return Table(str(folder), "image", rows(), ["text", "file_name"], folder, "file_name")


FORMATS: dict[str, Callable[[Path], Table]] = {
    ".txt": text,
    ".jsonl": jsonl,
    ".json": json_list,
    ".csv": comma,
    ".tsv": tab,
    ".parquet": parquet,
}


def file(path: Path) -> Table:
    """A file by its extension. Raises: ValueError for an unknown one."""
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        what = f"{path.suffix!r} files" if path.suffix else "a file without an extension"
        raise ValueError(f"{path}: prompts are not read from {what}; use {', '.join(FORMATS)}")
    return reader(path)


def existing(name: str | Path) -> Path:
    """The path, if there is such a file or folder. Raises: FileNotFoundError naming what is there instead."""
    path = Path(name)
    if path.exists():
        return path
    there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "give a file, a folder or hf:OWNER/NAME:SPLIT"
    raise FileNotFoundError(f"there is no file or folder {str(path)!r} (looked in {Path.cwd()}); {hint}")


def need(module: str, package: str, why: str) -> Any:
    """An optional package. Raises: ModuleNotFoundError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{why}, which needs the package {package}; pip install "flowrl-toolkit[data]"') from error
