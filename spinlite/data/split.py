"""Chooses the pictures that are held out: never trained on, only judged with."""

import hashlib
from collections.abc import Mapping, Sequence

from spinlite.data.records import Record, count_pictures

ENOUGH = 4  # different held-out pictures to judge by: with 1, chance alone stops every second round, with 2 every seventh
SHARE = 3  # to have ENOUGH, at most one picture in so many is held out


def enough_to_judge(heldout: Sequence[Record]) -> bool:
    """Whether the error on these held-out pictures may stop a run: there are ENOUGH different ones."""
    return count_pictures(heldout) >= ENOUGH


def explain_few(heldout: Sequence[Record]) -> str:
    """What it means that these held-out pictures are too few to judge by; "" if they are enough."""
    if enough_to_judge(heldout):
        return ""
    count = count_pictures(heldout)
    few = f"validation has {count} picture{'s' * (count != 1)}, too few to judge by: the error is measured, but stops nothing"
    return f"{few}. {ENOUGH} would do, which takes {ENOUGH * SHARE} pictures in all"


def split(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(train, held-out) by a hash of the caption, so that adding or removing pictures hardly moves others to the other side.

    A caption is on one side only, and so is a picture: captions that share a picture stay together, on the side of the lowest
    hash among them. If captions hardly differ (a trigger word alone), pictures are split instead. Neither side is empty. If
    `share` gives fewer than ENOUGH pictures, those of the next hashes are held out too. Clips of one file stay together.
    """
    by_caption = splits_by_caption(records)
    names = _group_captions(records) if by_caption else [r.file_key + r.lose_key * (not r.clip) for r in records]
    groups: dict[str, list[Record]] = {}
    for name, r in zip(names, records, strict=True):
        groups.setdefault(name, []).append(r)
    ranks = {name: _rank(name, len({r.caption for r in some}) if by_caption else 1) for name, some in groups.items()}
    chosen = _choose(ranks, {name: count_pictures(some) for name, some in groups.items()}, share)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for name, r in zip(names, records, strict=True):
        sides[name in chosen].append(r)
    return sides


def splits_by_caption(records: Sequence[Record]) -> bool:
    """Whether captions decide who is held out, not the contents of pictures."""
    return len({r.caption for r in records}) > len(records) / 2 and len(set(_group_captions(records))) > 1


def _choose(ranks: Mapping[str, float], counts: Mapping[str, int], share: float) -> set[str]:
    """The groups to hold out, given their ranks and how many pictures each has."""
    order = sorted(ranks, key=ranks.__getitem__)
    first = min(sum(rank < share for rank in ranks.values()), len(order) - 1)
    chosen = order[:first]
    heldout = sum(counts[name] for name in chosen)
    for name in order[first:]:
        if heldout < ENOUGH and SHARE * (heldout + counts[name]) <= sum(counts.values()):
            chosen.append(name)
            heldout += counts[name]
    return set(chosen or order[:1])


def _rank(name: str, names: int = 1) -> float:
    """The name's place in [0, 1); if it is the lowest of several `names`, the place among such lowest ones."""
    return 1 - (1 - int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64) ** names


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
