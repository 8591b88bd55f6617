"""The columns of a data set that hold pictures and captions, and the picture in a cell."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from spinlite.config.settings import Source
from spinlite.data.captions import FIELDS, captions_in_json
from spinlite.data.pictures import ENDINGS, ending_of
from spinlite.errors import SpinliteError

TEXTS = (*FIELDS, "txt", "json")  # caption columns by name; the first that exists is used (the last two are WebDataset's)
PREFERRED = ("jpg_0", "jpg_1", "label_0", "label_1")  # Pick-a-Pic's columns: two pictures, and how far each was preferred
REACHED = ("hf", "zip", "tar")  # protocols that a row's picture may be fetched by; a plain file may be read too
GLANCED = 8  # rows that are read to find the columns


@dataclass(frozen=True)
class Columns:
    """The columns with a row's picture and captions. With `pair`, PREFERRED has both pictures, and labels choose `image`."""

    image: str
    text: str | None
    pair: bool = False


def find_columns(rows: Any, source: Source, pairs: bool) -> Columns:
    """The columns to use: as set, or as the first rows show them. Raises SpinliteError if several would do, or none."""
    first = list(islice(rows, GLANCED))
    names = list(dict.fromkeys(name for row in first for name in row))
    values = {name: next((row[name] for row in first if row.get(name) is not None), None) for name in names}
    held = [name for name, value in values.items() if value is not None and not refusal(value)]
    pictures = [name for name in held if not isinstance(values[name], str)] or held  # beside pictures, a path is only a name
    others = [name for name in names if name not in held and not name.startswith("__")]
    texts = [name for name in others if captions_in_json(values[name]) and not _is_address(values[name])]
    named = [name for name in TEXTS if name in texts]
    text = source.caption_column or (named[0] if named else texts[0] if len(texts) == 1 else None)
    pair = source.image_column is None and set(PREFERRED) <= set(names)
    if pairs and not pair:
        problem = f"{source.dataset} has no pairs: its columns are {', '.join(names)}"
        raise SpinliteError(problem, fix=f"a data set of pairs has the columns {', '.join(PREFERRED)} and caption")
    image = source.image_column or (PREFERRED[0] if pair else pictures[0] if len(pictures) == 1 else None)
    addresses = [name for name in names if _is_address(values[name])]
    if image is None and not pictures and addresses:
        raise _refused(source, addresses[0], values[addresses[0]])
    for name, setting, which in ((image, "image_column", pictures), (text, "caption_column", texts)):
        if name is None and (which or setting == "image_column"):
            kind = "pictures" if setting == "image_column" else "captions"
            if not which:
                raise _without_pictures(source, values)
            problem = f"{source.dataset}: {kind} may be in {' or '.join(which)}"
            raise SpinliteError(problem, fix=f"add --set data.{setting}={which[0]}")
        if name is not None and name not in names:
            problem = f"{source.dataset} has no column {name!r}: it has {', '.join(names)}"
            raise SpinliteError(problem, fix=f"set data.{setting} to one of these")
    if not pair and values[str(image)] is not None and refusal(values[str(image)]):
        raise _refused(source, str(image), values[str(image)])
    return Columns(str(image), text, pair)


def refusal(value: Any) -> str:
    """What a cell holds instead of a picture; "" if it holds one, or the path of one."""
    match value:
        case bytes():
            return ""
        case Mapping() if {"bytes", "path"} <= set(value):
            return ""
        case [only]:
            return refusal(only)
        case str() if _is_address(value):
            return "web addresses"
        case str():
            return "" if Path(value).suffix.lower() in ENDINGS or _unpacked(value) else "texts"
    return "numbers" if isinstance(value, int | float) else f"values of the kind {type(value).__name__}"


def read_cell(cell: Any, place: Path) -> bytes | str:
    """The bytes of a cell's picture, or its path if it is a local file. Paths are relative to the data set's `place`."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, str):
        folder = place if place.is_dir() else place.parent
        return _unpacked(cell) or str(folder.resolve() / cell)
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if content is None and path:
        if "://" not in path:
            return path
        if all("://" not in part or part.split("://")[0] in REACHED for part in path.split("::")):
            import fsspec

            with fsspec.open(path) as file:
                content = file.read()  # pyright: ignore[reportAttributeAccessIssue]
    return content or b""


def _refused(source: Source, name: str, value: Any) -> SpinliteError:
    kind = refusal(value)
    fix = "add --set data.image_column=NAME with the column of pictures"
    if kind == "web addresses":
        fix = "download the pictures (the program img2dataset does that), then name their folder: --data FOLDER"
    return SpinliteError(f"{source.dataset}: its column {name!r} holds {kind}, not pictures", fix=fix)


def _without_pictures(source: Source, values: Mapping[str, Any]) -> SpinliteError:
    """The error for a data set whose first rows hold no picture in any column."""
    held = ", ".join(f"{name} holds {'nothing' if value is None else refusal(value)}" for name, value in values.items())
    empty = next((name for name, value in values.items() if value is None), "NAME")
    fix = f"use a data set with pictures; if they only begin further down, add --set data.image_column={empty}"
    return SpinliteError(f"{source.dataset}: no column holds pictures: {held}", fix=fix)


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and "://" in value[:12]


def _unpacked(text: str) -> bytes:
    """The picture that a text holds in base64; b"" if it holds none."""
    head, _, tail = text.partition(",")
    try:
        content = base64.b64decode(tail if head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return content if ending_of(content) != ".bin" else b""
