"""Looks at the data sources and collects what a user should know about them."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from spinlite.config.settings import Data
from spinlite.data.buckets import Grid, Shape, Size, fill_scale, kept_share
from spinlite.data.looks import Progress
from spinlite.data.records import Record, Survey, count_pictures
from spinlite.data.sources import describe_sources
from spinlite.data.split import explain_few
from spinlite.data.survey import examine
from spinlite.families.clip import TokenCounter

MUCH = 0.1  # a picture is named if a larger share of it is cut away
COMMON = 5  # how many common sizes and long captions are named
WORDS = 12  # how many frequent words are named
SMALL = {*re.findall(r"\w+", "a an and are as at by for from in is it its of on or that the this to with")}  # not counted
CHUNK = 2000  # captions per call of the tokenizer


@dataclass(frozen=True)
class Tokens:
    """How many tokens captions have. The text encoder reads the first `limit` of a caption and ignores the rest."""

    limit: int
    least: int
    middle: int
    most: int
    over: list[str]  # pictures with a longer caption


@dataclass(frozen=True)
class Findings:
    """What the data sources hold, and how training would use them. Sizes are (width, height) in px."""

    place: str
    model: str  # in words: the model that the shapes are for
    full: bool  # every picture was decoded, not only its header
    seconds: float
    pictures: int  # all that were found
    learned: int  # pictures to learn from ..
    heldout: int  # .. and held-out pictures (validation)
    few: str  # what it means that these are too few to judge by; "" if they are enough
    captions: int  # different captions of the pictures that are used
    origins: dict[str, int]  # where captions come from -> number of pictures
    problem: str | None  # why training would stop ..
    fix: str | None  # .. and how to fix that
    unused: dict[str, list[str]]  # reason -> names of pictures and files that are not used
    noted: dict[str, list[str]]  # other remarks -> names of the files
    clips: dict[str, str]  # name -> how long it is and how many of its frames are used
    sizes: list[Size]  # smallest, middle and largest size of the pictures that are used
    common: dict[str, int]  # the most common sizes, "1024x768" -> number of pictures
    buckets: dict[str, int]  # bucket, "1024x768" -> number of pictures
    enlarged: dict[str, float]  # name -> factor, largest first
    cut: dict[str, float]  # name -> share that is cut away, if above MUCH; largest first
    cut_middle: float  # the median of these shares over all pictures
    tokens: Tokens | None
    words: dict[str, int]  # the most frequent words of captions -> how often
    survey: Survey = field(repr=False)


def examine_sources(
    settings: Data, pairs: bool, cache: Path, progress: Progress, full: bool, grid: Grid, model: str,
    counter: TokenCounter | None,
) -> Findings:  # fmt: skip
    """Look at every caption and every picture (only at its header, unless `full`).

    `counter` counts tokens; None if the model has no limit. Raises SpinliteError if a source does not exist.
    """
    began = time.monotonic()
    survey = examine(settings, pairs, cache, progress, grid, headers=not full)
    records = survey.train + survey.heldout
    pictures = list({(r.key, r.lose_key): r for r in records}.values())
    sizes = sorted((survey.looks[r.path].size for r in pictures), key=lambda size: size[0] * size[1])
    enlarged = {survey.names[r.path]: fill_scale(survey.looks[r.path].size, r.bucket or grid.native) for r in pictures}
    cut = {survey.names[r.path]: 1 - kept_share(survey.looks[r.path].size, r.bucket or grid.native) for r in pictures}
    return Findings(
        place=describe_sources(settings), model=model, full=full,
        pictures=survey.listed,
        learned=count_pictures(survey.train),
        heldout=count_pictures(survey.heldout),
        few=explain_few(survey.heldout) if records else "",
        captions=len({r.caption for r in records}),
        origins=dict(survey.origins.most_common()),
        problem=survey.stop.problem if survey.stop else None,
        fix=survey.stop.fix if survey.stop else None,
        unused=_unused(survey),
        noted=survey.noted,
        clips=_clips(pictures, survey, grid),
        sizes=[sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
        common=dict(Counter(map(format_size, sizes)).most_common(COMMON)),
        buckets=dict(Counter(format_size(r.bucket or grid.native) for r in pictures).most_common()),
        enlarged=_largest({name: value for name, value in enlarged.items() if value > 1}),
        cut=_largest({name: share for name, share in cut.items() if share > MUCH}),
        cut_middle=median(cut.values()) if cut else 0.0,
        tokens=_tokens(records, survey, counter) if counter and records else None,
        words=dict(_words(r.caption for r in records).most_common(WORDS)),
        survey=survey,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def format_size(size: Shape) -> str:
    """(width, height) -> "WIDTHxHEIGHT", of clips "WIDTHxHEIGHT, N frames"."""
    return f"{size[0]}x{size[1]}" + (f", {size[2]} frames" if len(size) > 2 else "")


def _clips(pictures: Iterable[Record], survey: Survey, grid: Grid) -> dict[str, str]:
    used: dict[str, list[int]] = {}
    for r in pictures:
        if r.clip:
            used.setdefault(survey.names[r.path], []).append(r.bucket[2] if r.bucket and len(r.bucket) > 2 else 1)
    paths = {name: path for path, name in survey.names.items()}
    fps, said = grid.clips.fps if grid.clips else 1.0, {}
    for name, lengths in used.items():
        look = survey.looks[paths[name]]
        times = f"{len(lengths)} times " if len(lengths) > 1 else ""
        said[name] = f"{look.frames / fps:.1f} s at {look.rate:.3g} frames/s; {times}{lengths[0]} frames at {fps:g}/s are used"
    return said


def _unused(survey: Survey) -> dict[str, list[str]]:
    """Reason -> names of pictures and files that training will not use, the most serious reason first."""
    gone = {name for names in survey.unused.values() for name in names}
    gone |= {survey.names[r.path] for r in survey.train + survey.heldout}
    bare = [name for name in survey.uncaptioned if name not in gone]
    every = {"that can't be used": survey.unusable, "without caption, left out": bare}
    every |= {"captions without a picture, ignored": survey.orphans} | survey.unused
    return {why: names for why, names in every.items() if names}


def _largest(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def _tokens(records: Sequence[Record], survey: Survey, counter: TokenCounter) -> Tokens:
    captions = list(dict.fromkeys(r.caption for r in records))
    lengths: dict[str, int] = {}
    for start in range(0, len(captions), CHUNK):
        chunk = captions[start : start + CHUNK]
        lengths |= zip(chunk, counter.count(chunk), strict=True)
    over = {survey.names[r.path]: float(lengths[r.caption]) for r in records if lengths[r.caption] > counter.limit}
    every = sorted(lengths.values())
    return Tokens(counter.limit, every[0], every[len(every) // 2], every[-1], list(_largest(over)))


def _words(captions: Iterable[str]) -> Counter[str]:
    words = Counter(word for caption in captions for word in re.findall(r"[^\W\d_][\w'’-]*", caption.lower()))
    for word in SMALL:
        del words[word]
    return words
