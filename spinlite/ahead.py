"""The opponent's errors of a whole round, measured ahead of learning: each step then runs the policy alone."""

import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from spinlite.adapters import Slots
from spinlite.batches import Batches, Errors
from spinlite.data import Progress
from spinlite.families import Family
from spinlite.learn import measure
from spinlite.store import read, write

SAVE_SECONDS = 10.0  # of measuring that a cut-off run may lose


@torch.no_grad()
def errors_ahead(
    family: Family, slots: Slots, names: Sequence[str], batches: Batches, places: Sequence[int], path: Path, batch: int,
    progress: Progress,
) -> Errors:  # fmt: skip
    """The named errors of the draws at these places of a round: (places,) each, on the CPU.

    A draw is known before the policy is, and with it whether its caption is dropped: what the opponent makes of it is one
    number, which takes 4 bytes in the file at `path` (whose name has to say what it was made of) until the round is over.

    It costs the very forwards that the steps are spared, no more; but `batch` of them at once instead of a micro-batch, and
    no learning step switches adapters any more. In half precision an error depends, by rounding, on the batch it was
    measured in; against live errors of the policy that is noise in the margin.

    Draws of one shape are measured together. What was measured is kept every few seconds and goes on from there: in the same
    batches, so with the same bits.
    """
    groups = batches.by_shape(places)
    order = [place for group in groups for place in group]
    ends = list(accumulate(len(group) for group in groups))
    found = read(path)[0] if path.exists() else {name: torch.empty(0) for name in names}
    done = kept = len(found[names[0]])
    saved = time.monotonic()
    try:
        while done < len(order):
            made = batches.of(order[done : min(done + batch, next(end for end in ends if end > done))])
            more = {name: measure(family, slots, name, made).cpu() for name in names}
            found = {name: torch.cat([found[name], more[name]]) for name in names}
            done = len(found[names[0]])
            progress(done, len(places))
            if time.monotonic() - saved >= SAVE_SECONDS:
                write(path, found)
                saved, kept = time.monotonic(), done
    finally:
        if done > kept:
            write(path, found)
    at = {place: row for row, place in enumerate(order)}
    return {name: value[[at[place] for place in places]] for name, value in found.items()}
