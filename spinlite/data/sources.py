"""The sources in [data] -> entries."""

import re
import shlex
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Data, Source
from spinlite.data.dataset import MODULES, list_dataset
from spinlite.data.folder import list_folder, list_pairs
from spinlite.data.looks import Progress
from spinlite.data.masks import add_masks
from spinlite.data.records import Entry, Survey
from spinlite.errors import SpinliteError

BUILT_IN = "demo"  # as a folder: the pictures that come with spinlite
PLACEHOLDER = re.compile(r"\[(?:trigger|name)\]", re.IGNORECASE)  # what ai-toolkit replaces by the trigger
NO_CAPTION = ("", "file name", "data.caption")  # origins of captions for pictures that had none of their own


def list_entries(
    settings: Data, pairs: bool, found: Survey, cache: Path, progress: Progress = lambda done, of: None, clips: bool = False
) -> list[Entry]:
    """Every picture of every source; with `pairs`, every pair; with `clips`, of folders the clips too.

    Pictures of data sets are saved in `cache`.

    Raises SpinliteError if a source does not exist, or its settings contradict.
    """
    sources = sources_of(settings)
    if not sources:
        raise SpinliteError("no pictures to train on were given", fix="add --data FOLDER (name.png + name.txt)")
    every = []
    for source in sources:
        _check(source)
        under = f"{Path(_place(source)).name}/" if len(sources) > 1 else ""
        if source.dataset is not None:
            listed = list_dataset(source, found, pairs, cache, progress, under)
        else:
            listed = (list_pairs if pairs else list_folder)(_folder(source, found), source, found, under, clips)
        every += [_complete(entry, source, found) for entry in add_masks(listed, source, found)]
    return every


def sources_of(settings: Data) -> list[Source]:
    """[data] itself, if it names a folder or a data set, and every [[data.sources]]."""
    return [*([settings] if settings.folder is not None or settings.dataset is not None else []), *settings.sources]


def describe_sources(settings: Data) -> str:
    """The sources in words."""
    return " and ".join(map(_place, sources_of(settings)))


def _place(source: Source) -> str:
    return str(source.dataset if source.folder is None else source.folder)


def _check(source: Source) -> None:
    """Raises SpinliteError if a source's settings contradict."""
    if source.folder is None and source.dataset is None:
        problem = "a [[data.sources]] has neither folder nor dataset"
        raise SpinliteError(problem, fix='add folder = "FOLDER" or dataset = "ID" to it')
    if source.folder is not None and source.dataset is not None:
        problem = f"one source is both the folder {source.folder} and the data set {source.dataset}"
        raise SpinliteError(problem, fix="remove one, or make it a [[data.sources]] of its own")
    if source.mask_folder is not None and source.folder is None:
        raise SpinliteError("data.mask_folder is for the pictures of a folder", fix="remove it, or name data.folder")
    if source.uncaptioned == "fixed" and not source.caption.strip():
        raise SpinliteError('data.uncaptioned = "fixed" needs a caption', fix='set data.caption, e.g. to "a photo"')
    if source.uncaptioned == "name" and source.dataset is not None:
        problem = "rows of a data set have no file names to use as captions"
        raise SpinliteError(problem, fix='set data.uncaptioned = "fixed" or "skip"')


def _folder(source: Source, found: Survey) -> Path:
    folder = Path(str(source.folder))
    if source.folder == BUILT_IN:
        if folder.is_dir():
            other = f"folder of yours is called like the built-in set, which is used; for your own type --data ./{BUILT_IN}"
            found.note(other, BUILT_IN)
        folder = PACKAGE / "demo" / "fluent"
    if not folder.is_dir():
        fix = "check the path after --data"
        if folder.is_file():
            is_set = folder.suffix.lower() in MODULES
            fix = f"for a data set: --set data.dataset={folder}" if is_set else f"type --data {shlex.quote(str(folder.parent))}"
        raise SpinliteError(f"there is no folder {folder}", fix=fix)
    return folder


def _complete(entry: Entry, source: Source, found: Survey) -> Entry:
    """Give an entry its source's weight and trigger, and a caption if it has none and the source has a rule for that."""
    captions, origin, fault = entry.captions, entry.origin, entry.fault
    if not captions and not fault:
        match source.uncaptioned:
            case "name":
                captions, origin = tuple(filter(None, [_name_as_caption(entry.path)])), "file name"
                fault = "" if captions else f"{entry.name}: the file name is not UTF-8"
            case "fixed":
                captions, origin = (" ".join(source.caption.split()),), "data.caption"
    trigger = " ".join(source.trigger.split())
    if not trigger and any(map(PLACEHOLDER.search, captions)):
        found.note("with [trigger] in the caption, learned as it stands: add --set data.trigger=WORD", entry.name)
    captions = tuple(_put_trigger(trigger, caption) for caption in captions)
    weight = entry.weight * _fraction(source.weight)
    return replace(entry, captions=captions, origin=origin, weight=weight, fault=fault, source=source)


def _put_trigger(trigger: str, caption: str) -> str:
    """The caption with the trigger in place of [trigger], or else as a tag in front, unless it begins with those very words."""
    if not trigger:
        return caption
    filled = PLACEHOLDER.sub(lambda _: trigger, caption)
    is_word = bool(re.match(r"\w", trigger[-1]))
    words = re.escape(trigger) + r"(?!\w)" * is_word  # "cat" does not begin "category"
    return filled if filled != caption or re.match(words, caption) else f"{trigger}{',' * is_word} {caption}"


def _fraction(weight: float) -> Fraction:
    """A weight as a simple fraction; exactly as it was written, if no simple one is near."""
    simple = Fraction(weight).limit_denominator(100)
    return simple if abs(simple - Fraction(weight)) < weight / 100 else Fraction(str(weight))


def _name_as_caption(path: Path) -> str:
    """The words of a file name; "" if it is not UTF-8."""
    text = " ".join(path.stem.replace("_", " ").split())
    return text if text.encode(errors="replace").decode() == text else ""
