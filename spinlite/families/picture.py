"""Pictures and clips as a family takes and gives them. Apart from `family`, which needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from spinlite.errors import SpinliteError

if TYPE_CHECKING:
    from PIL.Image import Image

Drawn: TypeAlias = "Image | Sequence[Image]"  # what a latent decodes to: a picture, or the frames of a clip


@dataclass(frozen=True)
class Picture:
    """An RGB picture in the size that the network takes, and how it was cut to it. Sizes are (width, height) in pixels.

    Of a clip it is the first frame; `rest` are the others, cut alike.
    """

    image: "Image"
    original_size: tuple[int, int]  # before resizing
    crop: tuple[int, int]  # (left, top) of the crop, after resizing
    rest: "tuple[Image, ...]" = ()


@dataclass(frozen=True)
class ClipRule:
    """Which clips a family takes: `fps` frames a second, and 1, 1 + step, 1 + 2 x step, … frames, up to `most`.

    `most` may be set, but not above `longest`, if there is one.
    """

    fps: float
    step: int
    most: int
    longest: int | None = None

    def length(self, frames: int) -> int:
        """How many frames are taken of so many."""
        return 1 + (min(frames, self.most) - 1) // self.step * self.step

    def latents(self, frames: int) -> int:
        """How many frames the latent of so many has, where `step` frames after the first become one."""
        return 1 + (frames - 1) // self.step


def with_frames(own: ClipRule | None, frames: int | None) -> ClipRule | None:
    """A family's rule with another length of clips, `model.frames`. Raises SpinliteError if it has no such clips."""
    if frames is None:
        return own
    if own is None:
        raise SpinliteError("model.frames is for base models of clips, and this one makes pictures", fix="remove model.frames")
    rule = replace(own, most=frames)
    if rule.length(frames) != frames:
        problem = f"model.frames = {frames}, but this model's clips have 1, {1 + own.step}, {1 + 2 * own.step}, … frames"
        raise SpinliteError(problem, fix=f"set model.frames = {rule.length(frames)}")
    if rule.longest and frames > rule.longest:
        problem = f"model.frames = {frames}, but this model's clips have {rule.longest} frames at the most"
        raise SpinliteError(problem, fix=f"set model.frames = {rule.longest}")
    return rule


def middle_of(drawn: Drawn) -> "Image":
    """The middle frame of a clip; a picture, itself."""
    frames = frames_of(drawn)
    return frames[len(frames) // 2]


def frames_of(drawn: Drawn) -> "list[Image]":
    """The frames of a clip; of a picture, itself."""
    return list(drawn) if isinstance(drawn, Sequence) else [drawn]
