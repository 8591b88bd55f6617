"""Captions as people keep them: a file beside the picture, or a table of many."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from spinlite.config.settings import Source
from spinlite.errors import SpinliteError

BESIDE = (".txt", ".caption", ".json")  # where several are there, the first is used
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FIELDS = ("caption", "captions", "text", "prompt", "tags")  # of a .json or a table: the first that is there
Note = Callable[[str, str], None]  # (what was seen, in which file)


def captions_beside(path: Path, source: Source) -> tuple[str, ...]:
    """The captions in a file beside a picture. Raises SpinliteError where it can't be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SpinliteError(f"{path.name}: the caption is not UTF-8", fix="save it again as UTF-8") from None
    if path.suffix.lower() == ".json":
        try:
            return captions_in_json(json.loads(text) if text.strip() else "")
        except (ValueError, RecursionError):
            raise SpinliteError(f"{path.name}: the caption is not JSON", fix="mend or remove it") from None
    return _clean(text.splitlines() if source.lines == "each" else [text])


def captions_in_json(value: Any) -> tuple[str, ...]:
    """The captions in what a .json or a table's cell holds: a text, several, tags, or these under a known name."""
    if isinstance(value, Mapping):
        name = next((name for name in FIELDS if value.get(name)), None)
        found = value.get(name) if name else None
        if name == "tags" and isinstance(found, list):
            found = ", ".join(map(str, found))
        return captions_in_json(found)
    if isinstance(value, list):
        return _clean(text for text in value if isinstance(text, str))
    return _clean([value]) if isinstance(value, str) else ()


def read_caption_table(path: Path, note: Note, name: str) -> dict[str, tuple[str, ...]]:
    """A table of captions in the imagefolder convention: `file_name`, beneath the table's folder -> captions.

    A picture may have several rows. Rows that can't be read are noted. Raises SpinliteError where the table can't be.
    """
    found: dict[str, list[str]] = {}
    rows = 0
    try:
        for number, row in enumerate(_rows(path), 1):
            rows += 1
            file = row.get("file_name") if isinstance(row, Mapping) else None
            if not isinstance(file, str):
                note("of a table can't be read, ignored", f"{name} row {number}")
                continue
            found.setdefault(PurePosixPath(file.replace("\\", "/")).as_posix(), []).extend(captions_in_json(row))
    except (OSError, ValueError, pyarrow.ArrowException, csv.Error) as error:
        raise SpinliteError(f"{name} can't be read: {error}", fix="mend it, or use captions beside pictures") from None
    if rows and not any(found.values()):
        columns = f"columns file_name and {' or '.join(FIELDS)}"
        raise SpinliteError(f"{name} holds no captions", fix=f"give it the {columns}, or remove it")
    return {file: tuple(dict.fromkeys(captions)) for file, captions in found.items()}


def _rows(path: Path) -> Iterator[Any]:
    match path.suffix.lower():
        case ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                for line in file:
                    if line.strip():
                        yield _parsed(line)
        case ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        case _:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns = [name for name in file.schema_arrow.names if name in ("file_name", *FIELDS)]
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _clean(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts in one line each, without the blank ones and repeated ones."""
    return tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
