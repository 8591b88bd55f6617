"""What surrounds the step: the opponent measured ahead, learning that diverges, settings of another version."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.families.toy import Toy
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training import opponent_errors
from spinlite.training.batches import Batches
from spinlite.training.session import Session
from spinlite.training.step import measure
from tests.toy import Quiet, changed, made

NAMES = ["opponent_real", "opponent_fake"]


@pytest.fixture
def round_(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Batches]:
    """The session of a run in its second round, as it is when its learning begins, and that round's batches."""
    seen: list[tuple[Session, Batches]] = []
    whole = learn_module.known_errors

    def spied(session: Session, k: int, batches: Batches) -> dict[str, Tensor]:
        seen.append((session, batches))
        if k == 2:
            raise KeyboardInterrupt
        return whole(session, k, batches)

    monkeypatch.setattr(learn_module, "known_errors", spied)
    with pytest.raises(KeyboardInterrupt):
        train(changed(small, learn__updates=10), tmp_path / "r", Quiet())
    return seen[-1]


def errors(round_: tuple[Session, Batches], path: Path, batch: int, stop: int | None = None) -> dict[str, Tensor]:
    def progress(done: int, of: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    session, batches = round_
    return opponent_errors.measure_opponent(
        session.family, session.slots, NAMES, batches, range(batches.draws), path, batch, progress
    )


def test_errors_measured_ahead_are_those_that_the_steps_would_measure(round_: tuple[Session, Batches], tmp_path: Path):
    """With half of the captions dropped, so that the draw must know of it; in batches that divide nothing."""
    session, batches = round_
    found = errors(round_, tmp_path / "x.safetensors", 7)
    assert {name: len(value) for name, value in found.items()} == {"opponent_real": 80, "opponent_fake": 80}
    batches.known = found
    for update in range(10):
        (batch,) = batches.for_update(update)
        for name in NAMES:
            torch.testing.assert_close(batch.known[name], measure(session.family, session.slots, name, batch).detach())
    always = session.settings.learn.model_copy(update={"caption_dropout": 0.0})
    plain = Batches(session.family, session.encoded, session.train, None, always, 0, 2)
    captioned, dropped = (some.for_update(0)[0].cond["words"] for some in (plain, batches))
    assert not torch.equal(captioned, dropped), "captions were dropped"


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["saved each time", "saved at the end"])
def test_measuring_that_was_cut_off_goes_on_with_the_same_bits(
    seconds: float, round_: tuple[Session, Batches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opponent_errors, "SAVE_SECONDS", seconds)
    whole = errors(round_, tmp_path / "a" / "x.safetensors", 7)
    for stop in (21, 49):
        with pytest.raises(KeyboardInterrupt):
            errors(round_, tmp_path / "b" / "x.safetensors", 7, stop)
        assert len(read_tensors(tmp_path / "b" / "x.safetensors")[0]["opponent_real"]) == stop
    again = errors(round_, tmp_path / "b" / "x.safetensors", 7)
    assert all(torch.equal(again[name], whole[name]) for name in NAMES)
    assert (tmp_path / "a" / "x.safetensors").read_bytes() == (tmp_path / "b" / "x.safetensors").read_bytes()


def overflowing(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    """The toy network overflows, as one in half precision does, where its policy has moved too far from the base."""
    denoise = Toy.denoise

    def limited(toy: Any, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        policy = [p.detach().abs().max().item() for name, p in toy.net.named_parameters() if "lora_B.policy" in name]
        return denoise(toy, x_t, t, cond) * (float("inf") if max(policy, default=0.0) > most else 1.0)

    monkeypatch.setattr(Toy, "denoise", limited)


def test_a_run_that_diverges_keeps_its_ladder_and_goes_on_with_a_lower_rate(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(small, learn__updates=20, learn__lr=1e-2)
    overflowing(monkeypatch, 0.1)
    first = train(settings, tmp_path / "r", Quiet())
    assert first.stopped and "is not a number, after update" in first.stopped
    assert first.stopped.endswith("of round 2; rolled back to the end of round 1") and first.run.export_path.exists()
    ladder = {k: (tmp_path / "r" / "snapshots" / f"{k}.safetensors").read_bytes() for k in (0, 1)}
    kinds = [event["event"] for event in first.run.journal.every() if event.get("round") == 2]
    assert kinds[:2] == ["discarded probe", "discarded fakes"] and kinds[-1] == "guard"
    assert set(kinds[2:-1]) == {"discarded update"}

    with pytest.raises(SpinliteError, match=r"learn\.batch = 8 there, 4 now"):
        train(changed(settings, learn__batch=4), tmp_path / "r", Quiet())
    outcome = train(changed(settings, learn__lr=1e-3), tmp_path / "r", Quiet())
    assert {k: outcome.run.snapshot_path(k).read_bytes() for k in (0, 1)} == ladder
    assert [event["round"] for event in outcome.rounds] == [1, 2] and outcome.run.export_path.exists()
    assert len(outcome.run.events("update")) == 40
    with pytest.raises(SpinliteError, match=r"learn\.lr = 0\.001 there, 0\.01 now"):
        train(settings, tmp_path / "r", Quiet())


def test_a_run_that_diverged_begins_its_round_anew_with_the_same_settings_too(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(small, learn__updates=20)
    train(settings, tmp_path / "a" / "r", Quiet())
    with monkeypatch.context() as patch:
        overflowing(patch, 0.1)
        assert train(settings, tmp_path / "b" / "r", Quiet()).stopped
    train(settings, tmp_path / "b" / "r", Quiet())
    whole, again = made(tmp_path / "a" / "r"), made(tmp_path / "b" / "r")
    for end in (whole, again):  # what is exported is compared as a file
        end["events"] = [e for e in end["events"] if e["event"] not in ("guard", "export") and "discarded" not in e["event"]]
    assert again == whole
