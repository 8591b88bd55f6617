"""Sources -> checked records, and a list of the files that will not be used, with reasons."""

import contextlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import ImageColor

from spinlite.config.settings import Data, Settings
from spinlite.data.alike import MARK, find_alike, find_alike_clips
from spinlite.data.buckets import Grid, kept_share
from spinlite.data.clips import fingerprint_clip, require_decoder
from spinlite.data.cuts import cut
from spinlite.data.looks import Look, LookCache, Progress, decode_all, read_headers
from spinlite.data.records import Entry, Record, Survey, count_pictures, list_names, whole_numbers
from spinlite.data.sources import NO_CAPTION, describe_sources, list_entries, sources_of
from spinlite.data.split import split, splits_by_caption
from spinlite.data.wordings import reword
from spinlite.errors import SpinliteError
from spinlite.families.picture import ClipRule
from spinlite.runs.files import fingerprint

CACHE = Path("runs") / "cache"  # if no other is given
LONG = 'clips at least twice as long as is used: their beginning is (data.long_clips = "all" uses all)'
SAME_SHAPE = 0.98  # share of a mask that a crop to its picture's shape would keep


def survey(
    settings: Data, pairs: bool = False, cache: Path | None = None, progress: Progress = lambda done, of: None,
    grid: Grid | None = None,
) -> Survey:  # fmt: skip
    """Read and check every picture and caption of the sources, and set the held-out pictures apart.

    With `pairs` a folder has `win/` and `lose/` with the same file names; captions lie beside the winners. Results are kept in
    the folder `cache`, so that the next survey reads only files that changed. With a model's `grid` each record gets its
    bucket, and pictures that are too small for all buckets count as unusable.
    Raises SpinliteError if there is nothing to train on, or too much is unusable.
    """
    found = examine(settings, pairs, cache, progress, grid)
    if found.stop:
        raise found.stop
    return found


def examine(
    settings: Data, pairs: bool = False, cache: Path | None = None, progress: Progress = lambda done, of: None,
    grid: Grid | None = None, headers: bool = False,
) -> Survey:  # fmt: skip
    """Like `survey`, but an error that would stop a run is returned in `Survey.stop`.

    With `headers` only headers are read: no picture is decoded, and where captions differ only duplicates have a hash of their
    contents as their key.
    Raises SpinliteError if a source does not exist or its settings contradict.
    """
    try:
        ImageColor.getrgb(settings.background)
    except ValueError:
        problem = f"data.background = {settings.background!r} is not a colour"
        raise SpinliteError(problem, fix='set it to a name or #rrggbb, such as "white"') from None
    found = Survey()
    rule = grid.clips if grid else None
    every = list_entries(settings, pairs, found, cache or CACHE, progress, rule is not None)
    found.listed, found.names = len(every), {entry.path: entry.name for entry in every}
    paths = list(dict.fromkeys(path for entry in every for path in (entry.path, entry.lose, entry.mask) if path))
    if rule:
        require_decoder(paths)
    found.looks = read_headers(paths, progress, rule) if headers else _decode(settings, paths, cache, progress, rule)
    repeats = _repeats(every, found)
    read = [
        (entry.name, r)
        for entry, count in zip(every, repeats, strict=True)
        for r in _records(entry, count, found, grid, settings)
    ]
    records = reword(_remove_duplicates(read, found), {entry.path: entry.source for entry in every})
    if headers and not splits_by_caption(records):  # hashes decide who is held out: the same pictures as in a run
        records = [_with_hashes(r) for r in records]
    _note_alike(every, found)
    found.stop = _reason_to_stop(settings, len(every), records, found)
    if count_pictures(records) > 1:
        found.train, heldout = split(records, settings.heldout)
        found.heldout = [replace(r, wordings=()) for r in heldout]  # every round measures them with the same texts
    return found


def _decode(
    settings: Data, paths: Sequence[Path], cache: Path | None, progress: Progress, rule: ClipRule | None
) -> dict[Path, Look]:
    """Look at every picture whole, or at what was seen of it before."""
    place = fingerprint(describe_sources(settings), *["clips"] * bool(rule))
    memo = LookCache(cache / "looks" / f"{place}.json", settings.background, rule) if cache else None
    return decode_all(paths, settings.background, memo, progress, rule)


def grid_of(settings: Settings) -> Grid:
    """The picture shapes of a run with these settings. Raises SpinliteError if the base model can't be read."""
    from spinlite.families.load import clip_rule, size_and_step

    rule = clip_rule(settings.model)
    if rule and settings.data.fps:
        rule = replace(rule, fps=settings.data.fps)
    return Grid(*size_and_step(settings.model), settings.data.upscale, settings.data.buckets, rule)


def _with_hashes(r: Record) -> Record:
    """A record whose file was not hashed, with the hashes that it has in a run."""
    own, other = _hash(r.path), _hash(r.lose) if r.lose else ""
    clip, lose_clip = (each and replace(each, file=file) for each, file in ((r.clip, own), (r.lose_clip, other)))
    return replace(
        r, key=clip.key if clip else own, lose_key=lose_clip.key if lose_clip else other, clip=clip, lose_clip=lose_clip
    )


def _hash(path: Path) -> str:
    with contextlib.suppress(SpinliteError):
        return fingerprint_clip(path)
    return ""


def _reason_to_stop(settings: Data, count: int, records: Sequence[Record], found: Survey) -> SpinliteError | None:
    """The error that keeps a run from starting with these records; None if it may start."""
    place = describe_sources(settings)
    if found.uncaptioned and any(source.uncaptioned == "error" for source in sources_of(settings)):
        return SpinliteError(
            f"{len(found.uncaptioned)} pictures in {place} have no caption: {list_names(found.uncaptioned)}",
            fix="write a .txt beside each, or add --set data.uncaptioned=skip (or name)",
        )
    if len(found.unusable) > settings.max_unusable * max(count, 1):
        return SpinliteError(
            f"{len(found.unusable)} of {count} files in {place} can't be used: {list_names(found.unusable)}",
            fix=f"fix or remove them, or add --set data.max_unusable={math.ceil(10 * len(found.unusable) / count) / 10:g}",
        )
    usable = count_pictures(records)
    if usable < 2:
        seen = "".join(f"; {note}" for note in found.notes[:1])
        problem = f"{place} has {count} pictures, but only {usable} can be used with a caption; at least 2 are needed{seen}"
        return SpinliteError(problem, fix=_way_to_pictures(found))
    return None


def _way_to_pictures(found: Survey) -> str:
    """What to do where too few pictures can be used."""
    if {"win", "lose"} <= {path.name for path in found.elsewhere}:
        pairs = "--set method.name=dpo, or --set method.name=kto --set method.fakes=given"
        return f"these are pairs: add {pairs}; or type --data {shlex.quote(str(found.elsewhere[0].with_name('win')))}"
    if found.elsewhere:
        several = "add --set data.recursive=true, or " * (len(found.elsewhere) > 1)
        return f"{several}type --data {shlex.quote(str(found.elsewhere[0]))}"
    if found.uncaptioned:
        return "write a caption beside each (name.png + name.txt), or add --set data.uncaptioned=name"
    return "put pictures with captions there (name.png + name.txt)"


def _repeats(every: Sequence[Entry], found: Survey) -> list[int]:
    """How often an epoch shows each picture: in the ratios of the weights, but at least once."""
    repeats, weights = whole_numbers([entry.weight for entry in every]), sum(entry.weight for entry in every)
    for entry, count in zip(every, repeats, strict=True):
        if count * weights > 2 * entry.weight * sum(repeats):
            found.note(f"shown more often than the weight asks for: once in {sum(repeats):,} pictures", entry.name)
    return repeats


def _records(entry: Entry, repeats: int, found: Survey, grid: Grid | None, settings: Data) -> list[Record]:
    """A record for each caption of a picture, or of each clip; none if the picture or its caption can't be used."""
    files = {entry.name: entry.path} | ({f"lose/{entry.name}": entry.lose} if entry.lose else {})
    looks = [(name, found.looks[path]) for name, path in files.items()]
    for name, look in looks:
        for what in look.seen:
            found.note(what, name)
    for name, look in looks:
        if look.fault:
            found.unusable.append(f"{name}: {look.fault}")
            return []
    if entry.mask == entry.path and looks[0][1].rate:
        found.note("clips, learned as a whole: data.alpha_mask is for pictures", entry.name)
        entry = replace(entry, mask=None)
    mask = found.looks[entry.mask] if entry.mask else None
    if entry.fault or (mask and mask.fault):
        found.unusable.append(entry.fault or f"{entry.name}: its mask {entry.mask and entry.mask.name}: {mask and mask.fault}")
        return []
    bucket = grid.bucket(*(look.size for _, look in looks)) if grid else None
    if grid and bucket is None:
        found.unusable.append(f"{entry.name}: {grid.refusal(*(look.size for _, look in looks))}")
        return []
    if entry.origin in NO_CAPTION:
        found.uncaptioned.append(entry.name)
    if entry.captions:
        found.origins[entry.origin] += 1
    if mask:
        found.note("with a mask, which says where they are learned from", entry.name)
        if kept_share(mask.size, looks[0][1].size) < SAME_SHAPE:
            found.note("with a mask of another shape, which is stretched over the picture", entry.name)
    win, lose = looks[0][1], looks[1][1] if entry.lose else None
    whole = Record(
        entry.path, "", win.key, entry.lose, lose.key if lose else "", repeats, bucket,
        mask=entry.mask, mask_key=mask.key if mask else "",
    )  # fmt: skip
    rule = grid.clips if grid else None
    several = cut(whole, [look for _, look in looks], rule, settings.long_clips == "all") if rule else [whole]
    if rule and settings.long_clips == "head" and win.frames >= 2 * rule.most:
        found.note(LONG, entry.name)
    return [replace(record, caption=caption) for record in several for caption in entry.captions]


def _note_alike(every: Sequence[Entry], found: Survey) -> None:
    """Note pictures that look like an earlier one; they are used all the same."""
    first = {found.looks[entry.path].key: entry for entry in reversed(every)}  # without copies of one file
    pictures = sorted(first.values(), key=lambda entry: entry.name)
    marks = [found.looks[entry.path].mark for entry in pictures]
    like = find_alike([mark * (len(mark) == MARK) for mark in marks]) | find_alike_clips(
        [mark * (len(mark) > MARK) for mark in marks]
    )
    for i, j in sorted(like.items()):
        found.note("nearly the same as another picture, used all the same", f"{pictures[i].name} (like {pictures[j].name})")


def _remove_duplicates(read: Sequence[tuple[str, Record]], found: Survey) -> list[Record]:
    """Leave out repeated records; a picture that exists twice with different captions is shown with each in turn."""
    first: dict[tuple[str, str], str] = {}
    kept: dict[tuple[str, str, str], Record] = {}
    for name, r in read:
        original = first.setdefault((r.key, r.lose_key), name)
        same = kept.setdefault((r.key, r.lose_key, r.caption), r)
        if original != name:
            if same is r:
                found.note("the same as another picture with another caption: shown with each caption in turn", name)
            else:
                found.leave_out("the same as another picture, left out", name)
    return list(kept.values())
