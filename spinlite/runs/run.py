"""The run folder: settings, journal, state. Running the same command again goes on from the state.

settings.toml            every setting, defaults written out; itself a preset
journal.jsonl            one event a line
state.safetensors        policy and optimizer of the round under way, and where it stands
snapshots/k.safetensors  the ladder, round by round; k-u.safetensors: after update u of round k, where learn.snapshot_every asks
opponent_errors/         the opponent's errors of the round under way, where they are measured ahead
good/u.safetensors       the policy after update u of the round under way: the last two that a guard may go back to
samples/round-k.png      fixed prompts x base | previous | current
export/NAME.safetensors  the LoRA of the best round for other programs; NAME-last.safetensors where the last is another
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor

from spinlite.config.load import load_settings
from spinlite.config.settings import Memory, Settings
from spinlite.errors import SpinliteError
from spinlite.runs.store import read_tensors, write_bytes, write_tensors
from spinlite.runs.trees import flatten, unflatten

LEVERS = {f"memory.{name}" for name in Memory.model_fields} - {"memory.quantize"}
SnapshotName = int | str  # a snapshot: the round that it ends, or "ROUND-UPDATE" for one within a round
FIXES = {"learn.lr", "method.beta"}  # what may differ besides, where a guard undid a round
CHANGEABLE = {"about", "run.rounds", "judge.stop"} | LEVERS  # what may differ when a run goes on


class Run:
    """A run folder, to be made or found again."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Raises SpinliteError where the folder was made with other settings."""
        self.folder = folder
        self._journal = folder / "journal.jsonl"
        self.settings = settings
        self.state = self._read_state()
        self.lowered: list[dict[str, Any]] = self.state.get("lowered", [])  # what was given up where memory ran out
        self._other_memory = False
        if self._settings_path.exists():
            kept = _load(self._settings_path)
            self._compare(kept, settings)
            self._other_memory = kept.memory != settings.memory
            if self._other_memory:
                self.lowered = []
            if self.state.get("undone") and _changed(kept, settings) & FIXES:
                self.state |= {"stopped": None, "exported": False}

    @staticmethod
    def open_existing(folder: Path) -> "Run":
        """A run that is there, with its own settings; nothing is changed. Raises SpinliteError where there is none."""
        kept = folder / "settings.toml"
        if not kept.is_file():
            raise SpinliteError(f"{folder} is no run", fix="name a folder that `spinlite train` made, such as runs/demo")
        return Run(folder, _load(kept))

    def open(self) -> None:
        """Make the folder and write the settings: from here on, other settings are refused. What was journalled after the
        last `save` is forgotten."""
        self._truncate(int(self.state.get("journal", 0)))
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state.get("undone"):
            self.save({}, **self.state)  # before the settings: a run that was mended goes on, wherever it is cut off
        write_bytes(self._settings_path, tomli_w.dumps(self.settings.model_dump(exclude_none=True)).encode())
        self._journal_lowered()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def cache(self) -> Path:
        """What runs beside this one share: encoded pictures and captions, fakes, what is known of files."""
        return self.folder.parent / "cache"

    @property
    def memory(self) -> Memory:
        """[memory], with the base quantised as it was when the run began, where the plan chose that: snapshots are of it."""
        quantize = self._levers_used[0]["quantize"] if self._levers_used else self.settings.memory.quantize
        return self.settings.memory.model_copy(update={"quantize": quantize})

    @property
    def levers(self) -> dict[str, Any] | None:
        """Those that the run last went with, unless [memory] has changed since."""
        return None if self._other_memory or not self._levers_used else self._levers_used[-1]

    @property
    def _levers_used(self) -> list[dict[str, Any]]:
        """The levers at the begin, and those that were changed to."""
        return [event["levers"] for name in ("begin", "levers") for event in self.events(name)] if self.state else []

    def snapshot_path(self, name: SnapshotName) -> Path:
        return self.folder / "snapshots" / f"{name}.safetensors"

    def snapshots_within(self, round_: int) -> list[SnapshotName]:
        """The snapshots within a round, in order."""
        found = (self.folder / "snapshots").glob(f"{round_}-*.safetensors")
        return [f"{round_}-{update}" for update in sorted(update_of(path.stem) for path in found)]

    def sheet_path(self, round_: int) -> Path:
        return self.folder / "samples" / f"round-{round_}.png"

    def opponent_errors_path(self, made_of: str) -> Path:
        """Where the opponent's errors are kept, named by the hash of what made them."""
        return self.folder / "opponent_errors" / f"{made_of}.safetensors"

    def good_policies(self) -> dict[int, Path]:
        """The policies that a guard may go back to, by the updates of the round under way that they had."""
        return {int(path.stem): path for path in (self.folder / "good").glob("*.safetensors")}

    def keep_good_policy(self, update: int, state: Mapping[str, Tensor]) -> None:
        """Add one, and let go of all but the last two."""
        write_tensors(self.folder / "good" / f"{update}.safetensors", state)
        for old in sorted(self.good_policies())[:-2]:
            self.good_policies()[old].unlink()

    def forget_round(self) -> None:
        """What is of no more use when a round is over."""
        for place in ("opponent_errors", "good"):
            shutil.rmtree(self.folder / place, ignore_errors=True)

    @property
    def export_path(self) -> Path:
        """The LoRA of the best round."""
        return self.folder / "export" / f"{self.name}.safetensors"

    @property
    def last_export_path(self) -> Path:
        """The LoRA of the last round, where that is not the best."""
        return self.folder / "export" / f"{self.name}-last.safetensors"

    @property
    def best(self) -> int:
        """The round with the lowest held-out error on real pictures, the start included; 0 before one is judged. Not one after
        which a guard ended the run."""
        rounds = self.events("judge")
        good = (math.inf if event.get("stopped") else event["policy_real"] for event in rounds)
        errors = [*(event["previous_real"] for event in rounds[:1]), *good]
        return errors.index(min(errors)) if errors else 0

    def log(self, event: str, **fields: Any) -> None:
        """Append one event to the journal, with the time."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        with self._journal.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")

    def events(self, event: str) -> list[dict[str, Any]]:
        """The journal's events of one kind, in order."""
        if not self._journal.exists():
            return []
        lines = map(json.loads, self._journal.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["event"] == event]

    def save(self, tensors: Mapping[str, Any], **where: Any) -> None:
        """Where the run stands, whole or not at all. `tensors` may nest; what is journalled after this is forgotten
        if the run is cut off before the next `save`."""
        flat, plain = flatten(tensors)
        size = self._journal.stat().st_size if self._journal.exists() else 0
        self.state = where | {"lowered": self.lowered, "journal": size}
        write_tensors(self._state_path, flat, {"state": json.dumps(self.state), "plain": json.dumps(plain)})

    def undo(self, round_: int, update: int) -> None:
        """Forget what a round did after `update`, all of it after 0: its snapshots are deleted; its events stay in the journal
        under another name, and are not read."""
        for snapshot in [*(snapshot for snapshot in self.snapshots_within(round_) if update_of(snapshot) > update), round_]:
            self.snapshot_path(snapshot).unlink(missing_ok=True)
        lines = [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if line.get("round") == round_ and line["event"] in ("probe", "update", "won") and line.get("update", 1) > update:
                line["event"] = "discarded " + line["event"]
        write_bytes(self._journal, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

    def save_lowered(self) -> None:
        """Keep at once what was just added to `lowered`, so that a run that is cut off starts with it."""
        if self.state:
            self._journal_lowered()
            self.state["lowered"] = self.lowered
            flat, metadata = read_tensors(self._state_path)
            write_tensors(self._state_path, flat, metadata | {"state": json.dumps(self.state)})

    def tensors(self) -> dict[str, Any]:
        """What was last saved."""
        flat, metadata = read_tensors(self._state_path)
        return unflatten(flat, json.loads(metadata["plain"]))

    @property
    def _settings_path(self) -> Path:
        return self.folder / "settings.toml"

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def _read_state(self) -> dict[str, Any]:
        return json.loads(read_tensors(self._state_path)[1]["state"]) if self._state_path.exists() else {}

    def _journal_lowered(self) -> None:
        """Also what was given up before the run began, or cut off after its last save, becomes an event: each has its time."""
        told = {event["time"] for event in self.events("lowered")}
        for drop in self.lowered:
            if drop["time"] not in told:
                self.log("lowered", **drop)

    def _truncate(self, size: int) -> None:
        if self._journal.exists():
            with self._journal.open("r+b") as file:
                file.truncate(size)

    def _compare(self, kept: Settings, now: Settings) -> None:
        was, is_ = _leaves(kept.model_dump()), _leaves(now.model_dump())
        refused = _changed(kept, now) - CHANGEABLE - (FIXES if self.state.get("undone") else set())
        changed = [f"{key} = {was.get(key)!r} there, {is_.get(key)!r} now" for key in sorted(refused)]
        if changed:
            raise SpinliteError(
                f"{self.folder} was made with other settings: {'; '.join(changed[:5])}",
                fix=f"give this run another --name, or delete {self.folder} to start it over",
            )


def update_of(name: SnapshotName) -> int:
    """After which update of its round a snapshot within one was taken."""
    return int(str(name).partition("-")[2])


def _changed(kept: Settings, now: Settings) -> set[str]:
    was, is_ = _leaves(kept.model_dump()), _leaves(now.model_dump())
    return {key for key in was.keys() | is_.keys() if was.get(key) != is_.get(key)}


def _load(kept: Path) -> Settings:
    try:
        return load_settings(str(kept))
    except SpinliteError as error:
        raise SpinliteError(
            f"{kept}, which says how this run was made: {error.problem}",
            fix=f"mend it there ({error.fix}; what this version does not know can be removed), or give another --name",
        ) from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        place: leaf
        for key, value in tree.items()
        for place, leaf in _below(value, f"{prefix}{key}").items()
    }


def _below(value: Any, place: str) -> dict[str, Any]:
    return _leaves(value, place + ".") if isinstance(value, Mapping) else {place: value}
