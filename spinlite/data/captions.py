"""Reads captions the way people keep them: a file beside each picture, or one table for many."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from spinlite.config.settings import Source
from spinlite.errors import SpinliteError

BESIDE = (".txt", ".caption", ".json")  # if several exist, the first is used
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FIELDS = ("caption", "captions", "text", "prompt", "tags")  # of a .json or a table: the first that exists
Note = Callable[[str, str], None]  # called with (what was seen, in which file)


def captions_beside(path: Path, source: Source) -> tuple[str, ...]:
    """The captions in a file beside a picture. Raises SpinliteError if it can't be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpinliteError(f"{path.name}: the caption is not UTF-8", fix="save it again as UTF-8") from None
    if path.suffix.lower() == ".json":
        try:
            return captions_in_json(json.loads(text) if text.strip() else "")
        except (ValueError, RecursionError):
            raise SpinliteError(f"{path.name}: the caption is not JSON", fix="fix or remove it") from None
    return _clean(text.splitlines() if source.lines == "each" else [text])


def captions_in_json(value: Any) -> tuple[str, ...]:
    """The captions in a .json or a table cell: a text, a list of texts, tags, or an object with one of these in FIELDS."""
    if isinstance(value, Mapping):
        name = next((name for name in FIELDS if value.get(name)), None)
        content = value.get(name) if name else None
        if name == "tags" and isinstance(content, list):
            content = ", ".join(map(str, content))
        return captions_in_json(content)
    if isinstance(value, list):
        return _clean(text for text in value if isinstance(text, str))
    return _clean([value]) if isinstance(value, str) else ()


def read_caption_table(path: Path, note: Note, name: str) -> dict[str, tuple[str, ...]]:
    """Read a table of captions in the imagefolder convention: `file_name`, relative to the table's folder -> captions.

    A picture may have several rows. Unreadable rows are noted and ignored. Raises SpinliteError if the table can't be read.
    """
    captions_of: dict[str, list[str]] = {}
    rows = 0
    try:
        for number, row in enumerate(_rows(path), 1):
            rows += 1
            file = row.get("file_name") if isinstance(row, Mapping) else None
            if not isinstance(file, str):
                note("rows of a table can't be read and are ignored", f"{name} row {number}")
                continue
            captions_of.setdefault(PurePosixPath(file.replace("\\", "/")).as_posix(), []).extend(captions_in_json(row))
    except (OSError, ValueError, pyarrow.ArrowException, csv.Error) as error:
        raise SpinliteError(f"{name} can't be read: {error}", fix="fix it, or write a .txt beside each picture") from None
    if rows and not any(captions_of.values()):
        columns = f"columns file_name and {' or '.join(FIELDS)}"
        raise SpinliteError(f"{name} has no captions", fix=f"give it the {columns}, or remove it")
    return {file: tuple(dict.fromkeys(captions)) for file, captions in captions_of.items()}


def _rows(path: Path) -> Iterator[Any]:
    match path.suffix.lower():
        case ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                for line in file:
                    if line.strip():
                        yield _parse_line(line)
        case ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        case _:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns = [name for name in file.schema_arrow.names if name in ("file_name", *FIELDS)]
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _clean(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text on one line, without blank and repeated texts."""
    return tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
