"""Held-out denoising errors: the same records, times and noise in every round, so that differences are paired."""

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
    """The named errors of every record, each the mean over the same `draws` draws: (records,)."""
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
    """Whether errors (records,) grew beyond chance: their mean paired difference is above 2 of its standard errors."""
    difference = (after - before).double()
    if len(difference) < 2:
        return bool(difference.mean() > 0)
    return difference.mean().item() > 2 * difference.std().item() / math.sqrt(len(difference))


def has_strayed(real: Latents, start: Latents, now: Latents) -> bool:
    """Whether samples, (C, ...) each, have moved away from the real ones: their channels' means or deviations are further from
    theirs than at the start, by more than two halves of the real ones are apart. Never with fewer than 8."""
    if len(real) < 8:
        return False
    chance = drift(real[0::2], real[1::2])
    return any(after > before + by for before, after, by in zip(drift(real, start), drift(real, now), chance, strict=True))


def drift(start: Latents, now: Latents) -> tuple[float, float]:
    """How far samples' latents, (C, ...) each, have moved from where they started, channel by channel.

    Returns (root mean square shift of the channel means, in deviations; root mean square log ratio of the deviations).
    Near 0 is none; self-play that collapses shows here as a colour cast or a loss of contrast.
    """
    a, b = (torch.cat([x.reshape(len(x), -1) for x in samples], 1).double() for samples in (start, now))
    spread = a.std(1).clamp_min(1e-8)
    shift = (b.mean(1) - a.mean(1)) / spread
    ratio = (b.std(1).clamp_min(1e-8) / spread).log()
    return shift.square().mean().sqrt().item(), ratio.square().mean().sqrt().item()
