"""A folder of pictures -> entries: finds the pictures, and the captions of each."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from spinlite.config.settings import Source
from spinlite.data.captions import BESIDE, TABLES, captions_beside, read_caption_table
from spinlite.data.masks import is_label, masks_among
from spinlite.data.pictures import ENDINGS
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError

REPEATS = re.compile(r"(\d{1,4})_(.+)")  # kohya's folders: "10_my cat" is repeats and a caption
GLANCE = 20_000  # files in subfolders that are looked at, only to say that they are not used


def list_pairs(folder: Path, source: Source, found: Survey, under: str = "") -> list[Entry]:
    """The pairs of a folder with `win/` and `lose/`, which have the same file names. Captions lie beside the winners.

    Raises SpinliteError if one of the two is missing.
    """
    win, lose = folder / "win", folder / "lose"
    for needed in (win, lose):
        if not needed.is_dir():
            raise SpinliteError(f"there is no folder {needed}", fix="check the path after --data")
    for _, files in _walk(lose) if source.recursive else [(lose, files_of(lose))]:
        for path in filter(is_picture, files):
            if not (win / path.relative_to(lose)).exists():
                found.leave_out("in lose/ without a picture of the same name in win/, ignored", under + _within(path, lose))
    return [replace(e, lose=lose / e.path.relative_to(win)) for e in list_folder(win, source, found, under)]


def list_folder(folder: Path, source: Source, found: Survey, under: str = "") -> list[Entry]:
    """The pictures of a folder with their captions, sorted by name.

    Subfolders are read with data.recursive, or if they have kohya's layout. Names in messages begin with `under`. Files that
    are not used are noted in `found`. Raises SpinliteError if a table of captions can't be read.
    """
    return _Folder(folder, source, found, under).entries()


class _Folder:
    """One listing: the folder, and the tables of captions found in it and in its subfolders."""

    def __init__(self, root: Path, source: Source, found: Survey, under: str) -> None:
        self.root, self.source, self.found, self.under = root, source, found, under
        self.tables: dict[Path, tuple[str, dict[str, tuple[str, ...]]]] = {}  # folder -> (table's name, its rows)

    def entries(self) -> list[Entry]:
        top = files_of(self.root)
        repeats = {} if any(map(is_picture, top)) else _repeat_folders(self.root)
        if self.source.recursive:
            layers = _walk(self.root)
        else:
            layers = iter([(self.root, top), *((sub, files_of(sub)) for sub in repeats)])
        every: list[Entry] = []
        for place, files in layers:
            self._read_tables(place, files)
            count, caption = next((repeats[p] for p in (place, *place.parents) if p in repeats), (1, ""))
            every += self._list_layer(place, files, Fraction(count), caption)
        for place, (name, rows) in self.tables.items():
            self.found.orphans += [f"{file} ({name})" for file in rows if not (place / file).is_file()]
        if not self.source.recursive and not repeats:
            self._report_subfolders()
        return every

    def _name(self, path: Path) -> str:
        return self.under + _within(path, self.root)

    def _read_tables(self, place: Path, files: Sequence[Path]) -> None:
        for path in (path for path in files if path.name.lower() in TABLES):
            name = self._name(path)
            if place in self.tables:
                self.found.note(f"beside {self.tables[place][0]}, not used", name)
            else:
                self.tables[place] = (name, read_caption_table(path, self.found.note, name))

    def _list_layer(self, place: Path, files: Sequence[Path], weight: Fraction, caption: str) -> list[Entry]:
        """The entries of one folder. `caption`, unless empty, is for pictures without one of their own."""
        texts: dict[str, list[Path]] = {}  # a picture's name, with or without its ending -> its caption files
        for ending in BESIDE:
            for path in (path for path in files if path.suffix.lower() == ending):
                texts.setdefault(path.stem, []).append(path)
        taken: set[str] = set()
        entries, masks = [], masks_among(files)
        labels = {mask.stem.lower() for mask in masks.values()}
        for path in files:
            if is_picture(path):
                taken |= {path.stem, path.name}
                beside = texts.get(path.stem, []) + texts.get(path.name, [])
                captions, origin, fault = self._captions(path, beside)
                if caption and not captions and not fault:
                    captions, origin = (caption,), "folder name"
                entries.append(Entry(path, self._name(path), captions, origin, weight, None, fault, mask=masks.get(path.stem)))
            elif is_label(path):
                if path.stem.lower() not in labels:
                    self.found.leave_out("labels (-masklabel, -condlabel) that no picture here uses", self._name(path))
            elif path.suffix.lower() not in BESIDE and path.name.lower() not in TABLES:
                self.found.leave_out("with an ending that is not a picture's, not used", self._name(path))
        self.found.orphans += sorted(self._name(p) for stem in texts.keys() - taken for p in texts[stem])
        return entries

    def _captions(self, path: Path, beside: Sequence[Path]) -> tuple[tuple[str, ...], str, str]:
        """(captions, where they come from, what is wrong); from a table if it has any, else from a file beside the picture."""
        for place in path.parents:
            name, rows = self.tables.get(place, ("", {}))
            if captions := rows.get(_within(path, place), ()):
                if beside:
                    both = f"with a caption in {name}, which is used, and another in a file beside it"
                    self.found.note(both, self._name(path))
                return captions, Path(name).name, ""
            if place == self.root:
                break
        if not beside:
            return (), "", ""
        if len(beside) > 1:
            endings = [text.suffix.lower() for text in beside]
            self.found.note(f"with captions in {' and '.join(endings)}; {endings[0]} is used", self._name(path))
        try:
            captions = captions_beside(beside[0], self.source)
            return captions, beside[0].suffix.lower() if captions else "", ""
        except SpinliteError as error:
            return (), "", error.problem

    def _report_subfolders(self) -> None:
        """Note the pictures in subfolders, which are not used."""
        count = 0
        for sub in _subfolders(self.root):
            for _, files in _walk(sub):
                count += len(files)
                for path in filter(is_picture, files):
                    self.found.leave_out("in subfolders, not used (data.recursive = true uses them)", self._name(path))
                if count > GLANCE:
                    return


def files_of(folder: Path) -> list[Path]:
    """The files of a folder, sorted by name, without hidden ones (such as the `._name.png` in archives made on a Mac)."""
    with os.scandir(folder) as inside:
        return sorted(folder / item.name for item in inside if not item.name.startswith(".") and item.is_file())


def is_picture(path: Path) -> bool:
    """Whether the file has the ending of a picture, and is not another picture's mask."""
    return path.suffix.lower() in ENDINGS and not is_label(path)


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its files) for a folder and all subfolders, by name, without hidden ones and links to folders."""
    yield folder, files_of(folder)
    for sub in _subfolders(folder):
        yield from _walk(sub)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as inside:
        subs = [folder / item.name for item in inside if not item.name.startswith(".") and item.is_dir(follow_symlinks=False)]
    return sorted(subs)


def _repeat_folders(folder: Path) -> dict[Path, tuple[int, str]]:
    """kohya's layout: folder -> (repeats, caption); empty if a subfolder with pictures is named otherwise."""
    repeats = {}
    for sub in _subfolders(folder):
        if match := REPEATS.fullmatch(sub.name):
            repeats[sub] = (max(1, int(match[1])), " ".join(match[2].replace("_", " ").split()))
        elif any(map(is_picture, files_of(sub))):
            return {}
    return repeats
