"""The run folder: settings, journal, state. Running the same command again continues from the state.

settings.toml            every setting, defaults written out; itself a preset
journal.jsonl            one event a line
state.safetensors        policy and optimizer of the round under way, and where it stands
snapshots/k.safetensors  the policy after round k; k-u.safetensors: after update u of round k, if learn.snapshot_every is set
opponent_errors/         the opponent's errors in the round under way, if they are measured in advance
good/u.safetensors       the policy after update u of the round under way; the last two, for a guard to go back to
samples/round-k.png      fixed captions drawn by base | previous | current
export/NAME.safetensors  the LoRA of the best round, for other programs; NAME-last.safetensors: of the last, if that is another
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

from spinlite.config.settings import Memory, Settings
from spinlite.errors import SpinliteError
from spinlite.runs.changes import AFTER_GUARD, changed_keys, load_kept_settings, refuse_changes
from spinlite.runs.store import read_tensors, write_bytes, write_tensors
from spinlite.runs.trees import flatten, unflatten

SnapshotName = int | str  # a snapshot: the round that it ends, or "ROUND-UPDATE" for one within a round


class Run:
    """A run folder, new or to be continued."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Raises SpinliteError if the folder was made with other settings."""
        self.folder = folder
        self._journal = folder / "journal.jsonl"
        self.settings = settings
        self.state = self._read_state()
        self.lowered: list[dict[str, Any]] = self.state.get("lowered", [])  # memory settings lowered when memory ran out
        self._memory_changed = False
        if self._settings_path.exists():
            kept = load_kept_settings(self._settings_path)
            refuse_changes(folder, kept, settings, bool(self.state.get("undone")))
            self._memory_changed = kept.memory != settings.memory
            if self._memory_changed:
                self.lowered = []
            if self.state.get("undone") and changed_keys(kept, settings) & AFTER_GUARD:
                self.state |= {"stopped": None, "exported": False}

    @staticmethod
    def open_existing(folder: Path) -> "Run":
        """An existing run with its own settings. Changes nothing. Raises SpinliteError if `folder` is not a run."""
        kept = folder / "settings.toml"
        if not kept.is_file():
            raise SpinliteError(f"{folder} is not a run", fix="name a folder that `spinlite train` made, such as runs/demo")
        return Run(folder, load_kept_settings(kept))

    def open(self) -> None:
        """Make the folder and write the settings. From then on other settings are refused.

        Events that were journalled after the last `save` are removed, since that work is done again.
        """
        self._truncate(int(self.state.get("journal", 0)))
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state.get("undone"):
            self.save({}, **self.state)  # before the settings: if this is cut off here, the new learn.lr still counts as new
        write_bytes(self._settings_path, tomli_w.dumps(self.settings.model_dump(exclude_none=True)).encode())
        self._journal_lowered()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def cache(self) -> Path:
        """The cache that this run shares with the runs beside it: encoded pictures and captions, fakes, checked files."""
        return self.folder.parent / "cache"

    @property
    def memory(self) -> Memory:
        """[memory], with `quantize` as it was when the run began: the snapshots were trained on that base."""
        quantize = self._levers_used[0]["quantize"] if self._levers_used else self.settings.memory.quantize
        return self.settings.memory.model_copy(update={"quantize": quantize})

    @property
    def levers(self) -> dict[str, Any] | None:
        """The memory settings that the run used last; None if it has not begun or [memory] was changed since."""
        return None if self._memory_changed or not self._levers_used else self._levers_used[-1]

    @property
    def _levers_used(self) -> list[dict[str, Any]]:
        """The memory settings at the beginning of the run, and each change of them since."""
        return [event["levers"] for name in ("begin", "levers") for event in self.events(name)] if self.state else []

    def snapshot_path(self, name: SnapshotName) -> Path:
        return self.folder / "snapshots" / f"{name}.safetensors"

    def snapshots_within(self, round_: int) -> list[SnapshotName]:
        """The snapshots that were taken within a round, in order."""
        files = (self.folder / "snapshots").glob(f"{round_}-*.safetensors")
        return [f"{round_}-{update}" for update in sorted(update_of(file.stem) for file in files)]

    def sheet_path(self, round_: int) -> Path:
        return self.folder / "samples" / f"round-{round_}.png"

    def opponent_errors_path(self, made_of: str) -> Path:
        """The file of the opponent's errors, named by the hash of all that they depend on."""
        return self.folder / "opponent_errors" / f"{made_of}.safetensors"

    def good_policies(self) -> dict[int, Path]:
        """The policies of the round under way that a guard may go back to: {update: file}."""
        return {int(path.stem): path for path in (self.folder / "good").glob("*.safetensors")}

    def keep_good_policy(self, update: int, state: Mapping[str, Tensor]) -> None:
        """Save a policy that a guard may go back to, and delete all but the last two."""
        write_tensors(self.folder / "good" / f"{update}.safetensors", state)
        for old in sorted(self.good_policies())[:-2]:
            self.good_policies()[old].unlink()

    def forget_round(self) -> None:
        """Delete the files that are only needed while a round is under way."""
        for place in ("opponent_errors", "good"):
            shutil.rmtree(self.folder / place, ignore_errors=True)

    @property
    def export_path(self) -> Path:
        """The LoRA of the best round."""
        return self.folder / "export" / f"{self.name}.safetensors"

    @property
    def last_export_path(self) -> Path:
        """The LoRA of the last round, if that is not the best."""
        return self.folder / "export" / f"{self.name}-last.safetensors"

    @property
    def best(self) -> int:
        """The round with the lowest error on held-out real pictures. 0 is the start: it counts too.

        A round that the judge stopped the run after is left out.
        """
        rounds = self.events("judge")
        good = (math.inf if event.get("stopped") else event["policy_real"] for event in rounds)
        errors = [*(event["previous_real"] for event in rounds[:1]), *good]
        return errors.index(min(errors)) if errors else 0

    def log(self, event: str, **fields: Any) -> None:
        """Append an event to the journal, with the time."""
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
        """Save where the run stands, in one atomic write. `tensors` may be nested dicts.

        If the run is cut off, events that were journalled after the last `save` are removed by `open`.
        """
        flat, plain = flatten(tensors)
        size = self._journal.stat().st_size if self._journal.exists() else 0
        self.state = where | {"lowered": self.lowered, "journal": size}
        write_tensors(self._state_path, flat, {"state": json.dumps(self.state), "plain": json.dumps(plain)})

    def undo(self, round_: int, update: int) -> None:
        """Discard what a round did after `update` (0: the whole round).

        Its snapshots are deleted. Its events stay in the journal, renamed to "discarded ...", so nothing reads them.
        """
        for snapshot in [*(snapshot for snapshot in self.snapshots_within(round_) if update_of(snapshot) > update), round_]:
            self.snapshot_path(snapshot).unlink(missing_ok=True)
        lines = [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            of_round = line.get("round") == round_ and line["event"] in ("probe", "fakes", "coarse", "update", "won")
            if of_round and line.get("update", 1) > update:
                line["event"] = "discarded " + line["event"]
        write_bytes(self._journal, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

    def save_lowered(self) -> None:
        """Save `lowered` now, so that a run that is cut off continues with the lowered memory settings."""
        if self.state:
            self._journal_lowered()
            self.state["lowered"] = self.lowered
            flat, metadata = read_tensors(self._state_path)
            write_tensors(self._state_path, flat, metadata | {"state": json.dumps(self.state)})

    def tensors(self) -> dict[str, Any]:
        """The tensors of the last `save`, nested as they were."""
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
        """Log the entries of `lowered` that are not in the journal yet. Their times tell them apart."""
        logged = {event["time"] for event in self.events("lowered")}
        for entry in self.lowered:
            if entry["time"] not in logged:
                self.log("lowered", **entry)

    def _truncate(self, size: int) -> None:
        if self._journal.exists():
            with self._journal.open("r+b") as file:
                file.truncate(size)


def update_of(name: SnapshotName) -> int:
    """The update in the name of a snapshot within a round: "2-50" -> 50."""
    return int(str(name).partition("-")[2])
