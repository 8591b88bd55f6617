"""How far a round's samples are from your pictures as a whole: the energy distance of their latents.

No outside network judges here. The energy distance (Székely & Rizzo 2013, "Energy statistics", section 2) compares two sets by
the distances between their members. It is 0 where both come from one distribution, whatever that is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spinlite.data.records import Record

COMPARED = 96  # pictures at the most: the price of a round's samples must stay small
FEWEST = 3  # pictures of one shape: fewer have no spread
ENOUGH = 9  # captions to tell a difference from chance
CHANCE = 2.576  # standard errors: chance alone puts samples that much further away in 0.5 % of rounds


def compared(train: list[Record]) -> list[Record]:
    """Training records whose samples are compared: a caption for each picture, spread over them evenly."""
    pictures = list({record.key: record for record in reversed(train)}.values())[::-1]  # each with its first caption
    count = min(COMPARED, len(pictures))
    return [pictures[i * len(pictures) // count] for i in range(count)]


@dataclass(frozen=True)
class Distance:
    """An energy distance, in mean distances between two reals, so that it has no unit: 0 means alike.

    `influence` has what each caption adds to its error (the jackknife, Efron & Stein 1981): the root of the sum of its squares.
    """

    value: float
    influence: Tensor  # (captions,)

    @property
    def error(self) -> float:
        return self.influence.norm().item()

    def is_above(self, other: "Distance") -> bool:
        """Whether samples are further away than others of the same captions, by more than chance explains.

        With fewer than 9 captions the answer is always no.
        """
        apart = (self.influence - other.influence).norm().item()
        return len(self.influence) >= ENOUGH and self.value - other.value > CHANCE * apart


def energy_distance(fakes: list[Tensor], reals: list[Tensor]) -> Distance | None:
    """The energy distance of latents (C, ...) of fakes and reals; fake i has the caption of real i.

    Each shape is compared in itself, and shapes count by their pictures. Shapes of fewer than 3 are left out; if none is left,
    the answer is None.
    """
    shapes: dict[torch.Size, list[int]] = {}
    for i, real in enumerate(reals):
        shapes.setdefault(real.shape, []).append(i)
    groups = [group for group in shapes.values() if len(group) >= FEWEST]
    if not groups:
        return None
    total = sum(map(len, groups))
    value, influences = 0.0, []
    for group in groups:
        whole, without = _distances(*(torch.stack([x[i] for i in group]).flatten(1).double() for x in (fakes, reals)))
        share = len(group) / total
        value += share * whole
        influences.append(share * (1 - 1 / len(group)) ** 0.5 * (without - without.mean()))
    return Distance(value, torch.cat(influences))


def _distances(fakes: Tensor, reals: Tensor) -> tuple[float, Tensor]:
    """The distance between two sets (n, D), and those (n,) of the sets without their member i."""
    between, within_fakes, within_reals = (torch.cdist(a, b) for a, b in ((fakes, reals), (fakes, fakes), (reals, reals)))
    # Fake i and real i share their caption, so pairs (i, i) are left out of `between` as they are of the others.
    sums = [d.fill_diagonal_(0) for d in (between, within_fakes, within_reals)]

    def energy(cross: Tensor, fake: Tensor, real: Tensor) -> Tensor:
        return ((2 * cross - fake - real) / real).double()

    whole = energy(*(d.sum() for d in sums)).item()
    without = energy(*(d.sum() - d.sum(0) - d.sum(1) for d in sums))
    return whole, without
