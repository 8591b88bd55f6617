"""A data set, of the hub or at hand -> entries. Its rows are streamed, and their pictures laid down as files, once."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from spinlite.config.settings import Source
from spinlite.data.captions import FIELDS, captions_in_json
from spinlite.data.looks import Progress
from spinlite.data.pictures import ending_of
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError
from spinlite.runs.store import fingerprint, fingerprint_bytes, write_bytes

MODULES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".zip": "imagefolder"}  # of a single file
TEXTS = (*FIELDS, "txt", "json")  # columns of captions, by name: the first that is there (the last two are WebDataset's)
PREFERRED = ("jpg_0", "jpg_1", "label_0", "label_1")  # Pick-a-Pic's columns: two pictures, and how much each was preferred
REACHED = ("hf", "zip", "tar")  # where a row's picture may lie but in itself and in a file; nowhere else on the network
GLANCED = 8  # rows by which columns are known
SAVE_SECONDS = 10.0  # of fetching that a cut-off run may lose
TIED, UNLABELLED = "with both pictures preferred alike, left out", "without a label, left out"
Row = tuple[str, str, list[str], str]  # (picture, the one it was preferred to, captions, what is to be noted)


@dataclass(frozen=True)
class _Columns:
    """Where a row has its picture and captions; where it has a second picture, `image` is chosen by labels."""

    image: str
    text: str | None
    pair: bool = False


def list_dataset(source: Source, found: Survey, pairs: bool, cache: Path, progress: Progress, under: str = "") -> list[Entry]:
    """The rows of a data set as entries; with `pairs`, those of Pick-a-Pic's layout with the picture they were preferred to.

    Pictures lie in `cache` from then on; a fetch that was cut off goes on. Raises SpinliteError where the data set or its
    columns can't be read.
    """
    asked = (source.dataset, source.subset, source.split, source.image_column, source.caption_column, pairs)
    shelf = cache / "datasets" / fingerprint(*asked)
    try:
        rows, version = _open(source)
    except ConnectionError as error:
        kept = sorted(shelf.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        if not kept:
            raise SpinliteError(f"{source.dataset}: {error}", fix="check the name, a path to it, or the network") from None
        when = time.strftime("%Y-%m-%d", time.localtime(kept[-1].stat().st_mtime))
        found.note(f"can't be reached, used as it was fetched on {when}", str(source.dataset))
        rows, version = None, kept[-1].stem
    index = _Index(shelf / f"{version}.jsonl", source, pairs)
    lines = index.filled(rows, progress)
    origin = f"column {index.columns.text}"
    return [e for n, line in enumerate(lines, 1) if (e := _entry(n, line, origin, shelf, found, under))]


def _entry(number: int, row: Row, origin: str, shelf: Path, found: Survey, under: str) -> Entry | None:
    image, lose, captions, noted = row
    name = f"{under}row {number}"
    if noted:
        found.leave_out(noted, name)
        return None
    return Entry(shelf / image, name, tuple(captions), origin if captions else "", Fraction(1), shelf / lose if lose else None)


def _open(source: Source) -> tuple[Any, str]:
    """(rows as a stream, what names this version of them)."""
    import datasets  # 2 s, for those who use it
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    WebDataset.DECODERS.pop("pth", None)  # PyTorch's files are pickles: never opened
    place = Path(str(source.dataset)).expanduser()
    builder: Any
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(place)
            if isinstance(loaded, dict):
                if source.split not in loaded:
                    raise ValueError(f"Bad split: {source.split}. Available splits: {list(loaded)}")
                loaded = loaded[source.split]
            return loaded.to_iterable_dataset().decode(False), _stamp(place)
        if place.is_file():
            kind = MODULES.get(place.suffix.lower())
            if kind is None:
                raise ValueError(f"a file must end in {', '.join(MODULES)}")
            builder = datasets.load_dataset_builder(kind, data_files={source.split: str(place)})
        else:
            builder = datasets.load_dataset_builder(str(place) if place.is_dir() else str(source.dataset), source.subset)
        version = _stamp(place) if place.exists() else builder.hash
        return builder.as_streaming_dataset(source.split).decode(False), version
    except ConnectionError:
        raise
    except Exception as error:  # of the library, of what it reads, of the network
        problem = f"{source.dataset} can't be read: {' '.join(str(error).split())}"
        raise SpinliteError(problem, fix="check data.dataset, data.subset and data.split") from None


def _stamp(place: Path) -> str:
    """What changes when a file of a local data set does."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    stats = [(path.relative_to(place).as_posix(), path.stat()) for path in files]
    return fingerprint(str(place.resolve()), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


class _Index:
    """A file of the rows that were fetched: a line each, and now and then one that says where the stream goes on.

    What stands behind the last such line is of a fetch that was cut off, and is fetched again.
    """

    def __init__(self, path: Path, source: Source, pairs: bool) -> None:
        self.path, self.source, self.pairs = path, source, pairs
        self.rows: list[Row] = []
        self.columns = _Columns("", None)
        self._state: Any = None
        self._ended, self._size, self._saved = False, 0, 0  # bytes that count, rows in them
        self._read()

    def _read(self) -> None:
        size = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            try:
                found = json.loads(line)
            except ValueError:
                break
            size += len(line)
            if isinstance(found, dict):
                self.columns, self._state, self._ended = _Columns(**found["columns"]), found["state"], found["ended"]
                self._size, self._saved = size, len(self.rows)
            else:
                self.rows.append(tuple(found))
        del self.rows[self._saved :]

    def filled(self, rows: Any, progress: Progress) -> list[Row]:
        """Its rows, after those that were missing are fetched; `source.limit` of them at the most."""
        limit = self.source.limit
        if rows is not None and not self._ended and (limit is None or len(self.rows) < limit):
            try:
                if self._state is None:
                    self.columns = _columns(rows, self.source, self.pairs)
                else:
                    rows.load_state_dict(self._state)
                self._fetch(rows, progress)
            except (SpinliteError, OSError):
                raise
            except Exception as error:  # of the library, of what it reads
                problem = f"{self.source.dataset} can't be read beyond row {len(self.rows)}: {' '.join(str(error).split())}"
                raise SpinliteError(problem, fix="run the same command again: it goes on from there") from None
        return self.rows[:limit]

    def _fetch(self, rows: Any, progress: Progress) -> None:
        known = rows.info.splits[self.source.split].num_examples if rows.info.splits else 0
        began = time.monotonic()
        for row in rows:
            self.rows.append(self._laid(row))
            progress(len(self.rows), max(len(self.rows), self.source.limit or known))
            if len(self.rows) == self.source.limit:
                break
            if time.monotonic() - began > SAVE_SECONDS:
                self._save(rows.state_dict())
                began = time.monotonic()
        else:
            self._ended = True
        self._save(rows.state_dict())

    def _save(self, state: Any) -> None:
        self._state = state
        lines = [*self.rows[self._saved :], {"columns": asdict(self.columns), "state": state, "ended": self._ended}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(self._size)
            file.truncate()
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self._size, self._saved = file.tell(), len(self.rows)

    def _laid(self, row: Mapping[str, Any]) -> Row:
        """What is kept of a row, after its pictures are laid down."""
        captions = list(captions_in_json(row[self.columns.text])) if self.columns.text else []
        if not self.columns.pair:
            return self._file(row[self.columns.image]), "", captions, ""
        one, other, its, others = (row[name] for name in PREFERRED)
        if its is None or others is None or row.get("has_label") is False:
            return "", "", [], UNLABELLED
        if its == others:
            return "", "", [], TIED
        win, lose = (one, other) if its > others else (other, one)
        return self._file(win), self._file(lose) if self.pairs else "", captions, ""

    def _file(self, cell: Any) -> str:
        """Where a cell's picture lies: as it is, if it is a file here; else beside the index, by what it holds."""
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
        if content is None and path:
            if "://" not in path:
                return path
            if all("://" not in part or part.split("://")[0] in REACHED for part in path.split("::")):
                with fsspec.open(path) as file:
                    content = file.read()  # pyright: ignore[reportAttributeAccessIssue]
        content = content or b""
        key = fingerprint_bytes(content)
        place = f"{key[:2]}/{key}{ending_of(content)}"
        full = self.path.parent / place
        if not (full.exists() and full.stat().st_size == len(content)):
            full.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(full, content)
        return place


def _columns(rows: Any, source: Source, pairs: bool) -> _Columns:
    """The columns to use: as set, or as the first rows show them. Raises SpinliteError where that is open."""
    first = list(islice(rows, GLANCED))
    names = list(dict.fromkeys(name for row in first for name in row))
    values = {name: next((row[name] for row in first if row.get(name) is not None), None) for name in names}
    pictures = [name for name, value in values.items() if _is_picture(value)]
    texts = [name for name, value in values.items() if captions_in_json(value) and not name.startswith("__")]
    named = [name for name in TEXTS if name in texts]
    text = source.caption_column or (named[0] if named else texts[0] if len(texts) == 1 else None)
    pair = source.image_column is None and set(PREFERRED) <= set(names)
    if pairs and not pair:
        problem = f"{source.dataset} holds no pairs: its columns are {', '.join(names)}"
        raise SpinliteError(problem, fix=f"a data set of pairs has the columns {', '.join(PREFERRED)} and caption")
    image = source.image_column or (PREFERRED[0] if pair else pictures[0] if len(pictures) == 1 else None)
    for name, setting, which in ((image, "image_column", pictures), (text, "caption_column", texts)):
        if name is None and (which or setting == "image_column"):
            kind = "pictures" if setting == "image_column" else "captions"
            said = f"{kind} may be in {' or '.join(which)}" if which else f"no {kind} in its columns {', '.join(names)}"
            raise SpinliteError(f"{source.dataset}: {said}", fix=f"set data.{setting}")
        if name is not None and name not in names:
            problem = f"{source.dataset} has no column {name!r}: it has {', '.join(names)}"
            raise SpinliteError(problem, fix=f"set data.{setting} to one of these")
    return _Columns(str(image), text, pair)


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and {"bytes", "path"} <= set(value))
