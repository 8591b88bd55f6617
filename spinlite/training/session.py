"""A run under way: the snapshots of its ladder, who the opponent of a round is, and the fakes that a round learns from.

A snapshot is the policy's LoRA as it was saved at the end of a round (or within one). Snapshot 0 is the start of the run.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from spinlite.config.settings import Play, Settings
from spinlite.data.encoded import Encoded
from spinlite.data.groups import group_by_shape
from spinlite.data.records import Record, other_pictures
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import generator, partners
from spinlite.memory import processes
from spinlite.memory.device import Device
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.progress import Watch
from spinlite.runs.files import fingerprint, fingerprint_files
from spinlite.runs.run import Run
from spinlite.runs.snapshots import SnapshotName
from spinlite.runs.store import Store
from spinlite.training.batches import FakePaths, Fakes
from spinlite.training.distance import compared
from spinlite.training.play import fake_key, play
from spinlite.training.prompts import Asked

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Everything that the rounds of a run share. `k` is the number of a round, from 1."""

    run: Run  # the run folder
    settings: Settings
    family: Family  # the base model
    slots: Slots  # the LoRAs in it: policy and opponent
    method: Method
    encoded: Encoded  # latents of the pictures and conditioning of the captions
    train: list[Record]
    heldout: list[Record]  # never trained on
    device: Device
    fallback: Fallback  # the memory settings of each phase
    watch: Watch  # who is told how far the work is
    asked: Sequence[Asked] = ()  # the user's own prompts, to be drawn

    def title(self, k: int, phase: str) -> str:
        """The title of a phase of round k, for the progress bar."""
        return f"round {k}/{self.settings.run.rounds} · {phase}"

    def fixed(self, who: Any) -> AbstractContextManager[None]:
        """A block in which the network is `who`, "policy", "opponent" or "base", and does not learn: its LoRA may be merged."""
        return self.slots.merged(who) if self.device.levers.merge else self.slots.use(who)

    def load_opponent(self, snapshot: SnapshotName) -> None:
        """Make a snapshot the opponent."""
        self.slots.load("opponent", self.load_snapshot(snapshot))

    def load_snapshot(self, snapshot: SnapshotName) -> dict[str, Tensor]:
        """The LoRA weights of a snapshot, as `Slots.load` takes them."""
        return self.run.snapshots.read(snapshot)[0]

    def save_snapshot(self, snapshot: SnapshotName) -> None:
        """Save the policy, as it is now, as a snapshot."""
        about = {"scale": self.slots.scale, "base": self.family.base_hash}
        self.run.snapshots.write(snapshot, self.slots.state("policy"), about)

    def ladder(self, k: int) -> list[SnapshotName]:
        """The snapshots that there were when round k began, in order: the start and those of all earlier rounds."""
        within = self.run.snapshots.within()
        return [0, *(snapshot for j in range(1, k) for snapshot in (*within.get(j, []), j))]

    def opponent(self, k: int) -> SnapshotName:
        """The snapshot that is round k's opponent.

        With opponent = "each" the training pictures have their own ones (`opponents`), and this one serves the held-out
        pictures: the previous snapshot, as also for a method without opponent.
        """
        match self.method.opponent:
            case "base":
                return 0
            case "random":
                return _pick(self.ladder(k), "opponent", self.settings.run.seed, k)
            case _:
                return k - 1

    def opponents(self, k: int) -> dict[SnapshotName, list[Record]]:
        """Round k's opponents, each with the training pictures that it makes the fakes for."""
        if self.method.opponent != "each":
            return {self.opponent(k): self.train}
        snapshots, groups = self.ladder(k), {}
        for record in self.train:
            snapshot = _pick(snapshots, "opponent", self.settings.run.seed, k, fake_key(record))
            groups.setdefault(snapshot, []).append(record)
        return groups

    def play(self, k: int) -> tuple[Fakes | None, Fakes]:
        """Make the fakes of round k. Returns (fakes for training or None, fakes for held-out pictures).

        Each is a function from records to latents (B, ...).
        """
        if self.method.fakes == "given":
            return self.encoded.rejected, self.encoded.rejected
        title = self.title(k, "play")
        heldout = self.sample_snapshot("opponent", self.opponent(k), self.heldout, title + " (held-out)", "heldout")
        if self.method.fakes is None:
            return None, heldout
        if self.method.fakes == "shuffled":
            return self._shuffled(k), heldout
        opponents, made = self.opponents(k), {}
        for snapshot, records in opponents.items():
            shown = f"{title} (snapshot {snapshot})" if len(opponents) > 1 else title
            made[snapshot] = self.sample_snapshot("opponent", snapshot, records, shown, *self._names(k))
        return self._by_opponent(k, made), heldout

    def sample_snapshot(
        self, who: Any, snapshot: SnapshotName, records: Sequence[Record], title: str, *names: int | str
    ) -> Fakes:
        """A picture by a snapshot for each record's caption, from the cache or made now; as a function from records to latents.

        `who` makes them: "opponent" (the snapshot is loaded into its slot), "policy" (its slot holds the snapshot already)
        or "base". The noise of each picture is named by `names` and its record.
        """
        settings = self._play_settings(names)
        store = self._store(snapshot if who != "base" else None, settings, names)
        if processes.from_lead(lambda: any(fake_key(r) not in store for r in records)):
            if store.damaged:
                self.watch.say(f"damaged fakes in {store.folder}, made again: {', '.join(store.damaged)}")
            if who == "opponent":
                self.load_opponent(snapshot)
            with self.watch.phase(title, len(records)) as progress, self.fixed(who):
                self.fallback.run("play", len(records), lambda levers: play(
                    self.family, self.encoded, records, settings, levers.play_batch, store, progress, *names
                ))  # fmt: skip
        return lambda chosen: store.get([fake_key(r) for r in chosen])["x0"]

    def samples_after(self, k: int) -> tuple[list[Record], Fakes]:
        """Samples of snapshot k, which the policy holds, for training captions, and the records that have one.

        If the next round plays against it, from noise alone, they are that round's fakes; else only those that are compared.
        """
        plays = self.method.fakes == "played" and self.settings.play.start == 1
        following = plays and k < self.settings.run.rounds and self.opponents(k + 1) == {k: self.train}
        chosen = compared(self.train)
        title = self.title(k + 1, "play") if following else self.title(k, "judge") + " (training captions)"
        return chosen, self.sample_snapshot("policy", k, self.train if following else chosen, title, *self._compared(k + 1))

    def samples_before(self) -> tuple[list[Record], Fakes]:
        """The same of the start. A method that plays from noise alone has them already: they are round 1's fakes."""
        chosen, title = compared(self.train), self.title(1, "judge") + " (training captions)"
        return chosen, self.sample_snapshot("opponent", 0, chosen, title, *self._compared(1))

    def fake_paths(self, k: int) -> FakePaths | None:
        """The kept points of the sampling paths of round k's fakes, as a function of records; None if play.points = 0."""
        if self.method.fakes != "played" or not self.settings.play.points:
            return None
        stores = {snapshot: self._store(snapshot, self.settings.play, self._names(k)) for snapshot in self.opponents(k)}
        readers = {
            snapshot: lambda records, store=store: store.get([fake_key(r) for r in records])
            for snapshot, store in stores.items()
        }
        read = self._by_opponent(k, readers)
        return lambda records: {name: value for name, value in read(records).items() if name != "x0"}

    def _names(self, k: int) -> tuple[int | str, ...]:
        """They name the random numbers of round k's fakes."""
        return "train", self.settings.run.seed, k

    def _compared(self, k: int) -> tuple[int | str, ...]:
        """The same of samples that are compared with the pictures: round k's fakes, unless pictures show through in those."""
        return self._names(k) if self.settings.play.start == 1 else ("compared", self.settings.run.seed, k)

    def _by_opponent(
        self, k: int, made: Mapping[SnapshotName, Callable[[Sequence[Record]], T]]
    ) -> Callable[[Sequence[Record]], T]:
        """Join what each opponent of round k made for its own records into one function of any records."""
        if len(made) == 1:
            return next(iter(made.values()))
        reader_of = {fake_key(r): made[snapshot] for snapshot, records in self.opponents(k).items() for r in records}
        return lambda records: _stack([reader_of[fake_key(r)]([r]) for r in records])

    def _play_settings(self, names: tuple[int | str, ...]) -> Play:
        """Held-out pictures are drawn as you will sample, fakes as [play] says, compared samples as fakes from noise alone."""
        if names[0] == "heldout":
            return self.settings.drawn
        play = self.settings.play
        return play if names[0] == "train" else play.model_copy(update={"points": 0, "start": 1.0})

    def _store(self, snapshot: SnapshotName | None, settings: Play, names: tuple[int | str, ...]) -> Store:
        """The fakes of a snapshot (None: of the base), in a folder named by the hash of all that they depend on."""
        has_lora = snapshot is not None and (snapshot or self.family.start)  # without a LoRA to start from, snapshot 0 is zero
        if has_lora:
            self.run.snapshots.require([snapshot or 0])
        made_by = fingerprint_files([self.run.snapshot_path(snapshot or 0)]) if has_lora else "base"
        wide = [self.encoded.chunks] * (self.encoded.chunks > 1)
        data = self.settings.data
        given = self.device.levers.encoder_bits + [data.background, data.latents] * (settings.start < 1)
        made_of = fingerprint(self.family.base_hash, made_by, settings.identity, data.crop, names, *wide, *given)
        folder = self.run.cache / "fake" / made_of
        self.run.remember_cache(folder)
        return Store(folder)

    def forget_fakes(self, k: int) -> None:
        """Delete what round k, which is over, has learned from. The fakes of round 1 stay: other runs may begin with them."""
        if self.method.fakes != "played" or not processes.leads():
            return
        for snapshot in self.opponents(k) if k > 1 else ():
            if self.run.snapshot_path(snapshot).exists():
                shutil.rmtree(self._store(snapshot, self.settings.play, self._names(k)).folder, ignore_errors=True)

    def _shuffled(self, k: int) -> Fakes:
        """For each picture another real picture, of the same shape if there is one. Every round pairs them anew."""
        other_of, pictures = other_pictures(self.train), list({record.key: record for record in self.train}.values())
        for group in group_by_shape([record.bucket for record in pictures], len(pictures)):
            if len(group) > 1:
                others = partners(len(group), self.settings.run.seed, k)
                other_of |= {pictures[i].key: pictures[group[other]] for i, other in zip(group, others, strict=True)}
        return lambda records: self.encoded.real([other_of[record.key] for record in records], records)


def _pick(snapshots: Sequence[SnapshotName], *names: int | str) -> SnapshotName:
    return snapshots[int(torch.randint(len(snapshots), (), generator=generator(*names)))]


def _stack(rows: Sequence[Any]) -> Any:
    """Join tensors (1, ...), or dicts of them, to one of (B, ...)."""
    if isinstance(rows[0], Tensor):
        return torch.cat(list(rows))
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
