"""One run under way: what its rounds share, and who plays."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from spinlite.config.settings import Play, Settings
from spinlite.data.encoded import Encoded, runs
from spinlite.data.records import Record, strangers
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import generator, partners
from spinlite.memory.device import Device
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.progress import Watch
from spinlite.runs.run import Run, Rung
from spinlite.runs.store import Store, fingerprint, fingerprint_files, read, write
from spinlite.training.batches import Fakes, Walks
from spinlite.training.play import fake_key, play

T = TypeVar("T")


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

    def enter(self, rung: Rung) -> None:
        """Put a snapshot into the opponent's slot."""
        self.slots.load("opponent", self.ladder(rung))

    def ladder(self, rung: Rung) -> dict[str, Tensor]:
        """A snapshot."""
        return read(self.run.snapshot(rung))[0]

    def keep(self, rung: Rung) -> None:
        """Make the policy, as it is now, a snapshot."""
        about = {"round": rung, "scale": self.slots.scale, "base": self.family.base_hash}
        write(self.run.snapshot(rung), self.slots.state("policy"), {"spinlite": json.dumps(about, sort_keys=True)})

    def rungs(self, k: int) -> list[Rung]:
        """The ladder as it stood when round k began."""
        return [0, *(rung for j in range(1, k) for rung in (*self.run.rungs(j), j))]

    def rival(self, k: int) -> Rung:
        """Which snapshot is round k's opponent, on held-out pictures at least. Where pictures have one each, or there is none,
        the previous."""
        match self.method.opponent:
            case "base":
                return 0
            case "random":
                return _one_of(self.rungs(k), "opponent", self.settings.run.seed, k)
            case _:
                return k - 1

    def rivals(self, k: int) -> dict[Rung, list[Record]]:
        """Round k's opponents, and what pictures to learn from each has."""
        if self.method.opponent != "each":
            return {self.rival(k): self.train}
        rungs, groups = self.rungs(k), {}
        for record in self.train:
            rung = _one_of(rungs, "opponent", self.settings.run.seed, k, fake_key(record))
            groups.setdefault(rung, []).append(record)
        return groups

    def play(self, k: int) -> tuple[Fakes | None, Fakes]:
        """Round k's fakes, and the held-out ones, as functions of records."""
        if self.method.fakes == "given":
            return self.encoded.lose, self.encoded.lose
        title = self.title(k, "play")
        heldout = self.played("opponent", self.rival(k), self.heldout, title + " (held-out)", "heldout")
        if self.method.fakes is None:
            return None, heldout
        if self.method.fakes == "shuffled":
            return self._shuffled(k), heldout
        rivals, made = self.rivals(k), {}
        for rung, records in rivals.items():
            told = f"{title} (snapshot {rung})" if len(rivals) > 1 else title
            made[rung] = self.played("opponent", rung, records, told, *self._names(k))
        return self._by_rival(k, made), heldout

    def played(self, who: Any, snapshot: Rung, records: Sequence[Record], title: str, *names: int | str) -> Fakes:
        """Samples of a snapshot for these records, made where they are missing, as a function of records. The policy is there
        already; an opponent enters."""
        settings = self._sampling(names)
        store = self._store(snapshot if who != "base" else None, settings, names)
        if any(fake_key(r) not in store for r in records):
            if who == "opponent":
                self.enter(snapshot)
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
        stores = {rung: self._store(rung, self.settings.play, self._names(k)) for rung in self.rivals(k)}
        kept = {rung: lambda asked, store=store: store.get([fake_key(r) for r in asked]) for rung, store in stores.items()}
        whole = self._by_rival(k, kept)
        return lambda asked: {name: value for name, value in whole(asked).items() if name != "x0"}

    def _names(self, k: int) -> tuple[int | str, ...]:
        return "train", self.settings.run.seed, k

    def _by_rival(self, k: int, made: Mapping[Rung, Callable[[Sequence[Record]], T]]) -> Callable[[Sequence[Record]], T]:
        """What the opponents of round k made, each of its own pictures, as one function of records."""
        if len(made) == 1:
            return next(iter(made.values()))
        by = {fake_key(r): made[rung] for rung, records in self.rivals(k).items() for r in records}
        return lambda asked: _stacked([by[fake_key(r)]([r]) for r in asked])

    def _sampling(self, names: tuple[int | str, ...]) -> Play:
        """Held-out fakes are noised again in every round alike: nothing is kept of their paths."""
        return self.settings.play.model_copy(update={"points": 0}) if names[0] == "heldout" else self.settings.play

    def _store(self, snapshot: Rung | None, settings: Play, names: tuple[int | str, ...]) -> Store:
        """`snapshot` none: the base. Snapshot 0 is the base too, or the LoRA that the run began with."""
        lora = snapshot is not None and (snapshot or self.family.start)
        made_by = fingerprint_files([self.run.snapshot(snapshot or 0)]) if lora else "base"
        made_of = fingerprint(self.family.base_hash, made_by, settings.model_dump(), self.settings.data.crop, names)
        return Store(self.run.folder.parent / "cache" / "fake" / made_of)

    def _shuffled(self, k: int) -> Fakes:
        """The pictures of other captions, another circle of them in each round; of the same shape, where there are any."""
        by_key, pictures = strangers(self.train), list({record.key: record for record in self.train}.values())
        for run in runs([record.bucket for record in pictures], len(pictures)):
            if len(run) > 1:
                other = partners(len(run), self.settings.run.seed, k)
                by_key |= {pictures[i].key: pictures[run[place]] for i, place in zip(run, other, strict=True)}
        return lambda records: self.encoded.real([by_key[record.key] for record in records], records)


def _one_of(rungs: Sequence[Rung], *names: int | str) -> Rung:
    return rungs[int(torch.randint(len(rungs), (), generator=generator(*names)))]


def _stacked(rows: Sequence[Any]) -> Any:
    """Tensors (1, ...), or dicts of them, as one."""
    if isinstance(rows[0], Tensor):
        return torch.cat(list(rows))
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
