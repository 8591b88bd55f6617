"""Reads captions the way people keep them: a file beside each picture, or one table for many."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spinlite.config.decode import decode
from spinlite.config.settings import Source
from spinlite.errors import SpinliteError

BESIDE = (".txt", ".caption", ".json")  # if several exist, the first is used
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FIELDS = ("caption", "captions", "text", "prompt", "tags")  # of a .json or a table: the first that exists
JOINED = "rows of a table have more cells than its header, read as one caption (put captions with commas in quotes)"
SURPLUS = "rows of a table have more cells than its header, ignored (put captions with commas in quotes)"
Note = Callable[[str, str], None]  # called with (what was seen, in which file)


def captions_beside(path: Path, source: Source) -> tuple[str, ...]:
    """The captions in a file beside a picture. Raises SpinliteError if it can't be read."""
    text = read_text(path, f"{path.name}: the caption")
    if path.suffix.lower() == ".json":
        try:
            return captions_in_json(json.loads(text) if text.strip() else "")
        except (ValueError, RecursionError):
            raise SpinliteError(f"{path.name}: the caption is not JSON", fix="fix or remove it") from None
    return _clean(text.splitlines() if source.lines == "each" else [text])


def read_text(path: Path, name: str) -> str:
    """The text of a file. Raises SpinliteError, which calls the file `name`, if it can't be read or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpinliteError(f"{name} can't be read: {error.strerror}", fix="make it readable, or write it anew") from None
    return decode(content, name)


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

    A picture may have several rows. Unreadable rows are noted and ignored. Names are written with slashes and without detours;
    those of files outside the folder begin with "../". Raises SpinliteError if the table can't be read.
    """
    captions_of: dict[str, list[str]] = {}
    rows = 0
    try:
        for number, row in enumerate(_rows(path, name), 1):
            rows += 1
            file = row.get("file_name") if isinstance(row, Mapping) else None
            if not isinstance(file, str):
                note("rows of a table can't be read and are ignored", f"{name} row {number}")
                continue
            for surplus in row.get(None) or ():
                note(surplus, f"{name} row {number}")
            captions_of.setdefault(_place(file, path.parent), []).extend(captions_in_json(row))
    except (OSError, ValueError, csv.Error) as error:
        raise SpinliteError(f"{name} can't be read: {error}", fix="fix it, or write a .txt beside each picture") from None
    if rows and not any(captions_of.values()):
        problem = f"{name} has no captions" if captions_of else f"{name} names no pictures: no row has a file_name"
        fix = f"give it the columns file_name and caption (or {', '.join(FIELDS[1:])}), or remove it"
        raise SpinliteError(problem, fix=fix)
    return {file: tuple(dict.fromkeys(captions)) for file, captions in captions_of.items()}


def _place(file: str, folder: Path) -> str:
    """The name of a file as it is written in a table's row -> its path in the table's folder."""
    place = os.path.join(os.path.abspath(folder), file.replace("\\", "/"))
    for start in (os.path.abspath(folder), os.path.realpath(folder)):
        with contextlib.suppress(ValueError):  # another drive
            inside = Path(os.path.relpath(place, start)).as_posix()
            if not inside.startswith("../"):
                return inside
    return file


def _rows(path: Path, name: str) -> Iterator[Any]:
    match path.suffix.lower():
        case ".jsonl":
            yield from (_parse_line(line) for line in read_text(path, name).split("\n") if line.strip())
        case ".csv":
            text = read_text(path, name)
            header = text.partition("\n")[0]
            delimiter = max(",;\t", key=header.count)  # a table program writes semicolons where commas stand in numbers
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            yield from (_mend(row, delimiter) for row in reader)
        case _:
            yield from _rows_of_parquet(path)


def _rows_of_parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in ("file_name", *FIELDS)]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def _mend(row: dict[Any, Any], delimiter: str) -> dict[Any, Any]:
    """A row of a csv; of one with more cells than the header, the rest is read as part of a caption in the last column."""
    surplus = row.pop(None, [])
    if not any(cell.strip() for cell in surplus):
        return row
    last = list(row)[-1]
    if last not in FIELDS:
        return {"file_name": row.get("file_name"), None: [SURPLUS]}
    return row | {last: delimiter.join([row[last], *surplus]), None: [JOINED]}


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _clean(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text on one line, without blank and repeated texts."""
    return tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
