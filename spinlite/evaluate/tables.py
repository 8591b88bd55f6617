"""An evaluation as tables of words, for the screen and for the page."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spinlite.evaluate.compare import Change, Figure
from spinlite.evaluate.evaluate import Evaluation
from spinlite.evaluate.kid import Estimate
from spinlite.evaluate.published import beside

FOOT = "95 % intervals over prompts, paired; a tie is half a win; * clear, corrected for the number of scorers"


@dataclass(frozen=True)
class Table:
    """A heading, lines of cells of which the first is the head, and a sentence below."""

    title: str
    lines: Sequence[Sequence[str]]
    note: str = ""


def title(found: Evaluation) -> str:
    """What was compared, in words."""
    pictures = f"{found.seeds} picture{'s' * (found.seeds > 1)}"
    return f"{found.model} · {len(found.prompts.records)} prompts ({found.prompts.name}), {pictures} each"


def tables(found: Evaluation) -> Iterator[Table]:
    """A table for each model by each sampler, and for the real pictures if there are some."""
    for row in [*found.rows, *([found.reals] if found.reals else [])]:
        whose = "the fakes' own" if row.drawn.own else "no fakes came from it"
        sampler = f" · sampler: {row.drawn.sampler} ({whose})" if row.drawn.sampler else ""
        lines = [[c.name, *_cells(row.figures[c.name])] for c in found.columns if c.name in row.figures]
        against = any(figure.change for figure in row.figures.values())
        head = ["", "mean [95 %]", "median"] + ["to base [95 %]", "wins, % [95 %]"] * against
        note = "" if row.way is None else f"KID: {row.way:.0%} of the way to the real pictures"
        yield Table(f"{row.drawn.model}{sampler}", [head, *lines], note)


def published_tables(found: Evaluation) -> Iterator[Table]:
    """A table for each published group beside our rows, which are marked by ">"; the note says what differs."""
    for one in beside(found):
        head = ["", *one.columns]
        heading = f"{one.group.source} · {one.group.base} · {one.group.prompts}"
        yield Table(heading, [head, *([name, *cells] for name, cells in one.lines)], f"differs: {'; '.join(one.differs)}")


def legend(found: Evaluation) -> list[tuple[str, str]]:
    """(column, what it is)."""
    return [(c.name, c.about + "; lower is better" * c.lower) for c in found.columns]


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
