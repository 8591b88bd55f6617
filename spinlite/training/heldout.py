"""Denoising errors on held-out (unseen) pictures.

Every round uses the same pictures, timesteps and noise, so two rounds can be compared picture by picture.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spinlite.data.encoded import Encoded, group_by_shape
from spinlite.data.records import Record
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.progress import Progress
from spinlite.training.batches import Errors, make_batch
from spinlite.training.step import measure

Latents = Tensor | Sequence[Tensor]  # (B, C, ...), or (C, ...) each where shapes differ


@torch.no_grad()
def heldout_errors(
    family: Family, slots: Slots, encoded: Encoded, records: Sequence[Record],
    fakes: Callable[[Sequence[Record]], Tensor] | None, names: Sequence[str], draws: int, batch: int, progress: Progress,
) -> Errors:  # fmt: skip
    """The named errors of every record, (records,) each. An error is the mean over `draws` timesteps, the same in each round.

    `batch` samples go through the network together.
    """
    rows = [(record, epoch) for record in records for epoch in range(draws)]
    found = {name: torch.empty(len(rows)) for name in names}
    done = 0
    for run in group_by_shape([record.bucket for record, _ in rows], batch):
        made = make_batch(family, encoded, [rows[i] for i in run], fakes, None, ("heldout",))
        for name in names:
            found[name][run] = measure(family, slots, name, made).cpu()
        progress(done := done + len(run), len(rows))
    return {name: values.view(len(records), draws).mean(1) for name, values in found.items()}


def has_grown(before: Tensor, after: Tensor) -> bool:
    """Whether errors (records,) grew by more than chance: their mean difference is above 2 standard errors of it."""
    difference = (after - before).double()
    if len(difference) < 2:
        return bool(difference.mean() > 0)
    return difference.mean().item() > 2 * difference.std().item() / math.sqrt(len(difference))


def has_strayed(real: Latents, start: Latents, now: Latents) -> bool:
    """Whether samples have moved away from the real pictures: in their channels' means or in their standard deviations.

    Latents are (C, ...) each. `now` must be further from `real` than `start` was, by more than the two halves of `real` are
    from each other. With fewer than 8 pictures the answer is always no.
    """
    if len(real) < 8:
        return False
    chance = drift(real[0::2], real[1::2])
    return any(after > before + by for before, after, by in zip(drift(real, start), drift(real, now), chance, strict=True))


def levels(samples: Latents) -> tuple[list[float], list[float]]:
    """(mean, deviation) of each channel of latents, (C, ...) each."""
    whole = torch.cat([x.reshape(len(x), -1) for x in samples], 1).double()
    return whole.mean(1).tolist(), whole.std(1).tolist()


def drift(start: Latents, now: Latents) -> tuple[float, float]:
    """How far samples' latents, (C, ...) each, have moved from `start`, channel by channel.

    Returns (root mean square shift of the channel means, in standard deviations of `start`; root mean square of the log
    ratios of the standard deviations). Both are 0 without drift. Self-play that collapses shows here: as a colour cast or as a
    loss of contrast.
    """
    a, b = (torch.cat([x.reshape(len(x), -1) for x in samples], 1).double() for samples in (start, now))
    spread = a.std(1).clamp_min(1e-8)
    shift = (b.mean(1) - a.mean(1)) / spread
    ratio = (b.std(1).clamp_min(1e-8) / spread).log()
    return shift.square().mean().sqrt().item(), ratio.square().mean().sqrt().item()
