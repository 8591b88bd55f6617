"""The rounds: play, learn, snapshot, judge; and the guards around them."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spinlite import data, device, plan
from spinlite.adapters import Slots
from spinlite.config import Settings
from spinlite.data import Encoded, Progress, Record
from spinlite.errors import SpinliteError
from spinlite.evaluate.heldout import drift, grew, heldout_errors
from spinlite.evaluate.sheet import sheet
from spinlite.export import Wanted, export
from spinlite.facts import Watch, facts, spoken, warnings
from spinlite.families import Family, family
from spinlite.learn import Batches, Progressed, asked, figures, learn, make_batch, measure
from spinlite.lora.metadata import tag_counts
from spinlite.maths.draws import generator, partners
from spinlite.methods import Method
from spinlite.play import fake_key, play
from spinlite.run import Run, optimizer_tree, restore_optimizer
from spinlite.store import Store, fingerprint, fingerprint_files, read, write

SAVE_SECONDS = 10.0  # of learning that a cut-off run may lose, and the update under way
JUDGED = 64  # held-out records that are measured and played at the most
Fakes = Callable[[Sequence[Record]], Tensor]  # records -> their fakes' latents, (B, ...)
ERRORS = ["policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    rounds: list[dict[str, Any]]  # the journal's judge events
    best: int
    stopped: str | None
    already: bool  # complete before this call


def train(settings: Settings, folder: Path, watch: Watch) -> Outcome:
    """Bring the run in `folder` to its end, from wherever it stands. Caches lie beside it, in `cache`.

    Raises SpinliteError for what the user can mend.
    """
    run = Run(folder, settings)
    done = run.state.get("round", 1) - 1
    stopped = run.state.get("stopped") if settings.judge.stop else None
    if run.state.get("exported") and (stopped or done >= settings.run.rounds):
        return _outcome(run, stopped, already=True)
    stopped = _rounds(run, done, stopped, watch)
    outcome = _outcome(run, stopped, already=False)
    _export(outcome, watch)
    return outcome


def _rounds(run: Run, done: int, stopped: str | None, watch: Watch) -> str | None:
    """The rounds after those that are done; returns why the run was stopped. All that they needed is then let go."""
    settings, folder = run.settings, run.folder
    method = settings.build_method()
    found = data.survey(settings.data, pairs=method.fakes == "given")
    where = device.choose(settings.memory)
    base = family(settings.model, where)
    slots = Slots(
        base.net, base.lora_targets[settings.model.targets], settings.model.rank,
        settings.model.alpha or settings.model.rank, settings.run.seed, settings.model.rslora, settings.model.dora,
    )  # fmt: skip
    left = settings.run.rounds - done
    seconds = left * plan.expected_seconds(
        base, slots, method, settings, where.levers, len(found.train), len(found.heldout[:JUDGED])
    )
    watch.facts(facts(settings, base, found, method, str(where)) | {"time": f"about {spoken(seconds)} for {left} rounds"})
    for warning in warnings(found, settings):
        watch.say(warning)
    with watch.phase("encode pictures and captions", 1) as progress:
        encoded = Encoded(base, found.train + found.heldout, folder.parent / "cache", where.levers.play_batch, progress)
    game = SelfPlay(run, settings, base, slots, method, encoded, found.train, found.heldout[:JUDGED], where, watch)
    return game.go(done + 1, stopped)


@dataclass(frozen=True)
class SelfPlay:
    """One run under way: everything its rounds share."""

    run: Run
    settings: Settings
    family: Family
    slots: Slots
    method: Method
    encoded: Encoded
    train: list[Record]
    heldout: list[Record]
    device: device.Device
    watch: Watch

    def go(self, k: int, stopped: str | None) -> str | None:
        """The rounds from k on, unless the run was stopped; returns why it was."""
        self._begin()
        while k <= self.settings.run.rounds and not stopped:
            stopped = self._round(k)
            k += 1
            self.run.save({}, round=k, update=0, stopped=stopped)
        return stopped

    def _begin(self) -> None:
        """The folder, the first event and snapshot 0; on a resume, that data and base are what they were."""
        self.run.open()
        made_of = {
            "base": self.family.base_hash,
            "data": fingerprint([[r.key, r.lose_key, r.caption] for r in self.train + self.heldout]),
        }
        if not self.run.state:
            about = {**self.settings.model_dump(), "train": len(self.train), "heldout": len(self.heldout)}
            tags = tag_counts(r.caption for r in self.train)
            self.run.log("begin", **made_of, device=str(self.device), settings=about, tags=tags)
            self._write_snapshot(0)
            self.run.save({}, round=1, update=0, stopped=None)
            return
        began = self.run.events("begin")[0]
        for what, said in (("base", "the base model's files"), ("data", "the pictures or captions")):
            if began[what] != made_of[what]:
                raise SpinliteError(
                    f"{said} have changed since {self.run.folder} began",
                    fix="put them back, or start a new run with another --name",
                )

    def _round(self, k: int) -> str | None:
        """One round; returns why the run must stop, if it must."""
        rival = self._rival(k)
        self.slots.load("opponent", self._ladder(rival))
        fakes, heldout_fakes = self._play(k, rival)
        state = self._resume(k)
        if state.update == 0 and self.method.opponent:
            self._probe(k, fakes)
        self._learn(k, state, fakes)
        self._write_snapshot(k)
        return self._judge(k, heldout_fakes)

    def _rival(self, k: int) -> int:
        """Which snapshot is round k's opponent; without one, the judge compares with the previous."""
        match self.method.opponent:
            case "base":
                return 0
            case "random":
                return int(torch.randint(k, (), generator=generator("opponent", self.settings.run.seed, k)))
            case _:
                return k - 1

    def _play(self, k: int, rival: int) -> tuple[Fakes | None, Fakes]:
        """The round's fakes, and the held-out ones, as functions of records."""
        if self.method.fakes == "given":
            return self.encoded.lose, self.encoded.lose
        title = f"round {k}/{self.settings.run.rounds} · play"
        heldout = self._played("opponent", rival, self.heldout, title + " (held-out)", "heldout")
        if self.method.fakes is None:
            return None, heldout
        if self.method.fakes == "shuffled":
            return self._shuffled(k), heldout
        seed = self.settings.run.seed
        return self._played("opponent", rival, self.train, title, "train", seed, k), heldout

    def _played(
        self, who: Any, snapshot: int, records: Sequence[Record], title: str, *names: int | str
    ) -> Fakes:
        """Samples of a snapshot for these records, made where they are missing, as a function of records."""
        made_by = fingerprint_files([self.run.snapshot(snapshot)]) if snapshot else "base"
        how = self.settings.play.model_dump()
        store = Store(self.run.folder.parent / "cache" / "fake" / fingerprint(self.family.base_hash, made_by, how, names))
        if any(fake_key(r) not in store for r in records):
            with self.watch.phase(title, len(records)) as progress, self.slots.use(who):
                batch = self.device.levers.play_batch
                play(self.family, self.encoded, records, self.settings.play, batch, store, progress, *names)
        return lambda asked: store.get([fake_key(r) for r in asked])["x0"]

    def _shuffled(self, k: int) -> Fakes:
        """The pictures of other captions, another circle of them in each round."""
        other = partners(len(self.train), self.settings.run.seed, k)
        by_key = {record.key: self.train[place] for record, place in zip(self.train, other, strict=True)}
        return lambda records: self.encoded.real([by_key[record.key] for record in records])

    def _resume(self, k: int) -> Progressed:
        """The policy as it stands in round k: from the state, or as the previous snapshot left it."""
        if self.run.state.get("round") == k and self.run.state["update"] > 0:
            self.slots.load("policy", self.run.tensors()["policy"])
            return Progressed(self.run.state["update"], self.run.state["norm"])
        self.slots.load("policy", self._ladder(k - 1))
        return Progressed()

    def _probe(self, k: int, fakes: Fakes | None) -> None:
        """Where the policy is its opponent, a preference loses log 2, and every method what it loses for equal errors.

        A wrong adapter, other noise or dropout shows here.
        """
        self.slots.load("opponent", self._ladder(k - 1))
        rows = [(record, 0) for record in self.train[: self.settings.learn.batch]]
        batch = make_batch(self.family, self.encoded, rows, fakes, None, ("probe", k))
        with torch.no_grad():
            errors = {name: measure(self.family, self.slots, name, batch) for name in asked(self.method)}
        loss = self.method.loss(**errors).mean().item()
        self.run.log("probe", round=k, loss=loss)
        equal = {name: errors[name.replace("policy", "opponent")] for name in errors}
        expected = self.method.loss(**equal).mean().item()
        if not abs(loss - expected) < 1e-3:
            said = "log 2 = 0.6931" if math.isclose(expected, math.log(2), abs_tol=1e-6) else f"{expected:.4f}"
            raise SpinliteError(
                f"with the policy equal to its opponent the loss must be {said}, but is {loss:.4f}",
                fix="the two see different weights, noise or dropout: report this with the run's settings.toml",
            )
        self.slots.load("opponent", self._ladder(self._rival(k)))

    def _learn(self, k: int, state: Progressed, fakes: Fakes | None) -> None:
        settings = self.settings.learn
        optimizer = self.device.optimizer(settings.optimizer, self.slots.parameters(), settings.lr)
        if state.update:
            restore_optimizer(optimizer, self.run.tensors().get("optimizer", {}))
        batches = Batches(self.family, self.encoded, self.train, fakes, settings, self.settings.run.seed, k)
        saved = time.monotonic()
        with self.watch.phase(f"round {k}/{self.settings.run.rounds} · learn", settings.updates) as progress:

            def after(found: dict[str, float]) -> None:
                nonlocal saved
                self.run.log("update", round=k, **found)
                progress(state.update, settings.updates, **found)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    tensors = {"policy": self.slots.state("policy"), "optimizer": optimizer_tree(optimizer)}
                    self.run.save(tensors, round=k, update=state.update, norm=state.norm, stopped=None)
                    saved = time.monotonic()

            learn(self.family, self.slots, self.method, batches, optimizer, settings, self.device.levers, state, after)

    def _judge(self, k: int, fakes: Fakes) -> str | None:
        title = f"round {k}/{self.settings.run.rounds} · judge"
        settings = self.settings.judge

        def errors(names: list[str], progress: Progress) -> dict[str, Tensor]:
            return heldout_errors(
                self.family, self.slots, self.encoded, self.heldout, fakes, names, settings.draws,
                self.device.levers.play_batch, progress,
            )  # fmt: skip

        with self.watch.phase(title, len(self.heldout) * settings.draws) as progress:
            measured = errors(ERRORS, progress)
        self.slots.load("opponent", self._ladder(k - 1))
        previous = measured["opponent_real"]
        if self._rival(k) != k - 1:
            previous = errors(["opponent_real"], lambda done, of: None)["opponent_real"]
        found = {**figures(measured), "previous_real": previous.mean().item(), **self._samples(k, title)}
        stopped = None
        if settings.stop and grew(previous, measured["policy_real"]):
            grown = f"{previous.mean():.4f} to {found['policy_real']:.4f}"
            stopped = f"the held-out error on real pictures grew in round {k} ({grown})"
        self.run.log("judge", round=k, opponent=self._rival(k), stopped=stopped, **found)
        self.watch.judged(k, self.settings.run.rounds, found)
        return stopped

    def _samples(self, k: int, title: str) -> dict[str, float]:
        """The sheet of round k; returns the drift of the policy's samples from the base's."""
        count = min(self.settings.judge.prompts, len(self.heldout))
        shown = [self.heldout[i * len(self.heldout) // count] for i in range(count)]
        base = self._played("base", 0, self.heldout, title + " (samples)", "heldout")
        before = self._played("opponent", k - 1, self.heldout, title + " (samples)", "heldout")
        now = self._played("policy", k, self.heldout, title + " (samples)", "heldout")
        latents = {
            "base": base(shown),
            "previous" if k > 1 else "previous (base)": before(shown),
            f"round {k} (current)": now(shown),
            "your picture, held out": self.encoded.real(shown),
        }
        rows = {label: self.family.decode(x) for label, x in latents.items()}
        self.family.free()
        name = f"{self.run.name} · round {k} of {self.settings.run.rounds} · {self.settings.method['name']}"
        sheet(self.run.sheet(k), name, [r.caption for r in shown], rows)
        shift, spread = drift(base(self.heldout), now(self.heldout))
        return {"drift_mean": shift, "drift_deviation": spread}

    def _ladder(self, k: int) -> dict[str, Tensor]:
        return read(self.run.snapshot(k))[0]

    def _write_snapshot(self, k: int) -> None:
        about = {"round": k, "rank": self.settings.model.rank, "scale": self.slots.scale, "base": self.family.base_hash}
        write(self.run.snapshot(k), self.slots.state("policy"), {"spinlite": json.dumps(about, sort_keys=True)})


def _export(outcome: Outcome, watch: Watch) -> None:
    """The best round and, where it is another, the last, as files for other programs; on a base model loaded afresh."""
    run, last = outcome.run, len(outcome.rounds)
    base = family(run.settings.model, device.choose(run.settings.memory))
    files = {outcome.best: run.exported} | ({last: run.exported.with_stem(f"{run.name}-last")} if last != outcome.best else {})
    for k, path in files.items():
        found = export(run, base, k, path, Wanted())
        run.log("export", round=k, file=path.name, verified=found)
        watch.say(f"exported round {k}, {path.name}: {found}")
    run.save({}, **{key: value for key, value in run.state.items() if key != "journal"}, exported=True)


def _outcome(run: Run, stopped: str | None, already: bool) -> Outcome:
    rounds = run.events("judge")
    return Outcome(run, rounds, run.best, stopped, already)
