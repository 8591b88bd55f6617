"""Denoising errors on held-out (unseen) pictures.

Every round uses the same pictures, timesteps and noise, so two rounds can be compared picture by picture. Pictures are few, and
one differs from the next by chance. What chance explains says nothing about a round.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spinlite.data.encoded import Encoded
from spinlite.data.groups import group_by_shape
from spinlite.data.records import Record
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.memory import processes
from spinlite.progress import Progress
from spinlite.training.batches import Errors, make_batch
from spinlite.training.step import measure

CHANCE = 0.005  # how likely chance alone may make a figure so large, for it to count
ROUNDING = 1e-5  # of an error
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

    def measure_some(run: list[int]) -> Errors:
        made = make_batch(family, encoded, [rows[i] for i in run], fakes, None, ("heldout",))
        return {name: measure(family, slots, name, made).cpu() for name in names}

    for run, measured in processes.spread(group_by_shape([record.bucket for record, _ in rows], batch), measure_some):
        for name in names:
            found[name][run] = measured[name]
        progress(done := done + len(run), len(rows))
    return {name: values.view(len(records), draws).mean(1) for name, values in found.items()}


def mean_of_pictures(records: Sequence[Record], errors: Tensor) -> Tensor:
    """Errors (records,) -> (pictures,): the mean over a picture's captions."""
    rows: dict[tuple[str, str], list[int]] = {}
    for i, r in enumerate(records):
        rows.setdefault((r.key, r.lose_key), []).append(i)
    return torch.stack([errors[group].mean() for group in rows.values()])


def has_grown(before: Tensor, after: Tensor) -> bool:
    """Whether errors (pictures,) grew by more than chance explains: a paired t-test, one-sided, at CHANCE.

    With fewer than 2 pictures the answer is always no.
    """
    difference = (after - before).double()
    count = len(difference)
    if count < 2 or difference.mean() <= ROUNDING * before.mean():
        return False
    spread = difference.std().item() / math.sqrt(count)
    return spread == 0 or student_tail(difference.mean().item() / spread, count - 1) < CHANCE


def student_tail(t: float, freedom: int) -> float:
    """How likely Student's t with so many degrees of freedom is above t >= 0 (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for i in range(3 if odd else 2, freedom - 1, 2):
        term *= (i - 1) / i * math.cos(angle) ** 2
        total += term
    within = 2 / math.pi * (angle + math.sin(angle) * total * (freedom > 1)) if odd else math.sin(angle) * total
    return (1 - within) / 2


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
