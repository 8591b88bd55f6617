"""What an update found is read some updates at a time where reading makes the host wait; a run is the same."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.families.toy import Toy
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training import update as update_module
from spinlite.training.guards import LONG, soonest_won, won
from spinlite.training.update import Clipping, Unread
from tests.toy import TOY, Quiet, changed, made, paired, train_with_cuts

ENDS: dict[str, dict[str, Any]] = {
    "at the round's length": {"learn__updates": 13, "learn__ema": 0.9, "learn__snapshot_every": 5},
    "in an alarm": {"learn__lr": 0.3, "learn__updates": 40, "learn__batch": 32},
    "with all pairs won": {"learn__updates": 120},
    "with what is no number": {"learn__updates": 13},
    "with its beta found on the way": {"learn__updates": 13, "learn__aim": 0.2},
}


def infinite_from(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network says infinity from this call in training mode on."""
    denoise, calls = Toy.denoise, [0]

    def limited(toy: Toy, *given: Any) -> Any:
        calls[0] += torch.is_grad_enabled()
        return denoise(toy, *given) * (math.inf if calls[0] >= call else 1.0)

    monkeypatch.setattr(Toy, "denoise", limited)


@pytest.mark.parametrize("end", ENDS)
def test_a_round_ends_alike_however_many_updates_are_read_together(
    end: str, toy: Settings, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, read = changed(toy, run__rounds=1, **ENDS[end]), []
    if "won" in end:
        pairs = str(paired(swatches, (10, 0, 10)))
        settings = changed(load_settings(TOY, data__folder=pairs), method__name="dpo", run__rounds=1, learn__updates=120)
    whole = Unread.read

    def counted(self: Unread) -> list[Any]:
        found = whole(self)
        read.append(len(found))
        return found

    monkeypatch.setattr(Unread, "read", counted)
    for folder, most in (("one", 1), ("some", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(update_module, "MOST_UNREAD", {"cpu": most})
            patch.setattr(update_module, "READ_SECONDS", 1e9)
            if "number" in end:
                infinite_from(15, patch)
            read.clear()
            outcome = train(settings, tmp_path / folder / "r", Quiet())
            assert max(read) == (1 if "beta" in end else most)
    assert made(tmp_path / "one" / "r") == made(tmp_path / "some" / "r")
    event = {"in an alarm": "guard", "with what is no number": "guard", "with all pairs won": "won"}.get(end, "judge")
    assert outcome.run.events(event)


def test_a_run_that_is_read_some_updates_at_a_time_resumes_bit_for_bit(
    toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A save reads all that is unread before, so it never lies behind the journal."""
    settings = changed(toy, learn__updates=12, learn__snapshot_every=5)
    train(settings, tmp_path / "a" / "r", Quiet())
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(update_module, "MOST_UNREAD", {"cpu": 3})
    train_with_cuts(settings, tmp_path / "b" / "r", cuts=4, calls=40, seed=3)
    assert made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


def test_figures_are_read_by_the_clock_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(update_module, "MOST_UNREAD", {"cpu": 8})
    unread = Unread(torch.device("cpu"), 0.0)
    assert not unread.due(8)
    monkeypatch.setattr(update_module.time, "monotonic", lambda: math.inf)
    assert unread.due(8)


def test_nobody_wins_sooner_than_foretold():
    chance, seen, foretold = random.Random(5), 0, 1
    recent: list[dict[str, float]] = []
    since = 0
    for update in range(400):
        pull = chance.choice([0.0, 0.0, 0.004, 0.03 if update % 60 < 20 else 0.0])
        recent.append({"pull": pull, "margin": 1.0})
        since += 1
        assert since >= foretold or not won(recent, 32)
        if since >= foretold:
            foretold, since = soonest_won(recent, 32), 0
            assert 1 <= foretold <= LONG / 32
        seen += won(recent, 32)
    assert seen > 20


@pytest.mark.parametrize("start", [None, 0.0, 2.5])
def test_gradients_are_clipped_to_three_times_the_running_mean_of_their_norms(start: float | None):
    """Bit for bit as torch clips them to a limit that the host knows."""
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(7))] for _ in range(2))
    clipping, mean = Clipping(start, ours), start
    for turn in range(40):
        size = 100.0 if turn % 7 == 3 else 1.0
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one) * size
            other.grad = one.grad.clone()
        limit = 3 * mean if mean else math.inf
        norm = nn.utils.clip_grad_norm_(theirs, limit).item()
        mean = min(norm, limit) if mean is None else 0.9 * mean + 0.1 * min(norm, limit)
        assert clipping.clip().item() == norm and clipping.mean == mean
        assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))  # pyright: ignore
