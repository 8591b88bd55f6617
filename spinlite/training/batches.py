"""The draws of a round as batches: which samples, at which time and noise, with which fakes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from spinlite.config.settings import Draw, Learn
from spinlite.data.encoded import Encoded, group_by_shape
from spinlite.data.records import Record, epoch_slots
from spinlite.families.family import Cond, Family
from spinlite.maths.draws import draw, gaussian, generator, permutation
from spinlite.maths.weights import weigh

Errors = dict[str, Tensor]  # by name: {policy, opponent, base}_{real, fake} -> (B,)
Fakes = Callable[[Sequence[Record]], Tensor]  # records -> their fakes' latents, (B, ...)
PathsOf = Callable[[Sequence[Record]], dict[str, Tensor]]  # records -> what `play` kept of their paths, (B, points, ...)


@dataclass(frozen=True)
class PathPoints:
    """Points of fakes' own sampling paths: x_t and own (B, ...), t (B,). own: what the opponent predicted there."""

    x_t: Tensor
    t: Tensor
    own: Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one shape with their draws, on the device. real, fake, eps: (B, ...); t: (B,). fake is None where nobody asks
    for it.

    known:    errors of these draws that were measured ahead, (B,) each; the step measures the others
    eps_fake: the fakes' own noise; None: that of the real ones
    weight:   what the errors count, (B,); None: 1
    walked:   where the fakes are met instead of being noised again
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

    def parts(self, size: int) -> "Iterator[Batch]":
        """The batch in runs of `size` samples, the last one shorter where it does not divide."""
        for start in range(0, len(self.t), size):
            yield _cut(self, slice(start, start + size))


def _cut(value: Any, rows: slice) -> Any:
    match value:
        case None:
            return None
        case dict():
            return {name: each[rows] for name, each in value.items()}
        case Batch() | PathPoints():
            return replace(value, **{f.name: _cut(getattr(value, f.name), rows) for f in fields(value)})
        case _:
            return value[rows]


class Batches:
    """The draws of a round, each a function of (seed, round, place): epochs are permutations, one after the other.

    An update's samples are of several shapes where pictures are; those of one shape go through the network together, and none
    is left out or put off for its shape.

    A picture is shown as often in an epoch as it has repeats, with another of its captions each time.
    """

    def __init__(
        self, family: Family, encoded: Encoded, records: Sequence[Record], fakes: Fakes | None, settings: Learn, seed: int,
        round_: int, drawn: Draw | None = None, paths: PathsOf | None = None,
    ) -> None:  # fmt: skip
        self._family, self._encoded, self._shows, self._fakes = family, encoded, epoch_slots(records, encoded.flip), fakes
        self._settings, self._names, self._drawn, self.paths = settings, (seed, round_), drawn or Draw(), paths
        self.known: Errors = {}  # what was measured ahead: (draws,) each
        self._orders: dict[int, list[int]] = {}  # of the epochs that were asked for last

    @property
    def draws(self) -> int:
        """How many the round has."""
        return self._settings.updates * self._settings.batch

    def at(self, update: int) -> list[Batch]:
        """The samples of an update, from 0, one batch for each shape."""
        places = range(update * self._settings.batch, (update + 1) * self._settings.batch)
        return [self.of(run) for run in self.by_shape(places)]

    def by_shape(self, places: Sequence[int]) -> list[list[int]]:
        """Places of the round, those of one shape together."""
        shapes = [record.bucket for record, _ in self.rows(places)]
        return [[places[i] for i in run] for run in group_by_shape(shapes, len(places))]

    def rows(self, places: Iterable[int]) -> list[tuple[Record, int]]:
        """(record, epoch) of draws, by their places in the round."""
        found = [divmod(i, len(self._shows)) for i in places]
        asked = {epoch for epoch, _ in found}
        kept = {epoch: known for epoch, known in self._orders.items() if epoch in asked}
        new = {epoch: permutation(len(self._shows), "learn", *self._names, epoch) for epoch in asked - kept.keys()}
        self._orders = kept | new
        return [self._shows[self._orders[epoch][place]].at(epoch) for epoch, place in found]

    def of(self, places: Sequence[int]) -> Batch:
        """The draws at these places of the round, which are of one shape."""
        rows = self.rows(places)
        dropped = [self._coin(r, epoch) < self._settings.caption_dropout for r, epoch in rows]
        names = ("learn", *self._names)
        batch = make_batch(self._family, self._encoded, rows, self._fakes, dropped, names, self._drawn, self.paths)
        known = {name: value[list(places)].to(batch.t.device) for name, value in self.known.items()}
        return replace(batch, known=known)

    def _coin(self, record: Record, epoch: int) -> float:
        return torch.rand((), generator=generator("caption", *self._names, record.key, epoch)).item()


def make_batch(
    family: Family, encoded: Encoded, rows: Sequence[tuple[Record, int]], fakes: Fakes | None,
    dropped: Sequence[bool] | None, names: tuple[int | str, ...], drawn: Draw | None = None, paths: PathsOf | None = None,
) -> Batch:  # fmt: skip
    """(record, epoch) rows of one shape -> a batch on the network's device, with the draws of `names`.

    With `paths` a fake is met on its own path, at the point that its epoch is due, and the real one at the same time.
    """
    drawn = drawn or Draw()
    device = next(family.net.parameters()).device
    records = [r for r, _ in rows]
    real = encoded.real(records)
    draws = [draw(real.shape[1:], r.key, epoch, *names) for r, epoch in rows]
    cond = {name: value.to(device) for name, value in encoded.cond(records, dropped).items()}
    t = family.path.times(drawn.low + (drawn.high - drawn.low) * torch.tensor([u for u, _ in draws])).to(device)
    walked, weight = None, None
    if paths:
        walked = _path_points(paths(records), [epoch for _, epoch in rows], dropped or [False] * len(rows), device)
        t = family.path.nearest(walked.t)
    if drawn.weight != "constant" or paths:
        share = family.path.share(t)
        weight = weigh(family.path, drawn.weight, t, drawn.low, drawn.high) * ((share >= drawn.low) & (share <= drawn.high))
    eps_fake = None
    if drawn.noise == "separate" and fakes:
        eps_fake = torch.stack([gaussian(real.shape[1:], "eps", "fake", *names, r.key, epoch) for r, epoch in rows])
    return Batch(
        real=real.to(device),
        fake=fakes(records).to(device) if fakes else None,
        eps=torch.stack([eps for _, eps in draws]).to(device),
        t=t,
        cond=cond,
        eps_fake=None if eps_fake is None else eps_fake.to(device),
        weight=weight,
        path_points=walked,
    )


def _path_points(kept: dict[str, Tensor], epochs: Sequence[int], dropped: Sequence[bool], device: torch.device) -> PathPoints:
    """One point of each path, another in each epoch; without caption where it is dropped."""
    rows = torch.arange(len(epochs))
    due = torch.tensor(epochs) % kept["t"].shape[1]
    at = {name: value[rows, due] for name, value in kept.items()}
    plain = torch.tensor(dropped).view(-1, *[1] * (at["own"].ndim - 1))
    own = torch.where(plain, at["own_empty"], at["own"])
    return PathPoints(at["x_t"].float().to(device), at["t"].to(device), own.float().to(device))
