"""What papers report, beside our figures, with everything that differs in how they came about.

Only rows that were evaluated by one protocol, and read from their source or named as second-hand, are in `published.json`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spinlite.config.settings import Play
from spinlite.evaluate.evaluate import Evaluation, Row

TABLES = Path(__file__).with_name("published.json")
NAMES = {"sampler": "sampler", "steps": "steps", "guidance": "guidance", "seeds": "pictures a prompt"}


@dataclass(frozen=True)
class Group:
    """Rows of one source by one protocol. `rows`: a method's means by column; `sampling` holds what is known of it."""

    source: str
    prompts: str
    base: str
    sampling: Mapping[str, Any]
    notes: Sequence[str]
    rows: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Beside:
    """A group beside the rows of one of our samplers: a line a model, and in words what differs."""

    group: Group
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[str]]]
    differs: Sequence[str]


@cache
def groups() -> list[Group]:
    """All published groups."""
    return [Group(**group) for group in json.loads(TABLES.read_text(encoding="utf-8"))]


def beside(found: Evaluation) -> Iterator[Beside]:
    """The groups that share a column with an evaluation, for each sampler; those with the same prompts alone, if any."""
    ours = {column.name for column in found.columns}
    sharing = [group for group in groups() if any(ours & row.keys() for row in group.rows.values())]
    same = [group for group in sharing if group.prompts == found.prompts.name]
    for sampling, sampler in zip(found.sampling, dict.fromkeys(row.drawn.sampler for row in found.rows), strict=True):
        rows = [row for row in found.rows if row.drawn.sampler == sampler]
        for group in same or sharing:
            columns = [c.name for c in found.columns if any(c.name in row for row in group.rows.values())]
            theirs = [(name, [_cell(row.get(column)) for column in columns]) for name, row in group.rows.items()]
            yield Beside(group, columns, [*theirs, *(_own(row, columns) for row in rows)], differences(group, found, sampling))


def differences(group: Group, found: Evaluation, sampling: Play) -> list[str]:
    """What is known to differ between a group's protocol and ours, in words."""
    ours = sampling.model_dump() | {"seeds": found.seeds}
    differs = [f"base: {group.base}, here {found.model}"]
    count = len(found.prompts.records)
    if group.prompts != found.prompts.name:
        differs.append(f"prompts: {group.prompts}, here {count} of {found.prompts.name}")
    elif found.prompts.limited:
        differs.append(f"prompts: all of {group.prompts}, here {count} of them")
    for key, theirs in group.sampling.items():
        if theirs != ours[key]:
            differs.append(f"{NAMES[key]}: {theirs}, here {ours[key]}")
    if any(column.name.startswith("hps") for column in found.columns):
        differs.append("HPS: it may be resized without antialias there, here with it")
    return [*differs, *group.notes]


def _own(row: Row, columns: Sequence[str]) -> tuple[str, list[str]]:
    return f"> {row.drawn.model}", [_cell(row.figures[column].mean.value) for column in columns]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
