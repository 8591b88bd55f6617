"""A data set, on the hub or on disk -> entries. Its rows are streamed once, and their pictures are saved as files."""

import json
import shlex
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

from spinlite.config.settings import Source
from spinlite.data.captions import BESIDE, TABLES, captions_in_json
from spinlite.data.cells import PREFERRED, Columns, find_columns, read_cell
from spinlite.data.looks import Progress
from spinlite.data.pictures import ENDINGS, ending_of
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError
from spinlite.runs.disk import write_bytes
from spinlite.runs.files import fingerprint, fingerprint_bytes

MODULES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".zip": "imagefolder"}  # by a file's ending
AGAIN = "run the same command again: it continues from there"
SAVE_SECONDS = 10.0  # of fetching that an interrupted run may lose
TIED, UNLABELLED = "with both pictures equally preferred, left out", "without a label, left out"
Row = tuple[str, str, list[str], str]  # (picture file, file it was preferred to, captions, why the row is left out)


def list_dataset(source: Source, found: Survey, pairs: bool, cache: Path, progress: Progress, under: str = "") -> list[Entry]:
    """The rows of a data set as entries; with `pairs`, rows in Pick-a-Pic's layout also give the rejected picture.

    Pictures are saved in `cache`; an interrupted fetch continues where it stopped. Raises SpinliteError if the data set or its
    columns can't be read.
    """
    identity = (source.dataset, source.subset, source.split, source.image_column, source.caption_column, pairs)
    folder = cache / "datasets" / fingerprint(*identity)
    try:
        rows, version = _open(source)
    except ConnectionError as error:
        kept = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        if not kept:
            raise SpinliteError(f"{source.dataset}: {error}", fix="check data.dataset and the network connection") from None
        when = time.strftime("%Y-%m-%d", time.localtime(kept[-1].stat().st_mtime))
        found.note(f"can't be reached, so the copy fetched on {when} is used", str(source.dataset))
        rows, version = None, kept[-1].stem
    index = _Index(folder / f"{version}.jsonl", source, pairs)
    lines = index.fill(rows, progress)
    if len(lines) != source.limit:
        _name_unlisted(Path(str(source.dataset)).expanduser(), [image for image, *_ in lines], found, under)
    origin = f"column {index.columns.text}"
    return [e for n, line in enumerate(lines, 1) if (e := _entry(n, line, origin, folder, found, under))]


def _entry(number: int, row: Row, origin: str, folder: Path, found: Survey, under: str) -> Entry | None:
    image, lose, captions, left_out = row
    name = f"{under}row {number}"
    if left_out:
        found.leave_out(left_out, name)
        return None
    loser = folder / lose if lose else None
    return Entry(folder / image, name, tuple(captions), origin if captions else "", Fraction(1), loser)


def _name_unlisted(place: Path, images: Sequence[str], found: Survey, under: str) -> None:
    """Name the pictures of a local folder or zip that lie among those of the data set's rows, but are in none."""
    names: list[str] = []
    if place.is_dir():
        listed = {path for image in images if (path := Path(image).resolve()).is_relative_to(place.resolve())}
        beside = {path for folder in {path.parent for path in listed} for path in folder.iterdir()}
        unlisted = (path for path in beside - listed if not path.name.startswith("."))
        names = [path.relative_to(place.resolve()).as_posix() for path in unlisted]
    elif place.suffix.lower() == ".zip" and place.is_file():
        with zipfile.ZipFile(place) as file:
            inside = [name for name in _pictures(file.namelist()) if not PurePath(name).name.startswith((".", "__"))]
            if len(inside) > len(images):
                keys = {PurePath(image).stem for image in images}
                names = [name for name in inside if fingerprint_bytes(file.read(name)) not in keys]
    for name in sorted(_pictures(names)):
        found.leave_out("in the data set's folder, but in none of its rows, not used", under + name)


def _pictures(names: Sequence[str]) -> list[str]:
    return [name for name in names if PurePath(name).suffix.lower() in ENDINGS]


def _refuse_captions_beside(place: Path) -> None:
    """Raises SpinliteError for a folder or zip with a caption beside each picture, which the library can't read."""
    if place.is_dir():
        names = [path.relative_to(place).as_posix() for path in place.rglob("*")]
        fix = f"type --data {shlex.quote(str(place))} instead of data.dataset"
    elif place.suffix.lower() == ".zip" and place.is_file():
        with zipfile.ZipFile(place) as file:
            names = file.namelist()
        fix = "unpack it, then name the folder: --data FOLDER"
    else:
        return
    pictures = {str(PurePath(name).with_suffix("")) for name in _pictures(names)}
    texts = {str(PurePath(name).with_suffix("")) for name in names if name.lower().endswith(BESIDE)}
    if pictures & texts and not any(PurePath(name).name.lower() in TABLES for name in names):
        raise SpinliteError(f"{place} has captions beside its pictures, which are read from a plain folder alone", fix=fix)


def _open(source: Source) -> tuple[Any, str]:
    """(rows as a stream, a hash of this version of the data set)."""
    import datasets  # takes 2 s to import: only for those who use it
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what matters comes as an error
    WebDataset.DECODERS.pop("pth", None)  # PyTorch's files are pickles: never opened
    place = Path(str(source.dataset)).expanduser()
    builder: Any
    try:
        _refuse_captions_beside(place)
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
                problem = f"{place} is no data set: such files end in {', '.join(MODULES)}"
                raise SpinliteError(problem, fix=f"for a folder of pictures type --data {shlex.quote(str(place.parent))}")
            builder = datasets.load_dataset_builder(kind, data_files={source.split: str(place)})
        else:
            builder = datasets.load_dataset_builder(str(place) if place.is_dir() else str(source.dataset), source.subset)
        version = _stamp(place) if place.exists() else builder.hash
        return builder.as_streaming_dataset(source.split).decode(False), version
    except (ConnectionError, SpinliteError):
        raise
    except Exception as error:  # the library, its readers and the network raise anything
        problem = f"{source.dataset} can't be read: {' '.join(str(error).split())}"
        raise SpinliteError(problem, fix="check data.dataset, data.subset and data.split") from None


def _stamp(place: Path) -> str:
    """A hash that changes when a file of a local data set changes."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    stats = [(path.relative_to(place).as_posix(), path.stat()) for path in files]
    return fingerprint(str(place.resolve()), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


class _Index:
    """A file with a line for each fetched row, and now and then a line with the position of the stream.

    Rows after the last position line belong to an interrupted fetch; they are fetched again.
    """

    def __init__(self, path: Path, source: Source, pairs: bool) -> None:
        self.path, self.source, self.pairs = path, source, pairs
        self.rows: list[Row] = []
        self.columns = Columns("", None)
        self._state: Any = None
        self._ended, self._size, self._saved = False, 0, 0  # bytes up to the last position line, rows in them
        self._read()

    def _read(self) -> None:
        size = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            try:
                parsed = json.loads(line)
            except ValueError:
                break
            size += len(line)
            if isinstance(parsed, dict):
                self.columns, self._state, self._ended = Columns(**parsed["columns"]), parsed["state"], parsed["ended"]
                self._size, self._saved = size, len(self.rows)
            else:
                self.rows.append(tuple(parsed))
        del self.rows[self._saved :]

    def fill(self, rows: Any, progress: Progress) -> list[Row]:
        """Fetch the missing rows, and return all; at most `source.limit`."""
        limit = self.source.limit
        if rows is not None and not self._ended and (limit is None or len(self.rows) < limit):
            try:
                if self._state is None:
                    self.columns = find_columns(rows, self.source, self.pairs)
                else:
                    rows.load_state_dict(self._state)
                self._fetch(rows, progress)
            except (SpinliteError, OSError):
                raise
            except Exception as error:  # the library and its readers raise anything
                problem = f"{self.source.dataset} can't be read beyond row {len(self.rows)}: {' '.join(str(error).split())}"
                place = Path(str(self.source.dataset)).expanduser()
                plain = f"type --data {shlex.quote(str(place))} instead of data.dataset: it names the rows that can't be used"
                has_table = any((place / name).is_file() for name in TABLES)
                raise SpinliteError(problem, fix=plain if has_table else AGAIN) from None
        return self.rows[:limit]

    def _fetch(self, rows: Any, progress: Progress) -> None:
        known = rows.info.splits[self.source.split].num_examples if rows.info.splits else 0
        began = time.monotonic()
        for row in rows:
            self.rows.append(self._save_row(row))
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

    def _save_row(self, row: Mapping[str, Any]) -> Row:
        """Save the pictures of a row as files; returns what the index keeps of it."""
        captions = list(captions_in_json(row[self.columns.text])) if self.columns.text else []
        if not self.columns.pair:
            return self._save_picture(row[self.columns.image]), "", captions, ""
        first, second, label_0, label_1 = (row[name] for name in PREFERRED)
        if label_0 is None or label_1 is None or row.get("has_label") is False:
            return "", "", [], UNLABELLED
        if label_0 == label_1:
            return "", "", [], TIED
        win, lose = (first, second) if label_0 > label_1 else (second, first)
        return self._save_picture(win), self._save_picture(lose) if self.pairs else "", captions, ""

    def _save_picture(self, cell: Any) -> str:
        """The path of a cell's picture: its own if it is a local file, else a new file beside the index, named by content."""
        content = read_cell(cell, Path(str(self.source.dataset)).expanduser())
        if isinstance(content, str):
            return content
        key = fingerprint_bytes(content)
        place = f"{key[:2]}/{key}{ending_of(content)}"
        full = self.path.parent / place
        if not (full.exists() and full.stat().st_size == len(content)):
            full.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(full, content)
        return place
