"""Reads masks, and brings them to the resolution of latents. White (1) is learned from fully, black (0) not at all."""

import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from spinlite.data.clips import clip_size
from spinlite.data.pictures import decode, read_bytes, read_size
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint_bytes


def load_mask(record: Record) -> tuple[Image.Image | None, str]:
    """(a picture's mask, 8-bit grey, in the picture's size; why there is none). Neither if the mask's file has changed.

    A mask that is the picture itself is the picture's opacity. Call it inside `silence_pillow`.
    """
    path = record.mask or record.path
    try:
        content = read_bytes(path)
        if fingerprint_bytes(content) != record.mask_key:
            return None, ""
        dark = decode(content, path, background="black")[0]
        if path == record.path:  # over white and over black a picture differs by 255 x its transparency
            light = decode(content, path, background="white")[0]
            return ImageChops.invert(ImageChops.subtract(light, dark).getchannel("G")), ""
        size = clip_size(record.path) if record.clip else read_size(record.path)[0]
        return dark.convert("L").resize(size), ""
    except SpinliteError as error:
        return None, f"its mask: {error.problem}"


def fit_mask(mask: Image.Image, latent: Tensor, centring: tuple[float, float], mirrored: bool) -> Tensor:
    """A picture's mask, cut as the picture is cut, at the resolution of its latent (..., h, w): (1, ..., h, w) in [0, 1].

    A latent without height and width gets the mean of the mask.
    """
    height, width = latent.shape[-2:] if latent.ndim > 2 else (1, 1)
    small = ImageOps.fit(mask, (width, height), Image.Resampling.BOX, centering=centring)
    levels = (ImageOps.mirror(small) if mirrored else small).tobytes()
    shape = [*[1] * (latent.ndim - 2), height, width] if latent.ndim > 2 else [1] * latent.ndim
    return torch.frombuffer(bytearray(levels), dtype=torch.uint8).view(shape) / 255
