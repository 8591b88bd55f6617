"""A folder of pictures -> entries: finds the pictures, and the captions of each."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from spinlite.config.settings import Source
from spinlite.data.captions import BESIDE, TABLES, captions_beside, read_caption_table
from spinlite.data.clips import VIDEOS
from spinlite.data.pictures import ENDINGS
from spinlite.data.records import Entry, Survey
from spinlite.data.walk import Tree, is_there, pair_names, within
from spinlite.errors import SpinliteError

REPEATS = re.compile(r"(\d{1,4})_(.*)")  # kohya's folders: "10_my cat" is repeats and a caption
GLANCE = 20_000  # files in subfolders that are looked at, only to say that they are not used
BESIDE_KOHYA = "beside kohya's folders, not used"
DEEPER = "in subfolders, not used (data.recursive = true uses them)"


def list_pairs(folder: Path, source: Source, found: Survey, under: str = "", clips: bool = False) -> list[Entry]:
    """The pairs of a folder with `win/` and `lose/`, which have the same file names. Captions lie beside the winners.

    Raises SpinliteError if one of the two is missing.
    """
    win, lose = folder / "win", folder / "lose"
    for needed in (win, lose):
        if not needed.is_dir():
            raise SpinliteError(f"there is no folder {needed}", fix="check the path after --data")
    entries = list_folder(win, source, found, under, clips)
    tree = Tree(lose, found, under)
    files = [path for _, files in tree.walk(lose) for path in files] if source.recursive else tree.files(lose)
    losers = {within(path, lose): path for path in files if is_picture(path, clips)}
    losers |= {name: lose / name for e in entries if e.path.is_dir() and (lose / (name := within(e.path, win))).is_dir()}
    winners = {within(entry.path, win): entry for entry in entries}
    partner = pair_names(winners, losers)
    for name in losers.keys() - partner.values():
        found.leave_out("in lose/ without a picture of the same name in win/, ignored", under + name)
    for path in (path for path in files if not is_picture(path, clips)):
        found.leave_out("in lose/, but not a picture, not used", tree.name(path))
    for path in filter(is_picture, Tree(folder, found, under).files(folder)):
        found.leave_out("beside win/ and lose/, not used", under + path.name)
    return [replace(e, lose=losers.get(partner.get(name, ""), lose / name)) for name, e in winners.items()]


def list_folder(folder: Path, source: Source, found: Survey, under: str = "", clips: bool = False) -> list[Entry]:
    """The pictures of a folder with their captions, sorted by name; with `clips` video files too, and folders of frames.

    A folder with a caption beside it, as a file has one, holds the frames of one clip.

    Subfolders are read with data.recursive, or if they have kohya's layout. Names in messages begin with `under`. Files that
    are not used are noted in `found`. Raises SpinliteError if a table of captions can't be read.
    """
    return _Folder(folder, source, found, under, clips).entries()


class _Folder:
    """One listing: the folder, and the captions of its pictures that stand in tables."""

    def __init__(self, root: Path, source: Source, found: Survey, under: str, clips: bool) -> None:
        self.root, self.source, self.found, self.clips = root, source, found, clips
        self.tree = Tree(root, found, under)
        self._names: dict[Path, set[str]] = {}  # folder -> names in it that have a caption
        self.in_tables: dict[Path, tuple[str, tuple[str, ...]]] = {}  # picture -> (table's name, captions)

    def entries(self) -> list[Entry]:
        repeats = self._repeats()
        top = self.tree.files(self.root)
        if self.source.recursive:
            layers = [layer for layer in self.tree.walk(self.root) if not self._is_clip(layer[0])]
        else:
            layers = [(self.root, top), *((sub, self.tree.files(sub)) for sub in repeats)]
        if self.clips:
            layers = [(place, [*files, *filter(self._is_clip, self.tree.folders(place))]) for place, files in layers]
        if repeats:
            self._leave_out(BESIDE_KOHYA, filter(self._is_picture, layers[0][1]))
            layers[0] = self.root, [path for path in top if not self._is_picture(path)]
        self._read_tables(layers)
        every: list[Entry] = []
        for place, files in layers:
            count, caption = next((repeats[p] for p in (place, *place.parents) if p in repeats), (1, ""))
            if count:
                every += self._list_layer(files, Fraction(count), caption)
            else:
                self._leave_out("in folders with 0 repeats, not used", filter(self._is_picture, files))
        if not self.source.recursive:
            self._report_subfolders(repeats, len(every))
        return every

    def _repeats(self) -> dict[Path, tuple[int, str]]:
        """kohya's layout: folder -> (repeats, caption). Empty if most pictures lie beside such folders."""
        repeats: dict[Path, tuple[int, str]] = {}
        inside, beside = 0, self._count(self.root)
        for sub in self.tree.folders(self.root):
            if match := REPEATS.fullmatch(sub.name):
                repeats[sub] = int(match[1]), " ".join(match[2].split())
                inside += self._count(sub) if repeats[sub][0] else 0
            elif self.source.recursive:
                beside += self._count(sub)
        if self.source.recursive and beside:  # every picture is read, so none is left out for the sake of the layout
            for sub in repeats:
                self.found.note("named like kohya's folders, read as plain ones because of pictures beside them", sub.name)
            return {}
        return repeats if inside > beside else {}

    def _count(self, folder: Path) -> int:
        return sum(map(self._is_picture, (*self.tree.files(folder), *(self.tree.folders(folder) if self.clips else ()))))

    def _is_picture(self, path: Path) -> bool:
        return is_picture(path, self.clips) or self._is_clip(path)

    def _is_clip(self, folder: Path) -> bool:
        """Whether a folder holds the frames of one clip: there are several, and a caption of the folder's name beside it."""
        if not self.clips or folder == self.root or folder not in self.tree.folders(folder.parent):
            return False
        return folder.name in self._captioned(folder.parent) and sum(map(is_picture, self.tree.files(folder))) > 1

    def _captioned(self, place: Path) -> set[str]:
        """Names that have a caption in a folder: in a file of that name, or in a row of a table."""
        if place not in self._names:
            files = self.tree.files(place)
            tables = [path for path in files if path.name.lower() in TABLES]
            rows = read_caption_table(tables[0], lambda *_: None, self.tree.name(tables[0])) if tables else {}
            self._names[place] = {path.stem for path in files if path.suffix.lower() in BESIDE} | set(rows)
        return self._names[place]

    def _leave_out(self, why: str, paths: Iterable[Path]) -> None:
        for path in paths:
            self.found.leave_out(why, self.tree.name(path))

    def _read_tables(self, layers: Sequence[tuple[Path, Sequence[Path]]]) -> None:
        """Find the pictures' captions in the tables of their folder and of those above it; the nearest table counts."""
        tables: dict[Path, tuple[str, dict[str, tuple[str, ...]]]] = {}  # folder -> (table's name, its rows)
        for place, files in layers:
            some = [path for path in files if path.name.lower() in TABLES]
            for path in some[:1]:
                tables[place] = self.tree.name(path), read_caption_table(path, self.found.note, self.tree.name(path))
            for path in some[1:]:
                self.found.note(f"beside {self.tree.name(some[0])}, not used", self.tree.name(path))
        inside: dict[Path, dict[str, Path]] = {place: {} for place in tables}
        for folder, files in layers:
            for place in tables.keys() & {folder, *folder.parents}:
                inside[place] |= {within(path, place): path for path in files if self._is_picture(path)}
        for place, (name, rows) in tables.items():
            row_of = pair_names(inside[place], rows)
            self.in_tables |= {inside[place][own]: (name, rows[row]) for own, row in row_of.items() if rows[row]}
            self._report_rows(place, name, rows.keys() - row_of.values())

    def _report_rows(self, place: Path, table: str, rows: Iterable[str]) -> None:
        """Name the rows whose pictures were not found."""
        for row in sorted(rows):
            there = is_there(place / row)
            if there and not _is_within(row):
                self.found.leave_out("named by a table, but outside of its folder, not used", f"{row} ({table})")
            elif not (there and is_picture(Path(row), self.clips)):  # those that are there are in an unread subfolder
                self.found.orphans.append(f"{row} ({table})")

    def _list_layer(self, files: Sequence[Path], weight: Fraction, caption: str) -> list[Entry]:
        """The entries of one folder. `caption`, unless empty, is for pictures without one of their own."""
        texts: dict[str, list[Path]] = {}  # a picture's name, with or without its ending -> its caption files
        for ending in BESIDE:
            for path in (path for path in files if path.suffix.lower() == ending):
                texts.setdefault(path.stem, []).append(path)
        pictures = list(filter(self._is_picture, files))
        text_of = pair_names({name for path in pictures for name in (path.stem, path.name)}, texts)
        entries = []
        for path in pictures:
            names = dict.fromkeys((path.stem, path.name))
            beside = [text for name in names if name in text_of for text in texts[text_of[name]]]
            captions, origin, fault = self._captions(path, beside)
            if caption and not captions and not fault:
                captions, origin = (caption,), "folder name"
            entries.append(Entry(path, self.tree.name(path), captions, origin, weight, None, fault))
        others = (path for path in files if not self._is_picture(path) and path.suffix.lower() not in BESIDE)
        odd = (path for path in others if path.name.lower() not in TABLES)
        self._leave_out("with an ending that is not read here, not used", odd)
        unread = (text for stem in texts.keys() - text_of.values() for text in texts[stem])
        self.found.orphans += sorted(map(self.tree.name, unread))
        return entries

    def _captions(self, path: Path, beside: Sequence[Path]) -> tuple[tuple[str, ...], str, str]:
        """(captions, where they come from, what is wrong); from a table if it has any, else from a file beside the picture."""
        if path in self.in_tables:
            name, captions = self.in_tables[path]
            if beside:
                both = f"with a caption in {name}, which is used, and another in a file beside it"
                self.found.note(both, self.tree.name(path))
            return captions, Path(name).name, ""
        if not beside:
            return (), "", ""
        if len(beside) > 1:
            endings = [text.suffix.lower() for text in beside]
            self.found.note(f"with captions in {' and '.join(endings)}; {endings[0]} is used", self.tree.name(path))
        try:
            captions = captions_beside(beside[0], self.source)
            return captions, beside[0].suffix.lower() if captions else "", ""
        except SpinliteError as error:
            return (), "", error.problem

    def _report_subfolders(self, repeats: Collection[Path], used: int) -> None:
        """Name the pictures in subfolders that are not read, and where they lie if they are more than those that are read."""
        looked = 0
        places: Counter[Path] = Counter()
        branches = self.tree.branches(self.root)
        for sub, place, files in ((branch, *layer) for branch in branches for layer in self.tree.walk(branch)):
            if looked > GLANCE:
                self.found.leave_out(DEEPER, f"and maybe more: only {looked:,} files were looked at")
                break
            if place not in repeats and not self._is_clip(place):
                looked += len(files)
                self._leave_out(BESIDE_KOHYA if repeats and sub not in repeats else DEEPER, filter(self._is_picture, files))
                places[place.parent if REPEATS.fullmatch(place.name) else place] += self._count(place)
        if places.total() > used:
            self.found.elsewhere += sorted(place for place, count in places.items() if count and place != self.root)


def is_picture(path: Path, clips: bool = False) -> bool:
    """Whether the file has the ending of a picture, or with `clips` of a video."""
    return path.suffix.lower() in ENDINGS or (clips and path.suffix.lower() in VIDEOS)


def _is_within(row: str) -> bool:
    return not (row.startswith("../") or Path(row).is_absolute())
