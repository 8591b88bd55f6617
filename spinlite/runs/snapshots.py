"""The LoRAs that a run keeps: its snapshots, and the policies of the round under way that a guard may go back to."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.runs.store import read_tensors, write_tensors

SnapshotName = int | str  # a snapshot: the round that it ends, or "ROUND-UPDATE" for one within a round
_WITHIN = re.compile(r"\d+-\d+")
_ABOUT = "spinlite"  # key in a file's header


class Snapshots:
    """The snapshots of a run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: SnapshotName) -> Path:
        return self._folder / "snapshots" / f"{name}.safetensors"

    def write(self, name: SnapshotName, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Save a snapshot with what there is to know about it."""
        write_tensors(self.path(name), tensors, {_ABOUT: json.dumps({**about, "round": name}, sort_keys=True)})

    def read(self, name: SnapshotName) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, what there is to know) of a snapshot. Raises SpinliteError if it is missing, damaged, or another one."""
        path, fix = self.path(name), self._fix(name)
        tensors, metadata = read_tensors(path, fix)
        about = _about(metadata)
        if about.get("round") != name:
            raise SpinliteError(f"{path} is not snapshot {name}: its header says {about.get('round', 'nothing')}", fix=fix)
        return tensors, about

    def fault(self, name: SnapshotName) -> str:
        """What is wrong with a snapshot, in words; "" if nothing is."""
        try:
            self.read(name)
        except SpinliteError as error:
            return error.problem
        return ""

    def require(self, names: Iterable[SnapshotName]) -> None:
        """Raises SpinliteError if one of these is missing."""
        for name in names:
            if not self.path(name).exists():
                raise SpinliteError(f"{self.path(name)} is missing", fix=self._fix(name))

    def within(self) -> dict[int, list[SnapshotName]]:
        """The snapshots that were taken within rounds, in order, by round. One look at the folder."""
        found: dict[int, list[SnapshotName]] = {}
        for round_, update in sorted(tuple(map(int, name.split("-"))) for name in self.names_within()):
            found.setdefault(round_, []).append(f"{round_}-{update}")
        return found

    def names_within(self) -> list[str]:
        """The names of the snapshots that were taken within rounds."""
        files = (self._folder / "snapshots").glob("*-*.safetensors")
        return sorted(file.stem for file in files if _WITHIN.fullmatch(file.stem))

    def _fix(self, name: SnapshotName) -> str:
        before = int(str(name).partition("-")[0]) - 1
        again = f"`spinlite runs rewind {self._folder} --to {before}`: later rounds are then made again"
        return "put a copy of it back" + (f", or type {again}" if before >= 0 else "")


class GoodPolicies:
    """The policies of the round under way that a guard may go back to; the last two."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def paths(self) -> dict[int, Path]:
        """{update: file}."""
        return {int(path.stem): path for path in self._folder.glob("*.safetensors") if path.stem.isdecimal()}

    def keep(self, round_: int, update: int, state: Mapping[str, Tensor]) -> None:
        """Save a policy, and delete all but the last two."""
        about = json.dumps({"round": round_, "update": update})
        write_tensors(self._folder / f"{update}.safetensors", state, {_ABOUT: about})
        kept = self.paths()
        for old in sorted(kept)[:-2]:
            kept[old].unlink()

    def are_whole(self, round_: int, needed: Iterable[int]) -> bool:
        """Whether none is damaged or of another round, and those `needed` are there, or two later ones in place of each."""
        kept = self.paths()
        for update, path in kept.items():
            try:
                about = _about(read_tensors(path)[1])
            except SpinliteError:
                return False
            if about and about != {"round": round_, "update": update}:
                return False
        return all(update in kept or sum(other > update for other in kept) >= 2 for update in needed)


def update_of(name: SnapshotName) -> int:
    """The update in the name of a snapshot within a round: "2-50" -> 50."""
    return int(str(name).partition("-")[2])


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata.get(_ABOUT, "{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
