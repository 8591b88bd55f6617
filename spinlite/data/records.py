"""Entries (pictures as they are found), records (pictures as they are trained on), and the survey of both."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from spinlite.config.settings import Source
from spinlite.data.buckets import Shape
from spinlite.data.clips import Clip
from spinlite.data.looks import Look
from spinlite.errors import SpinliteError

PLACES = 20_000  # an epoch's length at most, if it has fewer pictures than a twentieth of that


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture as a source lists it, before it is opened. `name` is for messages; `weight` says how often it is shown."""

    path: Path
    name: str
    captions: tuple[str, ...]  # empty if it has none
    origin: str  # what the captions were read from
    weight: Fraction
    lose: Path | None = None  # the rejected picture of a pair
    fault: str = ""  # why its caption can't be read
    source: Source = field(default_factory=Source)  # the settings that it was listed with
    mask: Path | None = None  # says where it is learned from; the picture itself: by its transparency


@dataclass(frozen=True, slots=True)
class Record:
    """One picture with one caption; `lose` is the rejected picture of a pair.

    A key is a hash of the picture's bytes. `repeats` is how often it is shown in an epoch. `bucket` is the shape that it is
    trained in, (width, height) in px; None: the model's own size. `flip`: shown mirrored. `wordings` are texts that learning
    shows in place of the caption, if there are any; `wording` is the one that is shown now ("": the caption itself). `mask`
    says where it is learned from (`path` itself: by its transparency), `mask_key` is a hash of its bytes.

    With `clip` (and `lose_clip` of a pair) it is a part of a file; its key names that part, and its bucket has a third number:
    the frames, unless there is one.
    """

    path: Path
    caption: str
    key: str
    lose: Path | None = None
    lose_key: str = ""
    repeats: int = 1
    bucket: Shape | None = None
    flip: bool = False
    wordings: tuple[str, ...] = ()
    wording: str = ""
    mask: Path | None = None
    mask_key: str = ""
    clip: Clip | None = None
    lose_clip: Clip | None = None

    @property
    def file_key(self) -> str:
        """The hash of the whole file that it is, or is a part of."""
        return self.clip.file if self.clip else self.key

    @property
    def identity(self) -> list[Any]:
        """All that learning from it depends on, for hashes."""
        repeats = self.repeats if self.repeats > 1 else None
        return [self.key, self.lose_key, self.caption, *filter(None, (self.wordings, self.mask_key, repeats))]


@dataclass(frozen=True, slots=True)
class EpochSlot:
    """The `nth` of the `of` times that an epoch shows a picture. Each time another of its variants (captions) is shown.

    With `flip` it is mirrored every other time.
    """

    variants: tuple[Record, ...]
    nth: int
    of: int
    flip: bool = False

    def at(self, epoch: int) -> tuple[Record, int]:
        """(the record to show in this epoch, how often its picture was shown before)."""
        turn = epoch * self.of + self.nth
        again, variant = divmod(turn, len(self.variants))
        shown = self.variants[variant]
        first = sum(shown.key.encode()) % 2  # half of all pictures begin mirrored
        return (replace(shown, flip=(again + variant + first) % 2 == 1) if self.flip else shown), turn


def epoch_slots(records: Sequence[Record], flip: bool = False) -> list[EpochSlot]:
    """The slots of an epoch: as many for a picture as it has repeats, however many captions it has."""
    pictures: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        pictures.setdefault((r.key, r.lose_key), []).append(r)
    groups = [tuple(group) for group in pictures.values()]
    return [EpochSlot(group, nth, group[0].repeats, flip) for group in groups for nth in range(group[0].repeats)]


def count_pictures(records: Sequence[Record]) -> int:
    """How many different pictures (or pairs) the records hold; one picture may have several captions."""
    return len({(r.key, r.lose_key) for r in records})


def other_pictures(records: Sequence[Record]) -> dict[str, Record]:
    """Key of a picture that is alone in its bucket -> another picture to pair it with, to be cropped to that bucket."""
    pictures = list({r.key: r for r in records}.values())
    counts = Counter(r.bucket for r in pictures)
    return {r.key: replace(pictures[i - 1], bucket=r.bucket) for i, r in enumerate(pictures) if counts[r.bucket] == 1}


def whole_numbers(weights: Sequence[Fraction]) -> list[int]:
    """Whole numbers with the same ratios as these weights, none of them 0: the smallest, or such as are near.

    Exact ones can be huge, such as for 1/97 and 1/79, and their sum is the length of an epoch: at most PLACES or 20 a weight.
    """
    most = max(PLACES, 20 * len(weights))
    denominator = math.lcm(*(w.denominator for w in weights))
    counts = [int(w * denominator) for w in weights]
    divisor = math.gcd(*counts)
    if sum(counts) > most * divisor:
        scale = most / sum(weights)
        counts = [max(1, round(w * scale)) for w in weights]
        divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


@dataclass
class Survey:
    """What the sources hold: the records that will be used, and the files that will not be used, with reasons."""

    listed: int = 0  # pictures (or pairs) that the sources hold
    train: list[Record] = field(default_factory=list)
    heldout: list[Record] = field(default_factory=list)
    origins: Counter[str] = field(default_factory=Counter)  # what captions were read from -> number of pictures
    uncaptioned: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)  # captions without a picture
    unusable: list[str] = field(default_factory=list)
    looks: dict[Path, Look] = field(default_factory=dict)  # a look at every picture
    stop: SpinliteError | None = None  # why a run would refuse to start with this
    unused: dict[str, list[str]] = field(default_factory=dict)  # another reason why files are not used -> their names
    noted: dict[str, list[str]] = field(default_factory=dict)  # what else was seen -> in which files
    names: dict[Path, str] = field(default_factory=dict)  # of every listed picture, for messages
    elsewhere: list[Path] = field(default_factory=list)  # subfolders with pictures, none of which were read

    def note(self, what: str, name: str) -> None:
        """Remember that `what` is true of a file."""
        self.noted.setdefault(what, []).append(name)

    def leave_out(self, why: str, name: str) -> None:
        """Remember that a file is not used, and why."""
        self.unused.setdefault(why, []).append(name)

    @property
    def notes(self) -> list[str]:
        """A line for each kind of note: how often, and in which files."""
        return [f"{len(names)} {what}: {list_names(names)}" for what, names in (*self.noted.items(), *self.unused.items())]


def list_names(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def printable(name: str) -> str:
    """A name that is safe to print: escape codes and bytes that are not UTF-8 are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
