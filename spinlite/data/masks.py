"""Which mask belongs to which picture: OneTrainer's `name-masklabel.png` beside `name.png`, kohya's folder of masks, or
kohya's alpha_mask, the picture's own transparency.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from spinlite.config.settings import Source
from spinlite.data.pictures import ENDINGS
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError

MASK = "-masklabel"
LABELS = (MASK, "-condlabel")  # OneTrainer's files beside a picture that are not pictures; the second are for inpainting
STRAY = "labels (-masklabel, -condlabel) that no picture here uses"
Find = Callable[[str], Path | None]  # the name of a picture, without its ending -> its mask


def add_masks(entries: Sequence[Entry], source: Source, found: Survey) -> list[Entry]:
    """The pictures among the entries, with their masks: one beside the picture, else from the source's folder of masks, else,
    with `alpha_mask`, the picture itself. Masks and other labels are no pictures.

    Raises SpinliteError if the folder of masks does not exist.
    """
    labels = {entry.path: entry.name for entry in entries if entry.path.stem.lower().endswith(LABELS)}
    beside = _finder((_name(path)[: -len(MASK)], path) for path in labels if path.stem.lower().endswith(MASK))
    pictures = [replace(e, mask=beside(_name(e.path))) if labels else e for e in entries if e.path not in labels]
    used = {entry.mask for entry in pictures}
    for path, name in labels.items():
        if path not in used:
            found.leave_out(STRAY, name)
    if source.mask_folder is not None:
        pictures = _from_folder(pictures, Path(source.mask_folder), found)
    return [replace(e, mask=e.path) if source.alpha_mask and not e.mask else e for e in pictures]


def _from_folder(entries: Sequence[Entry], folder: Path, found: Survey) -> list[Entry]:
    if not folder.is_dir():
        raise SpinliteError(f"there is no folder {folder} with masks", fix="add --set data.mask_folder=FOLDER")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS]
    find = _finder((_name(path.relative_to(folder)).removesuffix(MASK), path) for path in files)
    given = []
    for entry in entries:
        if entry.path.absolute().is_relative_to(folder.absolute()):
            continue  # a mask that recursive = true took for a picture
        parts = entry.path.with_suffix("").parts
        mask = entry.mask or next(filter(None, (find("/".join(parts[i:])) for i in range(len(parts)))), None)
        if mask is None:
            found.note(f"without a mask in {folder}: learned as a whole", entry.name)
        given.append(replace(entry, mask=mask))
    return given


def _name(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _finder(masks: Iterable[tuple[str, Path]]) -> Find:
    """Finds masks by the names of their pictures: byte by byte, or else whatever the case and the form of Unicode."""
    exact = dict(masks)
    folded = {_fold(name): path for name, path in exact.items()}
    return lambda name: exact.get(name) or folded.get(_fold(name))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
