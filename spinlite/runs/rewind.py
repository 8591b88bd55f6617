"""Takes a run back to the end of an earlier round, also one whose saves are lost: its journal and snapshots say enough."""

import shutil
from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.runs.journal import Journal
from spinlite.runs.names import JOURNAL
from spinlite.runs.saved import Saved, lost
from spinlite.runs.snapshots import Snapshots
from spinlite.runs.votes import forget_votes_after


def files_after(folder: Path, k: int) -> list[Path]:
    """The snapshots and sheets of the rounds after k, and the folders of their pictures."""
    found = [*(folder / "snapshots").glob("*.safetensors"), *(folder / "samples").glob("*-*")]
    return sorted(path for path in found if _round_of(path) > k)


def rewind(folder: Path, k: int) -> None:
    """Make the end of round k (0: the start) the place where a run goes on; later snapshots and sheets are removed.

    Raises SpinliteError if the journal does not reach so far, or that round's snapshot is missing or damaged.
    """
    journal = Journal(folder / JOURNAL)
    journal.read()
    judged = {event["round"]: event for event in journal.events("judge")}
    if not journal.events("begin"):
        raise lost(folder, journal, "its journal is damaged")
    if k and k not in judged:
        last = max(judged, default=0)
        raise SpinliteError(f"the journal of {folder} has no round {k}", fix=f"type --to with one of 0 to {last}")
    Snapshots(folder).read(k)
    journal.read(journal.start_of(k + 1))
    undone = [event["why"] for event in journal.events("guard") if event["round"] == k]
    lowered = [{key: value for key, value in event.items() if key != "event"} for event in journal.events("lowered")]
    stopped = judged[k].get("stopped") if k else None
    forget_votes_after(folder, k)
    journal.sync()
    Saved(folder).write({}, {
        "round": k + 1, "update": 0, "stopped": undone[-1] if undone else stopped, "undone": bool(undone), "lowered": lowered,
        "journal": journal.size, "journal_crc": journal.crc, "good": [], "within": _names_until(folder, k),
    })  # fmt: skip
    for path in files_after(folder, k):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _names_until(folder: Path, k: int) -> list[Any]:
    return [name for name in Snapshots(folder).names_within() if int(name.partition("-")[0]) <= k]


def _round_of(path: Path) -> int:
    """The round in the name of a snapshot ("2", "2-50") or a sheet ("round-2", "prompts-2"); -1 if it has none."""
    number = path.stem.removeprefix("round-").removeprefix("prompts-").partition("-")[0]
    return int(number) if number.isdecimal() else -1
