"""Chooses the pictures that are held out: never trained on, only judged with."""

import hashlib
from collections.abc import Sequence

from spinlite.data.records import Record


def split(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(train, held-out) by a hash of the caption, so that adding or removing pictures hardly moves others to the other side.

    A caption is on one side only, and so is a picture: captions that share a picture stay together, on the side of the lowest
    hash among them. If captions hardly differ (a trigger word alone), pictures are split instead. Neither side is empty.
    """
    names = _group_captions(records) if len({r.caption for r in records}) > len(records) / 2 else []
    if len(set(names)) < 2:
        names = [r.key + r.lose_key for r in records]
    ranks = {name: _rank(name) for name in names}
    count = sum(rank < share for rank in ranks.values())
    chosen = set(sorted(ranks, key=ranks.__getitem__)[: min(max(count, 1), len(ranks) - 1)])
    sides: tuple[list[Record], list[Record]] = ([], [])
    for name, r in zip(names, records, strict=True):
        sides[name in chosen].append(r)
    return sides


def _rank(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _group_captions(records: Sequence[Record]) -> list[str]:
    """For each record, the lowest-ranked caption among those that are linked to its own by shared pictures."""
    parent: dict[str, str] = {}  # caption -> one of a lower rank in the same group, or itself

    def lowest(caption: str) -> str:
        while parent.setdefault(caption, caption) != caption:
            parent[caption] = parent[parent[caption]]
            caption = parent[caption]
        return caption

    first: dict[str, str] = {}  # picture -> the caption it was first seen with
    for r in records:
        for key in filter(None, (r.key, r.lose_key)):
            a, b = sorted((lowest(r.caption), lowest(first.setdefault(key, r.caption))), key=_rank)
            parent[b] = a
    return [lowest(r.caption) for r in records]
