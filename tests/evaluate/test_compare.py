"""Win rates, medians, paired intervals and their correction, by hand."""

from itertools import product

import pytest
import torch
from torch import Tensor

from spinlite.evaluate.compare import figures, sign_test
from spinlite.evaluate.scorer import Column, plain

HIGH, LOW = Column("high", "x", plain("x"), ""), Column("low", "x", plain("x"), "", lower=True)
SET = Column("set", "x", plain("x"), "", "set", lower=True)


def test_a_model_against_itself_wins_half_and_changes_nothing():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    change = figures([HIGH], {"high": x}, {"high": x})["high"].change
    assert change and change.by.low == change.by.value == change.by.high == 0
    assert change.wins and change.wins.low == change.wins.value == change.wins.high == 50
    assert change.chance == 1 and not change.clear


@pytest.mark.parametrize(("column", "wins"), [(HIGH, 62.5), (LOW, 37.5)])
def test_wins_are_shares_of_prompts_and_ties_count_half(column: Column, wins: float):
    base, now = torch.zeros(8), torch.tensor([1.0, 1, 1, 1, 0, 0, -9, -1])
    found = figures([column], {column.name: now}, {column.name: base})[column.name]
    assert found.median == pytest.approx(0.5) and found.mean.value == pytest.approx(-0.75)
    assert found.change and found.change.wins and found.change.wins.value == pytest.approx(wins)
    assert found.change.by.value == pytest.approx(-0.75) and found.change.by.low < -0.75 < found.change.by.high


def test_several_pictures_of_a_prompt_count_as_one():
    assert HIGH.per_prompt(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist() == [2, 0]


def test_the_difference_is_paired():
    g = torch.Generator().manual_seed(0)
    base: Tensor = torch.randn(200, generator=g)
    found = figures([HIGH], {"high": base + 0.1 + 0.01 * torch.randn(200, generator=g)}, {"high": base})["high"]
    assert found.change and found.change.by.low > 0.09 and found.mean.high - found.mean.low > 0.2
    assert found.change.clear and found.change.wins and found.change.wins.value == 100


def test_a_column_of_the_whole_set_has_a_difference_and_no_wins():
    h = torch.ones(10, 10).double()
    found = figures([SET], {"set": 2 * h}, {"set": h})["set"]
    assert found.median is None and found.change and found.change.wins is None
    assert found.change.by.value == pytest.approx(1000)


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (3, 2), (1, 4), (0, 0), (6, 6)])
def test_the_sign_test_counts_all_falls_of_the_coin(wins: int, losses: int):
    falls = [sum(fall) for fall in product((0, 1), repeat=wins + losses)]
    as_uneven = sum(abs(2 * heads - len(range(wins + losses))) >= abs(wins - losses) for heads in falls)
    assert sign_test(wins, losses) == pytest.approx(as_uneven / len(falls))


def test_more_scorers_ask_for_more():
    """7 of 7 is a chance of 1/64: clear alone, not among four of which it is the surest."""
    now, base = torch.ones(7), torch.zeros(7)
    even = torch.tensor([1.0, 1, 1, 1, -1, -1, -1])
    columns = [Column(name, "x", plain("x"), "") for name in "abcd"]
    alone = figures(columns[:1], {"a": now}, {"a": base})
    among = figures(columns, {"a": now} | dict.fromkeys("bcd", even), dict.fromkeys("abcd", base))
    assert alone["a"].change and alone["a"].change.clear
    assert among["a"].change and not among["a"].change.clear
