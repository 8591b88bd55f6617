"""The screen of `spinlite evaluate`: a table for each model, and the same figures for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from spinlite.evaluate.compare import Change, Figure
from spinlite.evaluate.evaluate import Evaluation, Row
from spinlite.evaluate.kid import Estimate

WIDTHS = (15, 26, 10, 27, 22)  # of the table's columns


def show(screen: Console, found: Evaluation) -> None:
    """Print all tables."""
    for line in lines(found):
        screen.print(Text(line))


def lines(found: Evaluation) -> Iterator[str]:
    """The tables, line by line."""
    yield f"{found.model} · {len(found.prompts.records)} prompts ({found.prompts.name}), {_pictures(found.seeds)} each"
    for sampler in dict.fromkeys(row.drawn.sampler for row in found.rows):
        mine = [row for row in found.rows if row.drawn.sampler == sampler]
        yield ""
        whose = "the fakes' own" if mine[0].drawn.own else "no fakes came from it"
        yield f"sampler: {sampler} ({whose})"
        for row in mine:
            yield from _table(row, found)
    if found.reals:
        yield ""
        yield from _table(found.reals, found)
    yield ""
    for column in found.columns:
        yield f"{column.name:<{WIDTHS[0]}}{column.about}{'; lower is better' if column.lower else ''}"
    yield "95 % intervals over prompts, paired; a tie counts as half a win; * clear, corrected for the number of scorers"


def _table(row: Row, found: Evaluation) -> Iterator[str]:
    against = bool(row.figures) and any(figure.change for figure in row.figures.values())
    head = [row.drawn.model, "mean [95 %]", "median"] + ["to base [95 %]", "wins, % [95 %]"] * against
    yield _columns(head)
    for column in found.columns:
        if figure := row.figures.get(column.name):
            yield _columns([column.name, *_cells(figure)])
    if row.way is not None:
        yield f"KID: {row.way:.0%} of the way to the real pictures"


def _cells(figure: Figure) -> Iterator[str]:
    yield _interval(figure.mean)
    yield "" if figure.median is None else f"{figure.median:.2f}"
    if change := figure.change:
        yield _interval(change.by, signed=True)
        yield _wins(change)


def _wins(change: Change) -> str:
    if change.wins is None:
        return ""
    return f"{change.wins.value:.0f} [{change.wins.low:.0f}, {change.wins.high:.0f}]{' *' * change.clear}"


def _interval(found: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found.value:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def _columns(cells: list[str]) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def _pictures(seeds: int) -> str:
    return f"{seeds} picture{'s' * (seeds > 1)}"


def as_json(found: Evaluation) -> dict[str, Any]:
    """All figures, for programs."""
    rows = [*found.rows, *([found.reals] if found.reals else [])]
    return {
        "model": found.model, "prompts": found.prompts.name, "count": len(found.prompts.records), "seeds": found.seeds,
        "rows": [
            {
                "model": row.drawn.model, "sampler": row.drawn.sampler, "own": row.drawn.own, "way": row.way,
                "figures": {name: asdict(figure) for name, figure in row.figures.items()},
            }
            for row in rows
        ],
    }  # fmt: skip
