"""Latents as pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spinlite.data.groups import group_by_shape
from spinlite.families.family import Family
from spinlite.families.picture import Drawn


def decode_latents(family: Family, latents: Sequence[Tensor], batch: int) -> list[Drawn]:
    """Latents, (C, ...) each, of any shapes -> pictures or clips, in the same order.

    Up to `batch` of one shape are decoded together.
    """
    found: dict[int, Drawn] = {}
    for run in group_by_shape([x.shape for x in latents], batch):
        found |= zip(run, family.decode(torch.stack([latents[i] for i in run])), strict=True)
    return [found[i] for i in range(len(latents))]
