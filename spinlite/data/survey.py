"""Sources -> checked records: what will be used, and by name what will not and why."""

from collections.abc import Sequence

from spinlite.config import Data
from spinlite.data.records import Entry, Record, Survey, listing, whole_numbers
from spinlite.data.sources import NO_CAPTION, entries, sources_of, where
from spinlite.data.split import split
from spinlite.errors import SpinliteError
from spinlite.pictures import open_picture
from spinlite.store import fingerprint_files


def survey(settings: Data, pairs: bool = False) -> Survey:
    """Read and check every picture and caption of the sources, and set the held-out share apart.

    With `pairs` a folder holds `win/` and `lose/`, with the same file names; captions lie beside the winners.
    Raises SpinliteError where there is nothing to train on, or too much is unusable.
    """
    found = Survey()
    every = entries(settings, pairs, found)
    weights = whole_numbers([entry.weight for entry in every])
    read = [(entry.name, r) for entry, weight in zip(every, weights, strict=True) for r in _records(entry, weight, found)]
    records = _once(read, found)
    place = where(settings)
    strict = any(source.uncaptioned == "error" for source in sources_of(settings))
    if found.uncaptioned and strict:
        raise SpinliteError(
            f"{len(found.uncaptioned)} pictures in {place} have no caption: {listing(found.uncaptioned)}",
            fix='write a .txt beside each, or set data.uncaptioned = "skip" or "name"',
        )
    if len(found.unusable) > settings.max_unusable * max(len(every), 1):
        raise SpinliteError(
            f"{len(found.unusable)} of {len(every)} files in {place} can't be used: {listing(found.unusable)}",
            fix="mend or remove them, or raise data.max_unusable",
        )
    usable = len({(r.key, r.lose_key) for r in records})
    if usable < 2:
        seen = "".join(f"; {note}" for note in found.notes[:1])
        raise SpinliteError(
            f"{place} holds {len(every)} pictures, of which {usable} can be used with a caption; 2 is the least{seen}",
            fix='put pictures with captions there (name.png + name.txt), or set data.uncaptioned = "name"',
        )
    found.train, found.heldout = split(records, settings.heldout)
    return found


def _records(entry: Entry, repeats: int, found: Survey) -> list[Record]:
    """A record for each caption of a picture, if all of it can be read."""
    try:
        open_picture(entry.path, found.note, entry.name)
        if entry.lose:
            open_picture(entry.lose, found.note, f"lose/{entry.name}")
    except SpinliteError as error:
        found.unusable.append(error.problem)
        return []
    if entry.fault:
        found.unusable.append(entry.fault)
        return []
    if entry.origin in NO_CAPTION:
        found.uncaptioned.append(entry.name)
    if entry.captions:
        found.origins[entry.origin] += 1
    key, lose_key = fingerprint_files([entry.path]), fingerprint_files([entry.lose]) if entry.lose else ""
    return [Record(entry.path, caption, key, entry.lose, lose_key, repeats) for caption in entry.captions]


def _once(read: Sequence[tuple[str, Record]], found: Survey) -> list[Record]:
    """Records without repeated ones; a picture that is there twice with other captions is shown with each in turn."""
    first: dict[tuple[str, str], Record] = {}
    kept: dict[tuple[str, str, str], Record] = {}
    for name, r in read:
        original = first.setdefault((r.key, r.lose_key), r)
        same = kept.setdefault((r.key, r.lose_key, r.caption), r)
        if original.path != r.path:
            what = "with another caption: shown with each in turn" if same is r else "left out"
            found.note(f"the same as another picture, {what}", name)
    return list(kept.values())
