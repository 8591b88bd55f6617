"""The batches of a round: which pictures, at which timestep, with which noise, caption and fakes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from spinlite.config.settings import Draw, Learn
from spinlite.data.encoded import Encoded
from spinlite.data.groups import chunks, group_by_shape
from spinlite.data.records import Record, epoch_slots
from spinlite.families.family import Cond, Family
from spinlite.maths.draws import draw, gaussian, generator, permutation, seed_of
from spinlite.maths.times import TimeMap
from spinlite.maths.weights import weigh
from spinlite.memory.device import upload

Errors = dict[str, Tensor]  # by name: {policy, opponent, base}_{real, fake} -> (B,)
Fakes = Callable[[Sequence[Record]], Tensor]  # records -> their fakes' latents, (B, ...)
FakePaths = Callable[[Sequence[Record]], dict[str, Tensor]]  # records -> the kept points of their paths, (B, points, ...)


@dataclass(frozen=True)
class PathPoints:
    """One point of each fake's own sampling path: x_t (B, ...), t (B,), and own (B, ...), the opponent's prediction there."""

    x_t: Tensor
    t: Tensor
    own: Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one shape with their draws, on the device. real, fake, eps: (B, ...); t: (B,).

    fake         None where the method needs no fakes
    known        errors of these draws that were measured before, (B,) each; the step measures the others
    eps_fake     noise for the fakes alone; None: they get the same noise as the real ones
    weight       factor on each sample's errors, (B,); None: 1
    path_points  where each fake is measured on its own sampling path; None: fakes are noised like real pictures
    mask         weight of each place of a sample in its errors, on real and fake, (B, 1, ...); None: all places count alike
    """

    real: Tensor
    fake: Tensor | None
    eps: Tensor
    t: Tensor
    cond: Cond
    known: Errors = field(default_factory=dict)
    eps_fake: Tensor | None = None
    weight: Tensor | None = None
    path_points: PathPoints | None = None
    mask: Tensor | None = None

    def parts(self, size: int) -> "Iterator[Batch]":
        """The batch in parts of `size` samples; the last part holds the rest."""
        for start in range(0, len(self.t), size):
            yield _slice(self, slice(start, start + size))

    def share(self, number: int, count: int) -> "Batch":
        """Every `count`-th sample, from `number` on: what one of several processes takes."""
        return self if count == 1 else _slice(self, slice(number, None, count))


def _slice(value: Any, rows: slice) -> Any:
    match value:
        case None:
            return None
        case dict():
            return {name: each[rows] for name, each in value.items()}
        case Batch() | PathPoints():
            return replace(value, **{f.name: _slice(getattr(value, f.name), rows) for f in fields(value)})
        case _:
            return value[rows]


class Batches:
    """The draws of a round, numbered from 0: the *places* of the round. Update u takes `batch` places, from u * batch on.

    A draw depends on (seed, round, place) alone, so a resumed round sees the same ones. Each epoch shows the pictures in a new
    order. A picture is shown as often in an epoch as it has repeats, each time with another of its captions, in one of the
    caption's wordings.

    Pictures of different shapes can't share a tensor, so an update has one `Batch` for each shape among its pictures. In an
    epoch, pictures of one shape therefore come together as far as they fill updates (`_order`). No picture is left out, or
    shown more often than another.
    """

    def __init__(
        self, family: Family, encoded: Encoded, records: Sequence[Record], fakes: Fakes | None, settings: Learn, seed: int,
        round_: int, drawn: Draw | None = None, paths: FakePaths | None = None,
    ) -> None:  # fmt: skip
        self._family, self._encoded, self._fakes, self.paths = family, encoded, fakes, paths
        self._settings, self._draw = settings, drawn or Draw()
        self._names = seed, round_  # every random number of the round is named by them
        self._slots = epoch_slots(records, encoded.flip)
        self._orders: dict[int, list[int]] = {}  # of the epochs that were used last
        self.known: Errors = {}  # errors that were measured before the learning: (draws,) each

    @property
    def draws(self) -> int:
        """How many draws the round has."""
        return self._settings.length * self._settings.batch

    def for_update(self, update: int) -> list[Batch]:
        """The samples of an update, counted from 0: one batch for each shape."""
        places = range(update * self._settings.batch, (update + 1) * self._settings.batch)
        return [self.at_places(same_shape) for same_shape in self.by_shape(places)]

    def by_shape(self, places: Sequence[int]) -> list[list[int]]:
        """Places of the round in groups: one group for each shape."""
        shapes = [record.bucket for record, _ in self.rows(places)]
        return [[places[i] for i in group] for group in group_by_shape(shapes, len(places))]

    def rows(self, places: Iterable[int]) -> list[tuple[Record, int]]:
        """For each place: (the picture with its caption as it is worded then, how often that picture was shown before)."""
        numbers = [divmod(place, len(self._slots)) for place in places]
        epochs = {epoch for epoch, _ in numbers}
        kept = {epoch: order for epoch, order in self._orders.items() if epoch in epochs}
        new = {epoch: self._order(epoch) for epoch in epochs - kept.keys()}
        self._orders = kept | new
        return [self._worded(*self._slots[self._orders[epoch][i]].at(epoch)) for epoch, i in numbers]

    def _order(self, epoch: int) -> list[int]:
        """The order of an epoch's slots: a random one; with several shapes, one in which updates have few of them.

        Shapes come in a random order, and each one's slots too. This row is cut where updates end, and the parts that are whole
        updates change places at random.
        """
        count, batch = len(self._slots), self._settings.batch
        order = permutation(count, "learn", *self._names, epoch)
        groups = group_by_shape([self._slots[i].variants[0].bucket for i in order], count)
        if len(groups) == 1:
            return order
        row = [order[place] for group in groups for place in group]
        start = min(-epoch * count % batch, count)  # so many slots complete the update that the epoch before began
        whole = list(chunks(row[start : start + (count - start) // batch * batch], batch))
        turns = permutation(len(whole), "shapes", *self._names, epoch)
        rest = row[start + len(whole) * batch :]
        return [*row[:start], *(i for turn in turns for i in whole[turn]), *rest]

    def _worded(self, record: Record, turn: int) -> tuple[Record, int]:
        """The record with one of its wordings, at random each time that its picture is shown."""
        if not record.wordings:
            return record, turn
        chosen = seed_of("wording", *self._names, record.key, turn) % len(record.wordings)
        return replace(record, wording=record.wordings[chosen]), turn

    def at_places(self, places: Sequence[int]) -> Batch:
        """The draws at these places of the round as one batch. Their pictures must have one shape."""
        rows = self.rows(places)
        dropped = [self._caption_chance(r, epoch) < self._settings.caption_dropout for r, epoch in rows]
        names = ("learn", *self._names)
        batch = make_batch(self._family, self._encoded, rows, self._fakes, dropped, names, self._draw, self.paths)
        known = {name: upload(value[list(places)], batch.t.device) for name, value in self.known.items()}
        return replace(batch, known=known)

    def _caption_chance(self, record: Record, epoch: int) -> float:
        return torch.rand((), generator=generator("caption", *self._names, record.key, epoch)).item()


def make_batch(
    family: Family, encoded: Encoded, rows: Sequence[tuple[Record, int]], fakes: Fakes | None,
    dropped: Sequence[bool] | None, names: tuple[int | str, ...], drawn: Draw | None = None, paths: FakePaths | None = None,
) -> Batch:  # fmt: skip
    """Rows of one shape, (record, epoch) each -> a batch on the network's device.

    Timesteps and noise are named by `names`, the record's key and the epoch. `dropped` says whose caption is left out.

    With `paths` each fake is measured at one point of its own sampling path, at another one in each epoch. The real picture
    is noised to the same timestep.
    """
    drawn = drawn or Draw()
    device = next(family.net.parameters()).device
    records = [r for r, _ in rows]
    real, mask = encoded.real(records), encoded.masks(records)
    draws = [draw(real.shape[1:], r.key, epoch, *names) for r, epoch in rows]
    cond = place(encoded.cond(records, dropped), device)
    spread = TimeMap(drawn.times, drawn.shift or family.shift(real.shape[1:]))
    t = upload(family.path.times(spread.within(torch.tensor([u for u, _ in draws]), drawn.low, drawn.high)), device)
    points = weight = eps_fake = None
    if paths:
        points = _path_points(paths(records), [epoch for _, epoch in rows], dropped or [False] * len(rows), device)
        t = family.path.nearest(points.t)
    if drawn.weight != "constant" or paths:
        share = family.path.share(t)
        weight = weigh(family.path, drawn.weight, t, drawn.low, drawn.high, spread)
        weight = weight * ((share >= drawn.low) & (share <= drawn.high))
    if drawn.noise == "separate" and fakes:
        eps_fake = torch.stack([gaussian(real.shape[1:], "eps", "fake", *names, r.key, epoch) for r, epoch in rows])
    return Batch(
        real=upload(real, device),
        fake=upload(fakes(records), device) if fakes else None,
        eps=upload(torch.stack([eps for _, eps in draws]), device),
        t=t, cond=cond, weight=weight, path_points=points,
        eps_fake=None if eps_fake is None else upload(eps_fake, device),
        mask=None if mask is None else upload(mask, device),
    )  # fmt: skip


def place(cond: Cond, device: torch.device) -> Cond:
    """Conditioning on the device; whole numbers, such as lengths, are for the host."""
    return {name: upload(value, device) if value.is_floating_point() else value for name, value in cond.items()}


def _path_points(kept: dict[str, Tensor], epochs: Sequence[int], dropped: Sequence[bool], device: torch.device) -> PathPoints:
    """One point of each path, another in each epoch; the prediction without caption where the caption is dropped."""
    rows = torch.arange(len(epochs))
    turns = torch.tensor(epochs) % kept["t"].shape[1]
    chosen = {name: value[rows, turns] for name, value in kept.items()}
    no_caption = torch.tensor(dropped).view(-1, *[1] * (chosen["own"].ndim - 1))
    own = torch.where(no_caption, chosen["own_empty"], chosen["own"])
    return PathPoints(*(upload(value, device) for value in (chosen["x_t"].float(), chosen["t"], own.float())))
