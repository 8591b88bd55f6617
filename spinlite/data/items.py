"""A picture on its way to the encoder."""

from dataclasses import dataclass
from pathlib import Path

from spinlite.data.buckets import Shape
from spinlite.data.clips import Clip
from spinlite.families.picture import Picture

Waiting = tuple["Item", str, Picture]  # a picture to be encoded, and the name that its latents are kept under


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or clip in a shape, to be encoded as it is (flip False), mirrored (flip True), or both."""

    path: Path
    key: str
    shape: Shape
    flips: tuple[bool, ...]
    clip: Clip | None = None

    def names(self) -> list[str]:
        """The names that its latents are kept under, one for each flip."""
        return [latent_name(self.key, self.shape, flip) for flip in self.flips]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An item on its way to the encoder: pictures by name, or why there are none."""

    item: Item
    pictures: dict[str, Picture]
    fault: str = ""
    changed: bool = False


def latent_name(key: str, shape: Shape, flip: bool) -> str:
    """The name that the latents of a picture in a shape are kept under."""
    return f"{key}-{'x'.join(map(str, shape))}{'-mirrored' * flip}"
