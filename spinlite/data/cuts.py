"""Cuts files with several frames into clips of the lengths that the base model takes."""

from collections.abc import Sequence
from dataclasses import replace

from spinlite.data.clips import Clip
from spinlite.data.looks import Look
from spinlite.data.records import Record
from spinlite.families.picture import ClipRule


def cut(whole: Record, looks: Sequence[Look], rule: ClipRule, every: bool) -> list[Record]:
    """A picture, or pair, whose files were looked at -> itself, or if they move, the clips of it.

    Without `every` there is one, the beginning. Clips have one length; of a pair both have the shorter one's.
    """
    if not any(look.rate for look in looks):
        return [whole]
    frames = min(look.frames for look in looks)
    length = rule.length(frames)
    starts = range(0, frames - length + 1, length) if every and length > 1 else [0]
    return [_part(whole, looks, rule, start, length) for start in starts]


def _part(whole: Record, looks: Sequence[Look], rule: ClipRule, start: int, length: int) -> Record:
    clips = [Clip(look.key, start, rule.fps) if look.rate else None for look in looks]
    keys = [clip.key if clip else look.key for clip, look in zip(clips, looks, strict=True)]
    bucket = (*whole.bucket, length) if whole.bucket and length > 1 else whole.bucket
    lose_key, lose_clip = (keys[1], clips[1]) if whole.lose else ("", None)
    return replace(whole, key=keys[0], clip=clips[0], lose_key=lose_key, lose_clip=lose_clip, bucket=bucket)
