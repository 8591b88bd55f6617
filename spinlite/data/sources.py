"""The sources of a preset -> entries."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from spinlite.config import PACKAGE, Data, Source
from spinlite.data.folder import list_folder, list_pairs
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError

NO_CAPTION = ("", "file name", "data.caption")  # where the caption is from, of a picture that had none


def entries(settings: Data, pairs: bool, found: Survey) -> list[Entry]:
    """Every picture of every source; with `pairs`, every pair. Raises SpinliteError where a source is not there."""
    sources = sources_of(settings)
    if not sources:
        raise SpinliteError("no pictures to learn from are named", fix="add --data FOLDER (name.png + name.txt)")
    every = []
    for source in sources:
        if source.uncaptioned == "fixed" and not source.caption.strip():
            raise SpinliteError('data.uncaptioned = "fixed" needs a caption', fix='set data.caption = "a photo", or the like')
        folder = _folder(source)
        under = f"{folder.name}/" if len(sources) > 1 else ""
        listed = (list_pairs if pairs else list_folder)(folder, source, found, under)
        every += [_captioned(entry, source, found) for entry in listed]
    return every


def sources_of(settings: Data) -> list[Source]:
    """[data] itself, if it names a folder, and every [[data.sources]]."""
    return [*([settings] if settings.folder is not None else []), *settings.sources]


def where(settings: Data) -> str:
    """The sources, for people."""
    return " and ".join(str(source.folder) for source in sources_of(settings))


def _folder(source: Source) -> Path:
    if source.folder is None:
        raise SpinliteError("a [[data.sources]] names no folder", fix='add folder = "FOLDER" to it')
    folder = PACKAGE / "demo" / "fluent" if source.folder == "demo" else Path(source.folder)
    if not folder.is_dir():
        raise SpinliteError(f"there is no folder {folder}", fix="check the path after --data")
    return folder


def _captioned(entry: Entry, source: Source, found: Survey) -> Entry:
    """The entry with its source's weight, its rule for missing captions and its trigger."""
    captions, origin, fault = entry.captions, entry.origin, entry.fault
    if not captions and not fault:
        match source.uncaptioned:
            case "name":
                captions, origin = tuple(filter(None, [_name_as_caption(entry.path)])), "file name"
                fault = "" if captions else f"{entry.name}: the file name is not UTF-8"
            case "fixed":
                captions, origin = (" ".join(source.caption.split()),), "data.caption"
    trigger = " ".join(source.trigger.split())
    captions = tuple(c if c.startswith(trigger) else f"{trigger} {c}" for c in captions)
    weight = entry.weight * Fraction(source.weight).limit_denominator(100)
    return replace(entry, captions=captions, origin=origin, weight=weight, fault=fault)


def _name_as_caption(path: Path) -> str:
    """The words of a file name; none where it is not UTF-8."""
    text = " ".join(path.stem.replace("_", " ").split())
    return text if text.encode(errors="replace").decode() == text else ""
