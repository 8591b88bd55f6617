"""The study's results: a JSON line a snapshot, and what is read from many of them, with intervals over captions and seeds."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.maths.draws import generator
from spinlite.study.arms import Cell, Scale

BASE = "base"
REALS = "reals"
SEED_RESAMPLES = 20  # of the seeds, for each resample of the captions


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval: paired bootstrap over captions and seeds; with one seed, over captions."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.low > 0 or self.high < 0


class Results:
    """Lines by cell and round, kept in a file that only grows."""

    def __init__(self, path: Path) -> None:
        """Raises SpinliteError for a line that is none."""
        self._path = path
        self._lines: dict[tuple[str, int, str], dict[str, Any]] = {}
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
            try:
                line = json.loads(text)
                self._lines[_key(line)] = line
            except (ValueError, KeyError):
                problem = f"{path}, line {number}, is no result"
                raise SpinliteError(problem, fix="remove that line: its cell is run again") from None

    def __contains__(self, key: tuple[str, int, str]) -> bool:
        return key in self._lines

    def add(self, line: dict[str, Any]) -> None:
        """A line more, at once on disk."""
        self._lines[_key(line)] = line
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:  # in one write: two processes may share the file
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    def lines(self, cells: Iterable[Cell], scale: Scale) -> list[dict[str, Any]]:
        """The lines of base, reals and these cells, as all of them are made now."""
        made_of = {cell.name: cell.made_of for cell in cells} | dict.fromkeys((BASE, REALS), scale.made_of)
        return [line for line in self._lines.values() if made_of.get(line["cell"]) == line["made_of"]]


def _key(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["cell"], line["round"], line["made_of"]


class Table:
    """Results as arms and rounds."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self.lines = lines
        self._found = {(line["arm"], line["seed"], line["round"]): line for line in lines}

    def seeds(self, arm: str, round_: int, measure: str = "kid") -> list[int]:
        """Those of which a measure is there."""
        return sorted(
            seed for (name, seed, k), line in self._found.items() if (name, k) == (arm, round_) and measure in line["measures"]
        )

    def rounds(self, arm: str) -> list[int]:
        """The rounds of an arm that are there, its start (0) left out."""
        return sorted({k for name, _, k in self._found if name == arm and k > 0})

    def last(self, arm: str) -> int:
        return max(self.rounds(arm), default=0)

    def estimate(self, measure: str, arm: str, round_: int) -> Estimate | None:
        """A measure of an arm after a round; None where there is no such cell."""
        return self._estimate(self.seeds(arm, round_, measure), lambda seed: self._values(measure, arm, seed, round_))

    def difference(self, measure: str, arm: str, round_: int, other: str, other_round: int) -> Estimate | None:
        """An arm less another, each after a round, over the seeds that both have; the base and the reals go with any."""
        mine, theirs = self.seeds(arm, round_, measure), self.seeds(other, other_round, measure)
        shared = other in (BASE, REALS)
        common = mine if shared and theirs else [seed for seed in mine if seed in theirs]

        def values(seed: int) -> tuple[float, Tensor]:
            a = self._values(measure, arm, seed, round_)
            b = self._values(measure, other, 0 if shared else seed, other_round)
            return a[0] - b[0], a[1] - b[1]

        return self._estimate(common, values)

    def seconds(self, arm: str, round_: int) -> float | None:
        """What it took to get to a round, play and learning, on one thread: the median over seeds."""
        found = [line["seconds"] for (name, _, k), line in self._found.items() if name == arm and k == round_]
        times = [each for each in map(self._whole, found) if each is not None]
        return float(torch.tensor(times).median()) if times else None

    def _whole(self, seconds: dict[str, Any] | None) -> float | None:
        """Fakes that another cell had made are charged what they cost there."""
        if seconds is None or seconds["learn"] is None:
            return None
        known = [
            s["play"] / s["played"] for line in self._found.values()
            if (s := line["seconds"]) and s["played"] and s["play_settings"] == seconds["play_settings"]
        ]  # fmt: skip
        fakes = seconds["fakes"] * float(torch.tensor(known).median()) if known else 0.0
        return seconds["learn"] + fakes

    def _values(self, measure: str, arm: str, seed: int, round_: int) -> tuple[float, Tensor]:
        found = self._found[arm, seed, round_]["measures"][measure]
        return found["value"], torch.tensor(found["resamples"], dtype=torch.float64)

    def _estimate(self, seeds: Sequence[int], values: Callable[[int], tuple[float, Tensor]]) -> Estimate | None:
        if not seeds:
            return None
        found = [values(seed) for seed in seeds]
        each = torch.stack([resamples for _, resamples in found])  # (seeds, resamples)
        picks = torch.randint(len(seeds), (SEED_RESAMPLES, len(seeds)), generator=generator("seeds", len(seeds)))
        means = each[picks].mean(1).flatten()
        low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Estimate(sum(value for value, _ in found) / len(found), low, high, len(seeds))
