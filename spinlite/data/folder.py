"""A folder of pictures -> entries: which pictures there are, and which captions are theirs."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from spinlite.config.settings import Source
from spinlite.data.captions import BESIDE, TABLES, captions_beside, read_caption_table
from spinlite.data.pictures import ENDINGS
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError

REPEATS = re.compile(r"(\d{1,4})_(.+)")  # kohya's folders: how often, and of what
GLANCE = 20_000  # files of subfolders that are looked at to say what is not used


def list_pairs(folder: Path, source: Source, found: Survey, under: str = "") -> list[Entry]:
    """The pairs of a folder with `win/` and `lose/`, with the same file names; captions lie beside the winners."""
    win, lose = folder / "win", folder / "lose"
    for needed in (win, lose):
        if not needed.is_dir():
            raise SpinliteError(f"there is no folder {needed}", fix="check the path after --data")
    for _, files in _walk(lose) if source.recursive else [(lose, files_of(lose))]:
        for path in filter(is_picture, files):
            if not (win / path.relative_to(lose)).exists():
                found.leave_out("in lose/ without a picture of that name in win/, ignored", under + _within(path, lose))
    return [replace(e, lose=lose / e.path.relative_to(win)) for e in list_folder(win, source, found, under)]


def list_folder(folder: Path, source: Source, found: Survey, under: str = "") -> list[Entry]:
    """The pictures of a folder with their captions, by name; of its subfolders too, where asked for or in kohya's layout.

    Names begin with `under`. What is there and not used is noted in `found`.
    """
    return _Folder(folder, source, found, under).entries()


class _Folder:
    """One listing under way: the folder, and the tables of captions that were met on the way down."""

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
            self._tables(place, files)
            count, what = next((repeats[p] for p in (place, *place.parents) if p in repeats), (1, ""))
            every += self._layer(place, files, Fraction(count), what)
        for place, (name, rows) in self.tables.items():
            self.found.orphans += [f"{file} ({name})" for file in rows if not (place / file).is_file()]
        if not self.source.recursive and not repeats:
            self._say_subfolders()
        return every

    def _name(self, path: Path) -> str:
        return self.under + _within(path, self.root)

    def _tables(self, place: Path, files: Sequence[Path]) -> None:
        for path in (path for path in files if path.name.lower() in TABLES):
            name = self._name(path)
            if place in self.tables:
                self.found.note(f"beside {self.tables[place][0]}, not used", name)
            else:
                self.tables[place] = (name, read_caption_table(path, self.found.note, name))

    def _layer(self, place: Path, files: Sequence[Path], weight: Fraction, what: str) -> list[Entry]:
        """The entries of one folder. `what` is the caption of pictures without one, if there is such a thing."""
        texts: dict[str, list[Path]] = {}  # the name of a picture, with its ending or without -> its captions
        for ending in BESIDE:
            for path in (path for path in files if path.suffix.lower() == ending):
                texts.setdefault(path.stem, []).append(path)
        taken: set[str] = set()
        entries = []
        for path in files:
            if is_picture(path):
                taken |= {path.stem, path.name}
                mine = texts.get(path.stem, []) + texts.get(path.name, [])
                captions, origin, fault = self._captions(path, mine)
                if what and not captions and not fault:
                    captions, origin = (what,), "folder name"
                entries.append(Entry(path, self._name(path), captions, origin, weight, None, fault))
            elif path.suffix.lower() not in BESIDE and path.name.lower() not in TABLES:
                self.found.leave_out("with an ending that is no picture's, not used", self._name(path))
        self.found.orphans += sorted(self._name(p) for stem in texts.keys() - taken for p in texts[stem])
        return entries

    def _captions(self, path: Path, mine: Sequence[Path]) -> tuple[tuple[str, ...], str, str]:
        """(captions, where they are from, what is wrong): a table's first, then a file beside the picture."""
        for place in path.parents:
            name, rows = self.tables.get(place, ("", {}))
            if captions := rows.get(_within(path, place), ()):
                if mine:
                    self.found.note(f"with a caption in {name}, which is used, and another beside", self._name(path))
                return captions, Path(name).name, ""
            if place == self.root:
                break
        if not mine:
            return (), "", ""
        if len(mine) > 1:
            endings = [text.suffix.lower() for text in mine]
            self.found.note(f"with captions in {' and '.join(endings)}, of which {endings[0]} is used", self._name(path))
        try:
            captions = captions_beside(mine[0], self.source)
            return captions, mine[0].suffix.lower() if captions else "", ""
        except SpinliteError as error:
            return (), "", error.problem

    def _say_subfolders(self) -> None:
        """Pictures beneath the folder that are not used are never passed over in silence."""
        looked = 0
        for sub in _subfolders(self.root):
            for _, files in _walk(sub):
                looked += len(files)
                for path in filter(is_picture, files):
                    self.found.leave_out("in subfolders, not used (data.recursive = true uses them)", self._name(path))
                if looked > GLANCE:
                    return


def files_of(folder: Path) -> list[Path]:
    """Its files by name, without hidden ones (among them the `._name.png` that archives made on a Mac bring along)."""
    with os.scandir(folder) as inside:
        return sorted(folder / item.name for item in inside if not item.name.startswith(".") and item.is_file())


def is_picture(path: Path) -> bool:
    """Whether its ending is a picture's."""
    return path.suffix.lower() in ENDINGS


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its files) of a folder and all beneath it, by name, without hidden ones and links to folders."""
    yield folder, files_of(folder)
    for sub in _subfolders(folder):
        yield from _walk(sub)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as inside:
        found = [folder / item.name for item in inside if not item.name.startswith(".") and item.is_dir(follow_symlinks=False)]
    return sorted(found)


def _repeat_folders(folder: Path) -> dict[Path, tuple[int, str]]:
    """kohya's layout: folder -> (repeats, name); none where a subfolder with pictures is called otherwise."""
    found = {}
    for sub in _subfolders(folder):
        if match := REPEATS.fullmatch(sub.name):
            found[sub] = (max(1, int(match[1])), " ".join(match[2].replace("_", " ").split()))
        elif any(map(is_picture, files_of(sub))):
            return {}
    return found
