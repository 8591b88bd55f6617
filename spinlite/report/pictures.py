"""The pictures of a run's rounds, prompt by prompt, as the report shows them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spinlite.config.prompts import Prompt
from spinlite.training.cells import Kind, read_cells

COLUMNS = 7  # rounds that are shown beside each other


@dataclass(frozen=True)
class Row:
    """A prompt, and the file of each round's picture of it; round 0 is the start."""

    prompt: Prompt
    files: dict[int, Path]

    @property
    def how(self) -> str:
        """Everything about it but its text, in words."""
        p = self.prompt
        negative = [f"without: {p.negative}"] if p.negative else []
        seed = [] if p.seed is None else [f"seed {p.seed}"]
        return ", ".join([*negative, *seed, f"{p.width}x{p.height}", f"{p.steps} steps", f"CFG {p.guidance:g}"])


def read_rows(places: Sequence[Path], kind: Kind) -> list[Row]:
    """What the rounds drew, by prompt; `places` are their folders, that of the start first.

    The prompts of the last round come first, in their order, then those that were drawn earlier alone. Pictures may share a
    caption: the first of it in one round belongs to the first in the others.
    """
    rows: dict[tuple[Prompt, int], dict[int, Path]] = {}
    for k in reversed(range(len(places))):
        seen = Counter[Prompt]()
        for cell in read_cells(places[k], kind):
            rows.setdefault((cell.prompt, seen[cell.prompt]), {})[k] = cell.path
            seen[cell.prompt] += 1
    return [Row(prompt, files) for (prompt, _), files in rows.items()]


@dataclass(frozen=True)
class Pair:
    """A picture by the start and one by a round, of the same caption and the same noise."""

    caption: str
    seed: int | None
    start: Path
    picture: Path


def pairs(rows: Sequence[Row], k: int) -> list[Pair]:
    """What someone can choose from: the pictures of round k that are others than those of the start."""
    both = [Pair(row.prompt.text, row.prompt.seed, row.files[0], row.files[k]) for row in rows if {0, k} <= row.files.keys()]
    return [pair for pair in both if pair.start.read_bytes() != pair.picture.read_bytes()]


def columns(rows: Sequence[Row]) -> list[int]:
    """The rounds that are shown: the first, the last and others between, evenly."""
    rounds = sorted({k for row in rows for k in row.files})
    if len(rounds) <= COLUMNS:
        return rounds
    return [rounds[i * (len(rounds) - 1) // (COLUMNS - 1)] for i in range(COLUMNS)]


def side_by_side(runs: Sequence[Sequence[Row]]) -> list[tuple[Row, list[Path | None]]]:
    """(a prompt that several of the runs have drawn, the last picture of each run) in order."""
    known = [{(row.prompt.text, row.prompt.negative, row.prompt.seed): row for row in rows} for rows in runs]
    shared = []
    for key in dict.fromkeys(key for rows in known for key in rows):
        found = [rows.get(key) for rows in known]
        if len(having := [row for row in found if row]) > 1:
            shared.append((having[0], [row.files[max(row.files)] if row else None for row in found]))
    return shared
