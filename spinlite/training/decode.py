"""Latents as pictures."""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from spinlite.data.groups import group_by_shape
from spinlite.families.family import Family
from spinlite.training.animation import strip


def decode_latents(family: Family, latents: Sequence[Tensor], batch: int) -> list[Image]:
    """Latents, (C, ...) each, of any shapes -> pictures in the same order; of a clip, a strip of frames.

    Up to `batch` of one shape are decoded together.
    """
    found: dict[int, Image] = {}
    for run in group_by_shape([x.shape for x in latents], batch):
        found |= zip(run, map(strip, family.decode(torch.stack([latents[i] for i in run]))), strict=True)
    return [found[i] for i in range(len(latents))]
