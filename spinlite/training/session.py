"""One run under way: what its rounds share, and who plays."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from spinlite.config.settings import Play, Settings
from spinlite.data.encoded import Encoded, group_by_shape
from spinlite.data.records import Record, other_pictures
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.lora.metadata import tag_counts
from spinlite.maths.draws import generator, partners
from spinlite.memory.device import Device
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.progress import Watch
from spinlite.runs.run import Run, SnapshotName
from spinlite.runs.store import Store, fingerprint, fingerprint_files, read_tensors, write_tensors
from spinlite.training.batches import FakePaths, Fakes
from spinlite.training.play import fake_key, play

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
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

    def load_opponent(self, snapshot: SnapshotName) -> None:
        """Put a snapshot into the opponent's slot."""
        self.slots.load("opponent", self.load_snapshot(snapshot))

    def load_snapshot(self, snapshot: SnapshotName) -> dict[str, Tensor]:
        """A snapshot."""
        return read_tensors(self.run.snapshot_path(snapshot))[0]

    def save_snapshot(self, snapshot: SnapshotName) -> None:
        """Make the policy, as it is now, a snapshot."""
        about = {"round": snapshot, "scale": self.slots.scale, "base": self.family.base_hash}
        write_tensors(
            self.run.snapshot_path(snapshot), self.slots.state("policy"), {"spinlite": json.dumps(about, sort_keys=True)}
        )

    def ladder(self, k: int) -> list[SnapshotName]:
        """The ladder as it stood when round k began."""
        return [0, *(snapshot for j in range(1, k) for snapshot in (*self.run.snapshots_within(j), j))]

    def opponent(self, k: int) -> SnapshotName:
        """Which snapshot is round k's opponent, on held-out pictures at least. Where pictures have one each, or there is none,
        the previous."""
        match self.method.opponent:
            case "base":
                return 0
            case "random":
                return _pick(self.ladder(k), "opponent", self.settings.run.seed, k)
            case _:
                return k - 1

    def opponents(self, k: int) -> dict[SnapshotName, list[Record]]:
        """Round k's opponents, and what pictures to learn from each has."""
        if self.method.opponent != "each":
            return {self.opponent(k): self.train}
        snapshots, groups = self.ladder(k), {}
        for record in self.train:
            snapshot = _pick(snapshots, "opponent", self.settings.run.seed, k, fake_key(record))
            groups.setdefault(snapshot, []).append(record)
        return groups

    def play(self, k: int) -> tuple[Fakes | None, Fakes]:
        """Round k's fakes, and the held-out ones, as functions of records."""
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
            told = f"{title} (snapshot {snapshot})" if len(opponents) > 1 else title
            made[snapshot] = self.sample_snapshot("opponent", snapshot, records, told, *self._names(k))
        return self._by_opponent(k, made), heldout

    def sample_snapshot(
        self, who: Any, snapshot: SnapshotName, records: Sequence[Record], title: str, *names: int | str
    ) -> Fakes:
        """Samples of a snapshot for these records, made where they are missing, as a function of records. The policy is there
        already; an opponent enters."""
        settings = self._sampling(names)
        store = self._store(snapshot if who != "base" else None, settings, names)
        if any(fake_key(r) not in store for r in records):
            if who == "opponent":
                self.load_opponent(snapshot)
            active = self.slots.merged if self.device.levers.merge else self.slots.use
            with self.watch.phase(title, len(records)) as progress, active(who):
                self.fallback.run("play", len(records), lambda levers: play(
                    self.family, self.encoded, records, settings, levers.play_batch, store, progress, *names
                ))  # fmt: skip
        return lambda asked: store.get([fake_key(r) for r in asked])["x0"]

    def fake_paths(self, k: int) -> FakePaths | None:
        """What `play` kept of the paths of round k's fakes, as a function of records; None where it keeps nothing."""
        if self.method.fakes != "played" or not self.settings.play.points:
            return None
        stores = {snapshot: self._store(snapshot, self.settings.play, self._names(k)) for snapshot in self.opponents(k)}
        kept = {
            snapshot: lambda asked, store=store: store.get([fake_key(r) for r in asked]) for snapshot, store in stores.items()
        }
        whole = self._by_opponent(k, kept)
        return lambda asked: {name: value for name, value in whole(asked).items() if name != "x0"}

    def _names(self, k: int) -> tuple[int | str, ...]:
        return "train", self.settings.run.seed, k

    def _by_opponent(
        self, k: int, made: Mapping[SnapshotName, Callable[[Sequence[Record]], T]]
    ) -> Callable[[Sequence[Record]], T]:
        """What the opponents of round k made, each of its own pictures, as one function of records."""
        if len(made) == 1:
            return next(iter(made.values()))
        by = {fake_key(r): made[snapshot] for snapshot, records in self.opponents(k).items() for r in records}
        return lambda asked: _stack([by[fake_key(r)]([r]) for r in asked])

    def _sampling(self, names: tuple[int | str, ...]) -> Play:
        """Held-out fakes are noised again in every round alike: nothing is kept of their paths."""
        return self.settings.play.model_copy(update={"points": 0}) if names[0] == "heldout" else self.settings.play

    def _store(self, snapshot: SnapshotName | None, settings: Play, names: tuple[int | str, ...]) -> Store:
        """`snapshot` none: the base. Snapshot 0 is the base too, or the LoRA that the run began with."""
        lora = snapshot is not None and (snapshot or self.family.start)
        made_by = fingerprint_files([self.run.snapshot_path(snapshot or 0)]) if lora else "base"
        made_of = fingerprint(self.family.base_hash, made_by, settings.model_dump(), self.settings.data.crop, names)
        return Store(self.run.cache / "fake" / made_of)

    def _shuffled(self, k: int) -> Fakes:
        """The pictures of other captions, another circle of them in each round; of the same shape, where there are any."""
        by_key, pictures = other_pictures(self.train), list({record.key: record for record in self.train}.values())
        for run in group_by_shape([record.bucket for record in pictures], len(pictures)):
            if len(run) > 1:
                other = partners(len(run), self.settings.run.seed, k)
                by_key |= {pictures[i].key: pictures[run[place]] for i, place in zip(run, other, strict=True)}
        return lambda records: self.encoded.real([by_key[record.key] for record in records], records)


def _pick(snapshots: Sequence[SnapshotName], *names: int | str) -> SnapshotName:
    return snapshots[int(torch.randint(len(snapshots), (), generator=generator(*names)))]


def _stack(rows: Sequence[Any]) -> Any:
    """Tensors (1, ...), or dicts of them, as one."""
    if isinstance(rows[0], Tensor):
        return torch.cat(list(rows))
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def begin(session: Session) -> None:
    """The folder, the first event and snapshot 0; on a resume, that data and base are what they were."""
    session.run.open()
    levers = asdict(session.device.levers)
    file = session.settings.model.init_lora
    made_of = {
        "base": session.family.base_hash,
        "start": fingerprint_files([Path(file)]) if file else None,
        "data": fingerprint([[r.key, r.lose_key, r.caption] for r in session.train + session.heldout]),
    }
    if not session.run.state:
        about = {**session.settings.model_dump(), "train": len(session.train), "heldout": len(session.heldout)}
        tags = tag_counts(r.caption for r in session.train)
        session.run.log("begin", **made_of, device=str(session.device), levers=levers, settings=about, tags=tags)
        session.save_snapshot(0)
        session.run.save({}, round=1, update=0, stopped=None)
        return
    began = session.run.events("begin")[0]
    watched = {"base": "the base model's files", "start": "the LoRA to start from", "data": "the pictures or captions"}
    for what, named in watched.items():
        if began.get(what) != made_of[what]:
            raise SpinliteError(
                f"{named} have changed since {session.run.folder} began",
                fix="put them back, or start a new run with another --name",
            )
    if session.run.levers != levers:
        session.run.log("levers", levers=levers)
