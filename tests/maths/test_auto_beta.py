"""The beta that is found: what it aims at, what it does not depend on, and where it stands still."""

import math
from pathlib import Path

import pytest
import torch

from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.maths.auto_beta import MOST, automatic_beta, running_mean
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.learn_state import LearnState
from tests.toy import TOY, Quiet, changed


@pytest.fixture
def settings(swatches: Path) -> Settings:
    return load_settings(TOY, data__folder=str(swatches), learn__aim=0.2)


def test_a_typical_pair_counts_what_was_aimed_at():
    for aim in (0.05, 0.2, 0.4):
        beta = automatic_beta(1e-3, 0.1, aim)
        assert 1 / (1 + math.exp(beta * 1e-3)) == pytest.approx(aim)


def test_beta_is_inverse_to_the_units_of_errors():
    """Sums for means, v for eps, weights of times: margins and errors grow by one factor, logits don't."""
    for margin in (1e-6, 1e-3, 1.0):
        assert 700 * margin * automatic_beta(700 * margin, 70, 0.2) == pytest.approx(margin * automatic_beta(margin, 0.1, 0.2))


def test_beta_stands_still_where_margins_are_chance_or_leave_the_leash():
    assert automatic_beta(0.0, 0.1, 0.2) == automatic_beta(1e-9, 0.1, 0.2) < float("inf")
    assert automatic_beta(MOST * 0.1, 0.1, 0.2) == automatic_beta(5.0, 0.1, 0.2)
    weight = 1 / (1 + math.exp(automatic_beta(0.01, 0.1, 0.2) * 0.01))  # a tenth of the error: a won pair
    assert weight < 0.002


def test_what_it_remembers_is_counted_in_pairs_not_in_batches():
    torch.manual_seed(0)
    values = torch.rand(512, dtype=torch.float64)
    found = []
    for size in (4, 16, 64):
        mean: float | None = 0.0
        for part in values.split(size):
            mean = running_mean(mean, part)
        found.append(mean)
    assert found == pytest.approx([found[0]] * 3, rel=0.05)


def test_methods_without_beta_are_left_alone():
    assert LearnState(margin=1e-3, level=0.1).method(SFT(), 0.2) == SFT()
    assert LearnState().method(SPIN(), 0.2) == SPIN() == LearnState(margin=1e-3, level=0.1).method(SPIN(), 0.0)
    assert LearnState(margin=1e-3, level=0.1).method(SPIN(), 0.2) == SPIN(beta=automatic_beta(1e-3, 0.1, 0.2))


def test_a_run_finds_its_beta_whatever_was_set_and_resumes_with_it(settings: Settings, tmp_path: Path):
    runs = {beta: train(changed(settings, method__beta=beta), tmp_path / f"{beta}" / "r", Quiet()) for beta in (1.0, 1e5)}
    ends = [[event["beta"] for event in outcome.run.events("update")][-1] for outcome in runs.values()]
    assert ends[0] == pytest.approx(ends[1], rel=0.1) and 1 < ends[0] < 1e4
    again = changed(settings, method__beta=1.0)
    with pytest.raises(KeyboardInterrupt):
        train(again, tmp_path / "c" / "r", Quiet(lambda title, done: "2/2 · learn" in title and done == 13))
    train(again, tmp_path / "c" / "r", Quiet())
    first, second = (read_tensors(tmp_path / name / "r" / "snapshots" / "2.safetensors")[0] for name in ("1.0", "c"))
    assert all(torch.equal(first[name], second[name]) for name in first)
