"""Sources, surveyed -> what there is to say about them."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from spinlite.config.settings import Data
from spinlite.data.buckets import Grid, Size, fill_scale, kept_share
from spinlite.data.looks import Progress
from spinlite.data.records import Record, Survey
from spinlite.data.sources import describe_sources
from spinlite.data.survey import examine

MUCH = 0.1  # share of a picture that is cut away, from which on that is counted
COMMON = 5  # sizes, and longest captions, that are named
WORDS = 12
SMALL = {*re.findall(r"\w+", "a an and are as at by for from in is it its of on or that the this to with")}  # words not counted
CHUNK = 2000  # captions at once


@dataclass(frozen=True)
class Tokens:
    """Tokens of captions. `limit` is what the text encoder reads of one; what is longer is cut there."""

    limit: int
    least: int
    middle: int
    most: int
    over: list[str]  # pictures with a longer caption


@dataclass(frozen=True)
class Findings:
    """What a data source holds and what training would make of it. Sizes are (width, height) in px."""

    place: str
    model: str  # what the shapes are for, in words
    full: bool  # pictures were decoded, not their headers alone
    seconds: float
    pictures: int  # that were found
    learned: int  # pictures to learn from ..
    heldout: int  # .. and held out
    captions: int  # different ones, of pictures that are used
    origins: dict[str, int]  # what captions were read from -> of how many pictures
    problem: str | None  # why training would stop ..
    fix: str | None  # .. and what mends it
    unused: dict[str, list[str]]  # why pictures and files are not used -> their names
    noted: dict[str, list[str]]  # what else was seen -> the files it was seen in
    sizes: list[Size]  # the smallest, the middle and the largest of the pictures that are used
    common: dict[str, int]  # the most common sizes, "1024x768" -> pictures
    buckets: dict[str, int]  # shapes that they are learned in -> pictures
    enlarged: dict[str, float]  # names -> by how much, largest first
    cut: dict[str, float]  # names -> the share that is cut away, where it is MUCH; largest first
    cut_middle: float
    tokens: Tokens | None
    words: dict[str, int]
    survey: Survey = field(repr=False)


def examine_sources(
    settings: Data, pairs: bool, cache: Path, progress: Progress, full: bool, grid: Grid, model: str, tokenizer: Any
) -> Findings:  # fmt: skip
    """Look at every picture (its header alone, unless `full`) and every caption.

    `tokenizer` is a CLIP tokenizer, or none where the model has no limit. Raises SpinliteError where a source is not there.
    """
    began = time.monotonic()
    found = examine(settings, pairs, cache, progress, grid, headers=not full)
    records = found.train + found.heldout
    pictures = list({(r.key, r.lose_key): r for r in records}.values())
    sizes = sorted((found.looks[r.path].size for r in pictures), key=lambda size: size[0] * size[1])
    enlarged = {found.names[r.path]: fill_scale(found.looks[r.path].size, r.bucket or grid.native) for r in pictures}
    cut = {found.names[r.path]: 1 - kept_share(found.looks[r.path].size, r.bucket or grid.native) for r in pictures}
    return Findings(
        place=describe_sources(settings),
        model=model,
        full=full,
        pictures=found.listed,
        learned=len({(r.key, r.lose_key) for r in found.train}),
        heldout=len({(r.key, r.lose_key) for r in found.heldout}),
        captions=len({r.caption for r in records}),
        origins=dict(found.origins.most_common()),
        problem=found.stop.problem if found.stop else None,
        fix=found.stop.fix if found.stop else None,
        unused=_unused(found),
        noted=found.noted,
        sizes=[sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
        common=dict(Counter(map(format_size, sizes)).most_common(COMMON)),
        buckets=dict(Counter(format_size(r.bucket or grid.native) for r in pictures).most_common()),
        enlarged=_largest({name: value for name, value in enlarged.items() if value > 1}),
        cut=_largest({name: share for name, share in cut.items() if share > MUCH}),
        cut_middle=median(cut.values()) if cut else 0.0,
        tokens=_tokens(records, found, tokenizer) if tokenizer and records else None,
        words=dict(_words(r.caption for r in records).most_common(WORDS)),
        survey=found,
        seconds=time.monotonic() - began,
    )


def format_size(size: Size) -> str:
    """(width, height) -> "WIDTHxHEIGHT"."""
    return f"{size[0]}x{size[1]}"


def _unused(found: Survey) -> dict[str, list[str]]:
    """Why -> names of the pictures and files that training will not use, the most serious first."""
    gone = {name for names in found.unused.values() for name in names}
    gone |= {found.names[r.path] for r in found.train + found.heldout}
    bare = [name for name in found.uncaptioned if name not in gone]
    every = {"that can't be used": found.unusable, "without caption, left out": bare}
    every |= {"captions without a picture, ignored": found.orphans} | found.unused
    return {why: names for why, names in every.items() if names}


def _largest(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def _tokens(records: Sequence[Record], found: Survey, tokenizer: Any) -> Tokens:
    captions = list(dict.fromkeys(r.caption for r in records))
    lengths: dict[str, int] = {}
    limit = tokenizer.model_max_length - 2  # but for the token that starts a caption, and the one that ends it
    for start in range(0, len(captions), CHUNK):
        chunk = captions[start : start + CHUNK]
        lengths |= zip(chunk, map(len, tokenizer(chunk, add_special_tokens=False, verbose=False).input_ids), strict=True)
    over = {found.names[r.path]: float(lengths[r.caption]) for r in records if lengths[r.caption] > limit}
    every = sorted(lengths.values())
    return Tokens(limit, every[0], every[len(every) // 2], every[-1], list(_largest(over)))


def _words(captions: Iterable[str]) -> Counter[str]:
    words = Counter(word for caption in captions for word in re.findall(r"[^\W\d_][\w'’-]*", caption.lower()))
    for word in SMALL:
        del words[word]
    return words
