"""What a run began with, so that a run that goes on learns from the same pictures, in the same order, or says what changed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinlite.data.records import Record, list_names
from spinlite.errors import SpinliteError
from spinlite.runs.disk import write_bytes
from spinlite.runs.files import fingerprint
from spinlite.runs.run import Run

WORDS = {
    "base": "the base model's files have", "start": "the LoRA to start from has", "data": "the pictures or captions have",
}  # fmt: skip
Row = str  # what a record is (`Record.identity`), as JSON


def fingerprint_records(records: Sequence[Record]) -> str:
    """16 hex digits: the hash of pictures and captions, in their order."""
    return fingerprint([r.identity for r in records])


def keep_records(run: Run, records: Sequence[Record]) -> None:
    """Write down pictures and captions in their order, with their names."""
    rows = [[r.identity, r.path.name] for r in records]
    write_bytes(_path(run), json.dumps(rows, ensure_ascii=False).encode(errors="replace"))


def as_begun(run: Run, train: list[Record], heldout: list[Record], judged: int) -> tuple[list[Record], list[Record]]:
    """(training records, the `judged` held-out ones) in the order in which the run began. Renamed pictures change the order."""
    began, found = run.events("begin"), (train, heldout[:judged])
    if not began or fingerprint_records(train + heldout[:judged]) == began[0].get("data"):
        return found
    place = {row: i for i, row in enumerate(_kept(run))}
    train, heldout = (sorted(side, key=lambda r: place.get(_row(r), len(place))) for side in (train, heldout))
    return train, heldout[:judged]


def refuse_other_input(run: Run, made_of: Mapping[str, str | None], records: Sequence[Record]) -> None:
    """Raises SpinliteError if a run was begun with another base, start or data than `made_of` names by their hashes."""
    began = run.events("begin")[0]
    for name, words in WORDS.items():
        if began.get(name) != made_of[name]:
            named = f": {_differences(run, records)}" if name == "data" else ""
            raise SpinliteError(
                f"{words} changed since {run.folder} began{named}",
                fix="put them back as they were, or start a new run with another --name",
            )


def _differences(run: Run, records: Sequence[Record]) -> str:
    """The pictures that are not as they were, in words."""
    kept, now = _kept(run), {_row(r): r.path.name for r in records}
    lost = [name for row, name in kept.items() if row not in now]
    new = [name for row, name in now.items() if row not in kept and name not in lost]
    parts = [f"changed or gone: {list_names(lost)}"] * bool(lost) + [f"new: {list_names(new)}"] * bool(new)
    return "; ".join(parts) if kept and parts else "other ones, or another order"


def _kept(run: Run) -> dict[Row, str]:
    """The pictures that the run began with, and their names; empty if that is not known."""
    try:
        return {json.dumps(identity): str(name) for identity, name in json.loads(_path(run).read_bytes())}
    except (OSError, ValueError, TypeError):
        return {}


def _path(run: Run) -> Path:
    return run.folder / "pictures.json"


def _row(record: Record) -> Row:
    return json.dumps(record.identity)
