"""Aspect ratio buckets: the shape that each picture is trained in. None has more pixels than the model's own size.

Sizes are (width, height) in pixels, after EXIF rotation.
"""

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache

from spinlite.families.picture import ClipRule

Size = tuple[int, int]
Shape = tuple[int, ...]  # a bucket: (width, height), and of a clip its frames


@dataclass(frozen=True)
class Grid:
    """The buckets of a model. Their sides are multiples of `step`, from half to twice the model's own side."""

    native: Size
    step: int
    upscale: float = 1.5  # how many times larger a picture's sides may be made, at most
    many: bool = True  # False: only the model's own size
    clips: ClipRule | None = None  # which clips it takes; None: pictures alone

    def bucket(self, *sizes: Size) -> Size | None:
        """The best bucket for a picture; None if it is too small for all of them.

        The best has the largest (share of the picture that the crop keeps) x sqrt(pixels of the bucket): cropping a tenth away
        is as bad as training a tenth smaller. Several pictures get one shape; the one that loses most decides.
        """
        return _bucket(self, sizes)

    def refusal(self, *sizes: Size) -> str:
        """Why pictures of these sizes have no bucket, in words."""
        small = min(sizes, key=lambda size: min(size[0] / self.least[0], size[1] / self.least[1]))
        needed = " x ".join(str(math.ceil(side / self.upscale)) for side in self.least)
        return f"too small: {small[0]} x {small[1]} px, at least {needed} is needed (data.upscale = {self.upscale:g})"

    @property
    def least(self) -> Size:
        """The smallest sides of a bucket."""
        return (_sides(self.native[0], self.step)[0], _sides(self.native[1], self.step)[0]) if self.many else self.native

    def shapes(self, widest: float, highest: float) -> list[Size]:
        """All buckets that are at most this wide and this high, in px."""
        if not self.many:
            return [self.native] if widest >= self.native[0] and highest >= self.native[1] else []
        pixels = self.native[0] * self.native[1]
        widths, heights = (_sides(own, self.step) for own in self.native)
        return [
            (width, height)
            for width in widths[: bisect_right(widths, widest)]
            for height in heights[: bisect_right(heights, min(highest, pixels / width))]
        ]


def kept_share(size: Size, bucket: Shape) -> float:
    """The share of a picture (0 to 1) that remains when it is cropped to a bucket's aspect ratio."""
    across, down = size[0] * bucket[1], size[1] * bucket[0]
    return min(across, down) / max(across, down)


def fill_scale(size: Size, bucket: Shape) -> float:
    """The factor that a picture's sides are multiplied by to fill a bucket."""
    return max(bucket[0] / size[0], bucket[1] / size[1])


def crop_centre(key: str, crop: str) -> tuple[float, float]:
    """Where the crop lies, from 0 (left, top) to 1 (right, bottom). With `crop` "random" the picture's key decides."""
    if crop == "centre":
        return 0.5, 0.5
    digest = hashlib.sha256(f"crop {key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32, int.from_bytes(digest[4:8], "big") / 2**32


@cache
def _sides(own: int, step: int) -> list[int]:
    """Sides from half to twice the model's own side, which is included even if the step does not divide it."""
    return sorted({own, *range(max(1, math.ceil(own / 2 / step)) * step, 2 * own + 1, step)})


@lru_cache(100_000)
def _bucket(grid: Grid, sizes: tuple[Size, ...]) -> Size | None:
    widest, highest = (grid.upscale * min(size[axis] for size in sizes) for axis in (0, 1))

    def worth(shape: Size) -> float:
        return min(kept_share(size, shape) for size in sizes) * math.sqrt(shape[0] * shape[1])

    return max(grid.shapes(widest, highest), key=worth, default=None)
