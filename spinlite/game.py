"""One run under way: what its rounds share, and who plays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spinlite.adapters import Slots
from spinlite.batches import Fakes, Walks
from spinlite.config import Play, Settings
from spinlite.data import Encoded, Record
from spinlite.device import Device
from spinlite.facts import Watch
from spinlite.fallback import Fallback
from spinlite.families import Family
from spinlite.maths.draws import generator, partners
from spinlite.methods import Method
from spinlite.play import fake_key, play
from spinlite.run import Run
from spinlite.store import Store, fingerprint, fingerprint_files, read


@dataclass(frozen=True)
class Game:
    """Everything that the rounds of a run share."""

    run: Run
    settings: Settings
    family: Family
    slots: Slots
    method: Method
    encoded: Encoded
    train: list[Record]
    heldout: list[Record]
    device: Device
    fallback: Fallback
    watch: Watch

    def title(self, k: int, phase: str) -> str:
        """What a phase of round k is called where it is shown."""
        return f"round {k}/{self.settings.run.rounds} · {phase}"

    def ladder(self, k: int) -> dict[str, Tensor]:
        """Snapshot k."""
        return read(self.run.snapshot(k))[0]

    def rival(self, k: int) -> int:
        """Which snapshot is round k's opponent; without one, the judge compares with the previous."""
        match self.method.opponent:
            case "base":
                return 0
            case "random":
                return int(torch.randint(k, (), generator=generator("opponent", self.settings.run.seed, k)))
            case _:
                return k - 1

    def play(self, k: int) -> tuple[Fakes | None, Fakes]:
        """Round k's fakes, and the held-out ones, as functions of records. The opponent's slot holds the rival."""
        if self.method.fakes == "given":
            return self.encoded.lose, self.encoded.lose
        title, rival = self.title(k, "play"), self.rival(k)
        heldout = self.played("opponent", rival, self.heldout, title + " (held-out)", "heldout")
        if self.method.fakes is None:
            return None, heldout
        if self.method.fakes == "shuffled":
            return self._shuffled(k), heldout
        seed = self.settings.run.seed
        return self.played("opponent", rival, self.train, title, "train", seed, k), heldout

    def played(self, who: Any, snapshot: int, records: Sequence[Record], title: str, *names: int | str) -> Fakes:
        """Samples of a snapshot for these records, made where they are missing, as a function of records."""
        settings = self._sampling(names)
        store = self._store(snapshot if who != "base" else None, settings, names)
        if any(fake_key(r) not in store for r in records):
            active = self.slots.merged if self.device.levers.merge else self.slots.use
            with self.watch.phase(title, len(records)) as progress, active(who):
                self.fallback.run("play", len(records), lambda levers: play(
                    self.family, self.encoded, records, settings, levers.play_batch, store, progress, *names
                ))  # fmt: skip
        return lambda asked: store.get([fake_key(r) for r in asked])["x0"]

    def walks(self, k: int) -> Walks | None:
        """What `play` kept of the paths of round k's fakes, as a function of records; None where it keeps nothing."""
        if self.method.fakes != "played" or not self.settings.play.points:
            return None
        store = self._store(self.rival(k), self.settings.play, ("train", self.settings.run.seed, k))
        return lambda asked: {name: value for name, value in store.get([fake_key(r) for r in asked]).items() if name != "x0"}

    def _sampling(self, names: tuple[int | str, ...]) -> Play:
        """Held-out fakes are noised again in every round alike: nothing is kept of their paths."""
        return self.settings.play.model_copy(update={"points": 0}) if names[0] == "heldout" else self.settings.play

    def _store(self, snapshot: int | None, settings: Play, names: tuple[int | str, ...]) -> Store:
        """`snapshot` none: the base. Snapshot 0 is the base too, or the LoRA that the run began with."""
        lora = snapshot is not None and (snapshot or self.family.start)
        made_by = fingerprint_files([self.run.snapshot(snapshot or 0)]) if lora else "base"
        made_of = fingerprint(self.family.base_hash, made_by, settings.model_dump(), names)
        return Store(self.run.folder.parent / "cache" / "fake" / made_of)

    def _shuffled(self, k: int) -> Fakes:
        """The pictures of other captions, another circle of them in each round."""
        other = partners(len(self.train), self.settings.run.seed, k)
        by_key = {record.key: self.train[place] for record, place in zip(self.train, other, strict=True)}
        return lambda records: self.encoded.real([by_key[record.key] for record in records])
