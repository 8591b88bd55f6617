"""What runs there are, how they stand, and what they take on disk. Nothing here imports torch."""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.runs.checksum import read_header
from spinlite.runs.disk import DRAFT, read_lines
from spinlite.runs.journal import Event, Journal
from spinlite.runs.lock import hold, is_held
from spinlite.runs.names import BEFORE, CACHES, JOURNAL, NEWEST

_CACHE = re.compile(r"(real|prompt|fake)/[0-9a-f]{16}")
_OLD = 86400.0  # s; a draft in the shared cache that is older belongs to a command that was killed


@dataclass(frozen=True)
class Listed:
    """A run as `spinlite runs` shows it."""

    name: str
    state: str  # "done", "running", "interrupted", "stopped by a guard: ..." or what is damaged
    round: int  # that was finished last
    rounds: int  # that it is to have
    judged: Event | None  # the last round's figures, and
    base: float | None  # the base's error, to compare with
    size: int  # bytes of its folder
    cache: int  # bytes of the cache that no other run uses


def list_runs(runs: Path) -> list[Listed]:
    """The runs in a folder, by name."""
    folders = _run_folders(runs)
    return [_look(folder, folders) for folder in folders]


def find_run(name: str, runs: Path) -> Path:
    """The folder of a run, by its name or its path. Raises SpinliteError if there is none."""
    for folder in (runs / name, Path(name)):
        if (folder / JOURNAL).is_file():
            return folder
    names = ", ".join(folder.name for folder in _run_folders(runs)) or "none"
    raise SpinliteError(f"there is no run {name!r} in {runs}", fix=f"give one of these: {names}; or --runs FOLDER")


def spare_files(folder: Path) -> list[Path]:
    """What of a run can be made again: its part of the cache that no other run uses, and the opponent's errors."""
    others = {name for other in _run_folders(folder.parent) if other != folder for name in read_lines(other / CACHES)}
    mine = sorted(name for name in read_lines(folder / CACHES) - others if _CACHE.fullmatch(name))
    cache = folder.parent / "cache"
    found = [path for path in (*(cache / name for name in mine), folder / "opponent_errors") if path.is_dir()]
    drafts = [path for path in cache.rglob(f"*{DRAFT}") if time.time() - path.stat().st_mtime > _OLD]
    return found + [draft for draft in drafts if draft.parent not in found]


def clean(folder: Path, files: list[Path]) -> None:
    """Remove what `spare_files` found. Raises SpinliteError if a command is at work in the run."""
    with hold(folder):
        for path in files:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _run_folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob(f"*/{JOURNAL}")) if runs.is_dir() else []


def _look(folder: Path, folders: list[Path]) -> Listed:
    journal, saved = Journal(folder / JOURNAL), _saved(folder)
    journal.read()
    judged = journal.events("judge")
    rounds = planned_rounds(journal.events)
    cache = sum(map(size_of, spare_files(folder)))
    base = judged[0].get("base_real") if judged else None
    last = judged[-1] if judged else None
    return Listed(
        folder.name, _state(folder, saved, rounds), last["round"] if last else 0, rounds, last, base, size_of(folder), cache
    )


def state_of(folder: Path, rounds: int) -> str:
    """How a run of so many rounds stands, in words."""
    return _state(folder, _saved(folder), rounds)


def _state(folder: Path, saved: dict[str, Any] | None, rounds: int) -> str:
    if is_held(folder):
        return "running"
    if saved is None:
        return "can't go on: its saves are missing or damaged"
    if saved.get("stopped"):
        return f"stopped by a guard: {saved['stopped']}"
    if saved.get("exported") and saved.get("round", 1) > rounds:
        return "done"
    where = f"update {saved['update']}" if saved.get("update") else "at its start"
    return "interrupted" + (f" in round {saved['round']}, {where}" if "round" in saved else " before its first round")


def _saved(folder: Path) -> dict[str, Any] | None:
    """The run's last save that can be read; {} if nothing was saved yet; None if nothing that was saved can be read."""
    there = [path for path in (folder / NEWEST, folder / BEFORE) if path.exists()]
    for path in there:
        try:
            return json.loads(read_header(path)["state"])
        except (ValueError, LookupError, TypeError):
            continue
    return None if there or (folder / "snapshots" / "1.safetensors").exists() else {}


def planned_rounds(events: Callable[[str], list[Event]]) -> int:
    """How many rounds a run is to have, from the journal's events of a kind."""
    for event in reversed(events("settings")):
        if "run.rounds" in event["changes"]:
            return event["changes"]["run.rounds"]
    began = events("begin")
    return began[0]["settings"]["run"]["rounds"] if began else 0
