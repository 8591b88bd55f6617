"""Is a larger error on unseen pictures more than chance? How often the answer is wrong, and how often a real growth is seen."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spinlite.config.settings import Settings
from spinlite.data.records import Record
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.heldout import CHANCE, has_grown, mean_of_pictures, student_tail
from tests.toy import Quiet, changed

TRIALS = 4000
DIFFERENCES: dict[str, Callable[[int], Tensor]] = {  # of pictures between two rounds, with mean 0
    "normal": lambda n: torch.randn(TRIALS, n),
    "heavy tails": lambda n: torch.randn(TRIALS, n) / torch.rand(TRIALS, n).sqrt(),
}


def share_grown(differences: Tensor) -> float:
    """Of the rows, how many count as grown. Pictures' errors differ a hundredfold; that must not matter."""
    before = torch.logspace(-3, -1, differences.shape[1]).double()
    return sum(has_grown(before, before + row) for row in differences.double()) / len(differences)


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
@pytest.mark.parametrize("pictures", [1, 2, 3, 4, 5, 6, 8, 12, 16])
def test_where_nothing_changed_less_than_one_round_in_100_is_stopped(pictures: int, kind: str):
    torch.manual_seed(pictures)
    assert share_grown(DIFFERENCES[kind](pictures)) < 0.01


@pytest.mark.parametrize(("pictures", "growth", "seen"), [(4, 3.0, 0.55), (6, 2.0, 0.65), (8, 2.0, 0.9), (16, 1.0, 0.75)])
def test_a_growth_that_is_large_beside_the_differences_between_pictures_is_seen(pictures: int, growth: float, seen: float):
    """`growth` in standard deviations of the pictures' differences. On the demo a LoRA at three times its strength has 3."""
    torch.manual_seed(0)
    assert share_grown(growth + torch.randn(1000, pictures)) > seen


def test_a_growth_that_is_the_same_in_every_picture_is_no_chance_and_that_of_one_picture_may_be():
    before = torch.full((4,), 0.0198)
    assert has_grown(before, before + 1e-3) and not has_grown(before, before - 1e-3) and not has_grown(before, before)
    assert not has_grown(before[:1], before[:1] + 1) and not has_grown(before, before * (1 + 1e-6))


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [(1, 1, 0.25), (2, 2, 0.5 - 2 / math.sqrt(24)), (5.8409, 3, 0.005), (4.6041, 4, 0.005), (2.9467, 15, 0.005),
     (0, 7, 0.5), (2.6561, 63, 0.005)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(t: float, freedom: int, tail: float):
    assert student_tail(t, freedom) == pytest.approx(tail, abs=1e-6)
    assert CHANCE == 0.005


def test_a_picture_with_many_captions_counts_once():
    records = [Record(Path(), caption, key) for caption, key in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert mean_of_pictures(records, torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 5.0]


def test_few_unseen_pictures_stop_nothing_and_choose_nothing(toy: Settings, swatches: Path, tmp_path: Path):
    """8 pictures, and a rate that spoils everything: the error grows, nobody can know, and the last round is the result."""
    for i in range(8, 40):
        (swatches / f"p{i}.png").unlink()
        (swatches / f"p{i}.txt").unlink()
    watch = Quiet()
    wild = changed(changed(toy, method__name="sft"), learn__lr=0.3, run__rounds=3)
    outcome = train(wild, tmp_path / "r", watch)
    assert any("too few to judge by" in line for line in watch.said)
    assert outcome.rounds[-1]["policy_real"] > outcome.rounds[0]["base_real"], "this is the case in question"
    assert outcome.stopped is None and [event["enough"] for event in outcome.rounds] == [False] * 3
    assert outcome.best == 3 and read_tensors(outcome.run.export_path)[1]["spinlite.round"] == "3"


def test_a_journal_says_nothing_more_where_pictures_are_enough(toy: Settings, tmp_path: Path):
    assert all("enough" not in event for event in train(toy, tmp_path / "r", Quiet()).rounds)
