"""The average of a round's weights (EMA): what it is, and that a round saves it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.plan.make import make_plan
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.average import Average
from tests.plan.test_plan import card
from tests.toy import TOY, Quiet, changed


def test_the_average_by_hand():
    """The decays of the first updates are 1/10, 2/11, 3/12; a smaller one is the limit."""
    weight = nn.Parameter(torch.zeros(2))
    average = Average(0.2, [weight])
    for count, value in enumerate((1.0, 2.0, 3.0), 1):
        weight.data.fill_(value)
        average.update(count)
    first = 0.9 * 1
    second = 2 / 11 * first + 9 / 11 * 2
    third = 0.2 * second + 0.8 * 3
    with average.applied():
        assert weight.tolist() == pytest.approx([third] * 2)
    assert weight.tolist() == [3.0] * 2
    again = Average(0.2, [weight])
    again.restore(average.state())
    again.apply()
    assert weight.tolist() == pytest.approx([third] * 2)


def test_no_decay_is_no_average():
    weight = nn.Parameter(torch.ones(2))
    average = Average(0.0, [weight])
    average.update(1)
    with average.applied():
        assert weight.tolist() == [1.0] * 2
    assert not average.state()


def test_a_round_saves_the_average_of_the_weights_that_it_went_through(toy: Settings, tmp_path: Path):
    """Snapshots after every update of a run without average are the way; with average the same way is gone."""
    settings = changed(toy, learn__updates=12, run__rounds=1, judge__stop=False)
    plain = train(changed(settings, learn__snapshot_every=1), tmp_path / "a" / "r", Quiet()).run
    averaged = train(changed(settings, learn__ema=0.5), tmp_path / "b" / "r", Quiet()).run
    mean = read_tensors(plain.snapshot_path(0))[0]
    for count, name in enumerate([*plain.snapshots_within(1), 1], 1):
        decay = min(0.5, count / (9 + count))
        mean = {key: decay * old + (1 - decay) * read_tensors(plain.snapshot_path(name))[0][key] for key, old in mean.items()}
    saved = read_tensors(averaged.snapshot_path(1))[0]
    for name, value in mean.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-7)
    last = read_tensors(plain.snapshot_path(1))[0]
    assert any(not torch.allclose(saved[name], last[name]) for name in last)
    ways = ([e["loss"] for e in run.events("update")] for run in (plain, averaged))
    assert next(ways) == next(ways)


def test_snapshots_within_a_round_are_averages_and_leave_the_learning_as_it_is(toy: Settings, tmp_path: Path):
    settings = changed(toy, learn__updates=6, run__rounds=1, learn__ema=0.5, judge__stop=False)
    plain = train(settings, tmp_path / "a" / "r", Quiet()).run
    kept = train(changed(settings, learn__snapshot_every=2), tmp_path / "b" / "r", Quiet()).run
    last, same = (read_tensors(run.snapshot_path(1))[0] for run in (plain, kept))
    assert kept.snapshots_within(1) == ["1-2", "1-4"] and all(torch.equal(last[name], same[name]) for name in last)


def test_a_plan_counts_the_average(toy: Settings):
    plain, averaged = (make_plan("x", changed(toy, learn__ema=ema), card(8), 36, 4, None) for ema in (0.0, 0.9))
    assert averaged.memory["learn"] > plain.memory["learn"] and averaged.memory["play"] == plain.memory["play"]
    assert averaged.disk["snapshots"] > plain.disk["snapshots"]
    assert "the average of the weights (learn.ema) takes " in averaged.assumed[0] and len(plain.assumed) < len(averaged.assumed)


def test_two_averages_are_refused():
    with pytest.raises(SpinliteError, match="schedulefree does so already"):
        load_settings(TOY, ["learn.ema=0.9", "learn.optimizer=schedulefree"])
