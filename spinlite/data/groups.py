"""Lists in parts: what goes through a network together."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def group_by_shape(shapes: Sequence[object], most: int) -> list[list[int]]:
    """Indices in groups of one shape, at most `most` in each; shapes come in the order in which they first appear."""
    groups: dict[object, list[int]] = {}
    for place, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(place)
    return [list(run) for group in groups.values() for run in chunks(group, most)]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, in parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
