"""Where a run stands, as it was saved: two files, the newest and the one before. A damaged newest one costs little."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.runs.checksum import find_damage, read_header
from spinlite.runs.disk import write_bytes
from spinlite.runs.journal import Journal
from spinlite.runs.names import BEFORE, NEWEST
from spinlite.runs.store import read_tensors, write_tensors
from spinlite.runs.trees import flatten, unflatten


class Saved:
    """The saves of a run folder."""

    def __init__(self, folder: Path) -> None:
        self._newest, self._before = folder / NEWEST, folder / BEFORE
        self._path = self._newest  # the one in use

    def find(self, journal: Journal, notes: list[str]) -> dict[str, Any]:
        """The state of the newest save that is whole and fits the journal, which is read up to it; {} if nothing was saved.

        What is wrong with a newer one is added to `notes`. Raises SpinliteError if there are saves, but none can be used.
        """
        faults = []
        for path in (self._newest, self._before):
            if not path.exists():
                faults += [f"{path.name} is missing"] * self._before.exists()
                continue
            state, fault = _read(path, journal)
            if not fault:
                self._path = path
                journal.read(state["journal"])
                notes += [f"{why}: the run goes on from the save before, {describe(state)}" for why in faults]
                return state
            faults.append(f"{path.name} {fault}")
        if faults:
            raise lost(self._newest.parent, journal, "; ".join(faults))
        return {}

    def write(self, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Save. The save before is kept. A save without tensors, as at the end of a round, is kept twice instead."""
        flat, plain = flatten(tensors)
        self._write(flat, {"state": json.dumps(state), "plain": json.dumps(plain)})
        if not flat:
            write_bytes(self._before, self._newest.read_bytes())

    def rewrite(self, state: Mapping[str, Any]) -> None:
        """Save another state with the tensors of the last save."""
        flat, metadata = self._read_tensors()
        self._write(flat, metadata | {"state": json.dumps(state)})

    def tensors(self) -> dict[str, Any]:
        """The tensors of the last save, nested as they were."""
        flat, metadata = self._read_tensors()
        return unflatten(flat, json.loads(metadata["plain"]))

    def _write(self, flat: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        whole = self._path == self._newest  # else it is damaged, and the one before must stay
        write_tensors(self._newest, flat, metadata, before=self._before if whole else None)
        self._path = self._newest

    def _read_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return read_tensors(self._path, fix="type the same command again: it goes on from the save before")


def describe(state: Mapping[str, Any]) -> str:
    """Where a state stands, in words."""
    k, update = state["round"], state.get("update")
    return f"round {k}, update {update}" if update else f"the start of round {k}"


def lost(folder: Path, journal: Journal, why: str) -> SpinliteError:
    """The error that says that no save can be used, and from where the run can go on."""
    journal.read()
    rounds = [event["round"] for event in journal.events("judge")]
    if not journal.events("begin"):
        return SpinliteError(
            f"{folder} can't go on: {why}; and {journal.path.name} has no beginning",
            fix="put copies of these files back, or start a new run with another --name; this one's snapshots stay as they are",
        )
    back = f"`spinlite runs rewind {folder} --to {rounds[-1] if rounds else 0}`"
    return SpinliteError(f"{folder} can't go on: {why}", fix=f"put copies back, or type {back}: it goes on from there")


def _read(path: Path, journal: Journal) -> tuple[dict[str, Any], str]:
    """(the state in a file, what is wrong with it)."""
    try:
        if damage := find_damage(path):
            return {}, f"is damaged ({damage})"
        state = json.loads(read_header(path)["state"])
        crc = journal.crc_of(int(state["journal"]))
    except (ValueError, LookupError, TypeError):
        return {}, "is damaged"
    if crc is None:
        return {}, f"names more of {journal.path.name} than there is"
    if crc != state.get("journal_crc", crc):
        return {}, f"was made with another {journal.path.name}, or that is damaged"
    return state, ""
