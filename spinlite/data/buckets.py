"""Which shape a picture is learned in: buckets of many aspect ratios, none with more pixels than the model's own size.

Sizes are (width, height) in pixels, of upright pictures.
"""

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache

Size = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """The buckets of a model: sides are multiples of `step`, from half of the model's own side to twice it."""

    native: Size
    step: int
    upscale: float = 1.5  # a picture is enlarged to this many times its sides at the most
    many: bool = True  # or only the model's own size

    def bucket(self, *sizes: Size) -> Size | None:
        """The best shape for a picture; None where it is too small for any.

        The best has the greatest share of the picture that is kept x the square root of its own pixels: to cut away a tenth
        is as bad as to learn it a tenth smaller. Of several pictures, which are to have one shape, the one that is cut most
        decides.
        """
        return _bucket(self, sizes)

    def refusal(self, *sizes: Size) -> str:
        """Why such pictures have no bucket, in words."""
        small = min(sizes, key=lambda size: min(size[0] / self.least[0], size[1] / self.least[1]))
        needed = " x ".join(str(math.ceil(side / self.upscale)) for side in self.least)
        return f"too small: {small[0]} x {small[1]} px, where {needed} is the least (data.upscale = {self.upscale:g})"

    @property
    def least(self) -> Size:
        """The smallest sides of a bucket."""
        return (_sides(self.native[0], self.step)[0], _sides(self.native[1], self.step)[0]) if self.many else self.native

    def shapes(self, widest: float, highest: float) -> list[Size]:
        """The buckets within these sides."""
        if not self.many:
            return [self.native] if widest >= self.native[0] and highest >= self.native[1] else []
        pixels = self.native[0] * self.native[1]
        widths, heights = (_sides(own, self.step) for own in self.native)
        return [
            (width, height)
            for width in widths[: bisect_right(widths, widest)]
            for height in heights[: bisect_right(heights, min(highest, pixels / width))]
        ]


def kept_share(size: Size, bucket: Size) -> float:
    """The share of a picture that is left when it is cut to a bucket's aspect ratio."""
    across, down = size[0] * bucket[1], size[1] * bucket[0]
    return min(across, down) / max(across, down)


def fill_scale(size: Size, bucket: Size) -> float:
    """What a picture's sides are multiplied with to fill a bucket."""
    return max(bucket[0] / size[0], bucket[1] / size[1])


def crop_centre(key: str, crop: str) -> tuple[float, float]:
    """Where the cut lies, from 0 (left, top) to 1 (right, bottom): a function of the picture's key where `crop` is "random"."""
    if crop == "centre":
        return 0.5, 0.5
    digest = hashlib.sha256(f"crop {key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32, int.from_bytes(digest[4:8], "big") / 2**32


@cache
def _sides(own: int, step: int) -> list[int]:
    """From half to twice the model's own side, which is one of them even where the step does not divide it."""
    return sorted({own, *range(max(1, math.ceil(own / 2 / step)) * step, 2 * own + 1, step)})


@lru_cache(100_000)
def _bucket(grid: Grid, sizes: tuple[Size, ...]) -> Size | None:
    widest, highest = (grid.upscale * min(size[axis] for size in sizes) for axis in (0, 1))

    def worth(shape: Size) -> float:
        return min(kept_share(size, shape) for size in sizes) * math.sqrt(shape[0] * shape[1])

    return max(grid.shapes(widest, highest), key=worth, default=None)
