"""From scores to figures: means with intervals, medians, paired differences to the base, win rates.

Everything is by prompt: the pictures of a prompt are averaged first, since they are not independent. Intervals are the middle
95 % of bootstrap resamples of the prompts, the same ones for every model, so that differences are paired.

Shapes: scores of n prompts, (n,), or a matrix (n, n) for columns of the whole set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from spinlite.evaluate.kid import Estimate, estimate_mean
from spinlite.evaluate.scorer import Column

SURE = 0.05  # a difference counts as clear below this probability of chance, over all columns together


@dataclass(frozen=True)
class Change:
    """A model against the base in one column. `wins` in percent of prompts, ties count half; None for a column of the set."""

    by: Estimate
    wins: Estimate | None
    chance: float | None  # how likely so uneven a count of wins is by chance (sign test, two-sided)
    clear: bool = False  # whether that stands after Holm's correction over the columns


@dataclass(frozen=True)
class Figure:
    """One model in one column."""

    mean: Estimate
    median: float | None
    change: Change | None  # None for the base


def figures(columns: Sequence[Column], scores: Mapping[str, Tensor], base: Mapping[str, Tensor] | None) -> dict[str, Figure]:
    """A model's figures by column, against the base's scores if there are any. `scores` by column: (n,) or (n, n)."""
    found = {c.name: _figure(c, scores[c.name], base[c.name] if base else None) for c in columns}
    return _corrected(found)


def _figure(column: Column, scores: Tensor, base: Tensor | None) -> Figure:
    median = None if column.of == "set" else scores.double().quantile(0.5).item()
    change = None if base is None else _change(column, scores, base)
    return Figure(column.estimate(scores), median, change)


def _change(column: Column, scores: Tensor, base: Tensor) -> Change:
    difference = scores - base
    if column.of == "set":
        return Change(column.estimate(difference), None, None)
    better = -difference if column.lower else difference
    wins = 100 * ((better > 0).double() + 0.5 * (better == 0).double())
    return Change(column.estimate(difference), estimate_mean(wins), sign_test(int((better > 0).sum()), int((better < 0).sum())))


def sign_test(wins: int, losses: int) -> float:
    """How likely it is that a fair coin falls so unevenly or more, to either side; ties are left out."""
    count, most = wins + losses, max(wins, losses)
    if not count:
        return 1.0
    tail = sum(math.comb(count, k) for k in range(most, count + 1))
    return min(1.0, 2 * tail / 2**count)


def _corrected(found: dict[str, Figure]) -> dict[str, Figure]:
    """Mark the changes that are clear after Holm's correction (Holm 1979, Scand. J. Statist. 6)."""
    tested = {n: f.change.chance for n, f in found.items() if f.change and f.change.chance is not None}
    corrected = dict(found)
    for rank, name in enumerate(sorted(tested, key=tested.__getitem__)):
        if tested[name] > SURE / (len(tested) - rank):
            break
        figure = found[name]
        if figure.change:
            corrected[name] = replace(figure, change=replace(figure.change, clear=True))
    return corrected
