"""The run folder: settings, journal, state. Running the same command again continues from the state.

settings.toml            every setting, defaults written out; itself a preset
pictures.json            the pictures and captions that it began with, in order
caches.txt               the folders of the cache that it uses
journal.jsonl            one event a line
now.json, log.txt, stop  where it is, what it said, and how to ask it to stop (`live.py`)
votes.jsonl, votes/      which pictures someone preferred (`votes.py`)
state.safetensors        policy and optimizer of the round under way, and where it stands
state-before.safetensors the save before that, in case the newest is damaged
snapshots/k.safetensors  the policy after round k; k-u.safetensors: after update u of round k, if learn.snapshot_every is set
opponent_errors/         the opponent's errors in the round under way, if they are measured in advance
good/u.safetensors       the policy after update u of the round under way; the last two, for a guard to go back to
samples/round-k.png      held-out captions, drawn by base and policy, beside the pictures; prompts-k.png: the user's own prompts
samples/round-k.webp     of clips: the same, playing
samples/round-k/         the policy's pictures of both at the model's own size, a file each; round-0: those of the start
export/NAME.safetensors  the LoRA of the best round, for other programs; not if that is round 0, which nobody trained
export/NAME-last.safetensors  the LoRA of the last round, if that is not the best
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from spinlite.config.settings import Memory, Settings
from spinlite.errors import SpinliteError
from spinlite.runs.best import best_round
from spinlite.runs.changes import AFTER_GUARD, changes, kept_settings, refuse_changes
from spinlite.runs.checksum import checksum
from spinlite.runs.disk import read_lines, remove_drafts, write_bytes
from spinlite.runs.journal import Journal
from spinlite.runs.names import CACHES, JOURNAL
from spinlite.runs.saved import Saved, lost
from spinlite.runs.snapshots import GoodPolicies, SnapshotName, Snapshots, update_of

TORN = "the journal ended in a torn line (a power cut, or a full disk?): the work since the last save is done again"


class Run:
    """A run folder, new or to be continued. Only its holder (`runs/lock.py:hold`) may change it."""

    def __init__(self, folder: Path, settings: Settings | None = None, cache: Path | None = None) -> None:
        """An existing run keeps its own settings if none are given. Its cache lies beside it, if not said otherwise.

        Raises SpinliteError if the folder was made with other settings, if nothing in it says where the run stands, or if it
        is no run and no settings are given. Changes nothing on disk. `notes` says what was found damaged.
        """
        self.folder, self.notes = folder, list[str]()
        self.cache = cache or folder.parent / "cache"  # shared with the runs beside it: encoded pictures and captions, fakes
        self.journal, self._saved = Journal(folder / JOURNAL), Saved(folder)
        self.snapshots, self.good = Snapshots(folder), GoodPolicies(folder / "good")
        self.state = self._find_state()
        self.lowered: list[dict[str, Any]] = self.state.get("lowered", [])  # memory settings lowered when memory ran out
        self._memory_changed, self._changes = False, dict[str, Any]()
        self._caches: set[str] | None = None
        kept = kept_settings(self.journal, self._settings_path)
        if settings is None and kept is None:
            raise SpinliteError(f"{folder} is not a run", fix="name a folder that `spinlite train` made, such as runs/demo")
        self.settings = settings or kept or Settings()
        if settings and kept:
            self._continue(kept, settings)

    @staticmethod
    def open_existing(folder: Path) -> "Run":
        """An existing run with its own settings. Changes nothing. Raises SpinliteError if `folder` is not a run."""
        return Run(folder)

    def _find_state(self) -> dict[str, Any]:
        state = self._saved.find(self.journal, self.notes)
        if not state:
            self.journal.read()
            if self.journal.events("judge") or self.snapshot_path(1).exists():
                raise lost(self.folder, self.journal, "there is no state.safetensors")
        if state and not self.journal.events("begin"):
            raise lost(self.folder, self.journal, "its journal is damaged")
        return state

    def _continue(self, kept: Settings, settings: Settings) -> None:
        refuse_changes(self.folder, kept, settings, bool(self.state.get("undone")))
        self._changes = changes(kept, settings)
        self._memory_changed = kept.memory != settings.memory
        if self._memory_changed:
            self.lowered = []
        if self.state.get("undone") and self._changes.keys() & AFTER_GUARD:
            self.state |= {"stopped": None, "exported": False}

    def open(self) -> list[str]:
        """Make the folder and write the settings. From then on other settings are refused. Returns what is worth saying.

        What was journalled after the last save is removed, since that work is done again; so are half-written files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(self.folder)
        self.snapshots.require(self.state.get("within", []))
        if not self.state:
            self.journal.read(0)
        notes = [TORN] if self.journal.torn() else []
        self.journal.cut()
        if not self.state.get("update"):
            shutil.rmtree(self.folder / "good", ignore_errors=True)  # of another try of this round
        if self.state and self._changes:
            self.log("settings", changes=self._changes)
            self._changes = {}
        if self.state.get("undone"):
            self.save({}, **self.state)
        write_bytes(self._settings_path, tomli_w.dumps(self.settings.model_dump(exclude_none=True)).encode())
        self._journal_lowered()
        return notes

    @property
    def name(self) -> str:
        return self.folder.name

    def remember_cache(self, folder: Path) -> None:
        """Note that the run uses a folder of the cache, for `spinlite runs clean`."""
        name = folder.relative_to(self.cache).as_posix()
        if self._caches is None:
            self._caches = read_lines(self.folder / CACHES)
        if name not in self._caches:
            self._caches.add(name)
            with (self.folder / CACHES).open("a", encoding="utf-8", newline="\n") as file:
                file.write(f"{name}\n")

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
        return self.snapshots.path(name)

    def snapshots_within(self, round_: int) -> list[SnapshotName]:
        """The snapshots that were taken within a round, in order."""
        return self.snapshots.within().get(round_, [])

    def sheet_path(self, round_: int) -> Path:
        return self.folder / "samples" / f"round-{round_}.png"

    def prompts_path(self, round_: int) -> Path:
        return self.folder / "samples" / f"prompts-{round_}.png"

    def cells_path(self, round_: int) -> Path:
        return self.folder / "samples" / f"round-{round_}"

    def opponent_errors_path(self, made_of: str) -> Path:
        """The file of the opponent's errors, named by the hash of all that they depend on."""
        return self.folder / "opponent_errors" / f"{made_of}.safetensors"

    def begin_again(self, k: int) -> None:
        """Go back to the start of round k, which is under way."""
        self.journal.read(self.journal.start_of(k))
        self.journal.cut()
        shutil.rmtree(self.folder / "good", ignore_errors=True)
        self.save({}, round=k, update=0, stopped=None)

    def forget_round(self) -> None:
        """Delete the files that are only needed while a round is under way."""
        for place in ("opponent_errors", "good"):
            shutil.rmtree(self.folder / place, ignore_errors=True)

    @property
    def export_path(self) -> Path:
        """The LoRA of the best round; there is no such file if no round was better than the start."""
        return self.folder / "export" / f"{self.name}.safetensors"

    @property
    def last_export_path(self) -> Path:
        """The LoRA of the last round, if that is not the best."""
        return self.folder / "export" / f"{self.name}-last.safetensors"

    @property
    def best(self) -> int:
        """The best round; 0 is the start: no round is better."""
        return best_round(self.events("judge"))

    @property
    def is_exported(self) -> bool:
        """Whether the LoRA files of the best and the last round are there as they were written."""
        written = self.state.get("exported")
        if not isinstance(written, dict):  # {file: checksum}; an older version wrote True
            return bool(written) and self.export_path.is_file()
        files = {self.export_path.with_name(name): crc for name, crc in written.items()}
        return all(path.is_file() and checksum(path) == crc for path, crc in files.items())

    def log(self, event: str, **fields: Any) -> None:
        """Append an event to the journal, with the time."""
        self.journal.log(event, **fields)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The journal's events of one kind, in order."""
        return self.journal.events(event)

    def save(self, tensors: Mapping[str, Any], **where: Any) -> None:
        """Save where the run stands, in one atomic write, after the journal. `tensors` may be nested dicts.

        If the run is cut off, what was journalled after the last `save` is removed by `open`.
        """
        self.journal.sync()
        self.state = where | {"lowered": self.lowered, "journal": self.journal.size, "journal_crc": self.journal.crc}
        self.state |= {"good": sorted(self.good.paths()), "within": self.snapshots.names_within()}
        self._saved.write(tensors, self.state)

    def undo(self, round_: int, update: int) -> None:
        """Delete the snapshots that a round made after `update` (0: the whole round); the guard's event undoes its figures."""
        for snapshot in [*(snapshot for snapshot in self.snapshots_within(round_) if update_of(snapshot) > update), round_]:
            self.snapshot_path(snapshot).unlink(missing_ok=True)
        if self.state:  # what is saved names no snapshot that is gone
            self.state["within"] = self.snapshots.names_within()
            self._saved.rewrite(self.state)

    def save_lowered(self) -> None:
        """Save `lowered` now, so that a run that is cut off continues with the lowered memory settings."""
        if self.state:
            self._journal_lowered()
            self.state["lowered"] = self.lowered
            self._saved.rewrite(self.state)

    def tensors(self) -> dict[str, Any]:
        """The tensors of the last `save`, nested as they were."""
        return self._saved.tensors()

    @property
    def _settings_path(self) -> Path:
        return self.folder / "settings.toml"

    def _journal_lowered(self) -> None:
        """Log the entries of `lowered` that are not in the journal yet. Their times tell them apart."""
        logged = {event["time"] for event in self.events("lowered")}
        for entry in self.lowered:
            if entry["time"] not in logged:
                self.log("lowered", **entry)
