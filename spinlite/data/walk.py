"""Walks through folders, and finds names that are the same to people though not byte by byte."""

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from spinlite.data.records import Survey


class Tree:
    """A folder with its subfolders. Hidden files and folders are passed over; what can't be opened is noted in `found`.

    Links to folders are followed, unless they lead to where the walk has been or will be. `under` stands in front of names.
    """

    def __init__(self, root: Path, found: Survey, under: str = "") -> None:
        self.root, self._found, self._under = root, found, under
        self._roots = [os.path.realpath(root)]  # of the walk, and of the links that it followed
        self._listed: dict[Path, tuple[list[Path], list[Path]]] = {}

    def name(self, path: Path) -> str:
        """How a path is called in messages."""
        return self._under + within(path, self.root)

    def files(self, folder: Path) -> list[Path]:
        """The files of a folder, by name, without hidden ones (such as the `._name.png` in archives made on a Mac)."""
        return self._list(folder)[0]

    def folders(self, folder: Path) -> list[Path]:
        """The subfolders of a folder, by name, also those that are links."""
        return self._list(folder)[1]

    def walk(self, folder: Path) -> Iterator[tuple[Path, list[Path]]]:
        """(folder, its files) for a folder and all its subfolders."""
        yield folder, self.files(folder)
        for sub in self.branches(folder):
            yield from self.walk(sub)

    def branches(self, folder: Path) -> Iterator[Path]:
        """The subfolders that a walk goes on to."""
        return filter(self._may_follow, self.folders(folder))

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        if folder not in self._listed:
            files, folders = [], []
            try:
                with os.scandir(folder) as inside:
                    for item in (item for item in inside if not item.name.startswith(".")):
                        if _is_folder(item):
                            folders.append(folder / item.name)
                        elif item.is_symlink() or item.is_file():  # also a link that leads nowhere; a pipe would block
                            files.append(folder / item.name)
                        else:
                            self._found.leave_out("neither a file nor a folder, not used", self.name(folder / item.name))
            except OSError as error:
                if folder == self.root:
                    raise
                self._found.leave_out("folders can't be opened", f"{self.name(folder)} ({error.strerror})")
            self._listed[folder] = sorted(files), sorted(folders)
        return self._listed[folder]

    def _may_follow(self, folder: Path) -> bool:
        real = os.path.realpath(folder)
        if real == os.path.join(os.path.realpath(folder.parent), folder.name):
            return True  # no link
        if any(_is_inside(real, root) or _is_inside(root, real) for root in self._roots):
            self._found.leave_out("links to a folder that is read anyway, not followed", self.name(folder))
            return False
        self._roots.append(real)
        return True


def within(path: Path, folder: Path) -> str:
    """The path as it is called in a folder, with slashes."""
    return path.relative_to(folder).as_posix()


def pair_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Name -> the same name among the `others`: byte by byte, or else in Unicode's form NFC, or else in folded case.

    The last two only where a single name on each side is left. Macs write é as two characters where other systems write one.
    """
    pairs = {name: name for name in set(names) & set(others)}
    for form in (_composed, _folded):
        left, right = _by_form(set(names) - pairs.keys(), form), _by_form(set(others) - set(pairs.values()), form)
        pairs |= {left[key][0]: right[key][0] for key in left.keys() & right.keys() if len(left[key]) == len(right[key]) == 1}
    return pairs


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def is_there(path: Path) -> bool:
    """Whether there is such a file. A name that no file can have, because it is too long or holds a zero byte, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())


def _by_form(names: Collection[str], form: Callable[[str], str]) -> dict[str, list[str]]:
    formed: dict[str, list[str]] = {}
    for name in names:
        formed.setdefault(form(name), []).append(name)
    return formed


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
