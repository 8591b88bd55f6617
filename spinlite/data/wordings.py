"""Other wordings of captions that are lists of tags: in another order, with some tags left out. Learning shows them in turn.

They are made from the caption alone, so that each is encoded once, whatever the seed of the run.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spinlite.config.settings import Source
from spinlite.data.records import Record

SEPARATOR = "|||"  # kohya's: tags before the first stay first, tags after the second stay last
TEXTS = 4000  # so many wordings are made of all captions together, with these limits for each caption:
MOST, LEAST = 16, 4


def reword(records: Sequence[Record], source_of: Mapping[Path, Source]) -> list[Record]:
    """The records with their wordings, as the source of each picture says, and without SEPARATOR in their captions."""
    count = max(LEAST, min(MOST, TEXTS // max(1, len(records))))
    return [replace(r, caption=_plain(r.caption), wordings=wordings(r.caption, source_of[r.path], count)) for r in records]


def wordings(caption: str, source: Source, count: int) -> tuple[str, ...]:
    """At most `count` different wordings of a caption; () if the source asks for none or there is nothing to change.

    The first ones do not depend on `count`.
    """
    trigger = " ".join(source.trigger.split())
    first, free, last = _parts(caption, source.keep_tokens, trigger)
    changes = (source.shuffle and len(free) > 1) or (source.tag_dropout and free)
    if not changes:
        return ()
    made, name = [], trigger.rstrip(", ")
    for n in range(count):
        chance = random.Random(repr(("wording", caption, n)))
        ranks, chances = ([chance.random() for _ in free] for _ in range(2))
        order = sorted(range(len(free)), key=ranks.__getitem__) if source.shuffle else range(len(free))
        tags = [free[i] for i in order if chances[i] >= source.tag_dropout or (name and name in free[i])]
        made.append(", ".join([*first, *tags, *last] or free[:1]))
    return tuple(dict.fromkeys(made))


def _parts(caption: str, keep: int, trigger: str) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay first, those that may move or go, and those that stay last."""
    before, *after = caption.split(SEPARATOR, 2)
    if after:
        return _tags(before), _tags(after[0]), _tags("".join(after[1:]))
    tags = _tags(caption)
    kept = max(keep, len(_tags(trigger)) if caption.startswith(trigger) else 0)
    return tags[:kept], tags[kept:], []


def _plain(caption: str) -> str:
    """The caption with commas in place of SEPARATOR; without it, as it is written."""
    return ", ".join(_tags(caption)) if SEPARATOR in caption else caption


def _tags(text: str) -> list[str]:
    return [tag for part in text.replace(SEPARATOR, ",").split(",") if (tag := part.strip())]
