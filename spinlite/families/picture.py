"""A picture as a family takes it. Apart from `family`, which needs torch."""

from dataclasses import dataclass

from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """An RGB picture in the size that the network takes, and how it was cut to it. Sizes are (width, height) in pixels."""

    image: Image
    original_size: tuple[int, int]  # before resizing
    crop: tuple[int, int]  # (left, top) of the crop, after resizing
