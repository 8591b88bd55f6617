"""The ladder: snapshots within a round, and a random opponent for a round or for each picture."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from spinlite.config.settings import Settings
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training.batches import Batch
from spinlite.training.play import fake_key
from spinlite.training.session import Session
from spinlite.training.step import measure
from tests.toy import Quiet, changed


@pytest.fixture
def each(toy: Settings) -> Settings:
    """Three rounds of 4 updates with a snapshot in the middle; every picture has an opponent of its own."""
    short = changed(toy, method__name="seppo", learn__updates=4, learn__snapshot_every=2, run__rounds=3, judge__stop=False)
    return changed(short, method__reference="each", method__beta=5.0)


class Watched:
    """A round's session and what its steps are given, as it happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session: Any = None
        self.k = 0
        self.batches: list[tuple[int, list[Any], Batch]] = []
        learned, for_update = learn_module._learn, learn_module.Batches.for_update

        def learn(session: Session, k: int, *others: Any) -> None:
            self.session, self.k = session, k
            learned(session, k, *others)

        def spied(batches: Any, update: int) -> list[Batch]:
            (made,) = for_update(batches, update)
            size = len(made.t)
            self.batches.append((self.k, batches.rows(range(update * size, (update + 1) * size)), made))
            return [made]

        monkeypatch.setattr(learn_module, "_learn", learn)
        monkeypatch.setattr(learn_module.Batches, "for_update", spied)


def owners(session: Session, k: int) -> dict[str, Any]:
    return {fake_key(record): snapshot for snapshot, records in session.opponents(k).items() for record in records}


@pytest.mark.parametrize("points", [0, 2], ids=["noised again", "on paths"])
def test_each_picture_meets_the_fakes_and_the_errors_of_its_own_opponent(
    points: int, each: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every fake and every error that a step sees, made again by the one snapshot that is drawn for that picture."""
    watched = Watched(monkeypatch)
    outcome = train(changed(each, play__points=points), tmp_path / "r", Quiet())
    session, seen = watched.session, set()
    for k, rows, batch in watched.batches:
        snapshots = owners(session, k)
        for row, (record, _) in enumerate(rows):
            snapshot = snapshots[fake_key(record)]
            seen.add((k, snapshot))
            session.load_opponent(snapshot)
            one = next(replace(part, known={}) for i, part in enumerate(batch.parts(1)) if i == row)
            with torch.no_grad():
                for name, known in batch.known.items():
                    assert_close(measure(session.family, session.slots, name, one), known[row : row + 1], rtol=1e-4, atol=1e-6)
                if one.path_points:
                    with session.slots.use("opponent"):
                        said = session.family.denoise(one.path_points.x_t, one.path_points.t, one.cond)
                    assert_close(said, one.path_points.own, rtol=1e-4, atol=1e-5)
                else:
                    fake = session.sample_snapshot("opponent", snapshot, [record], "again", *session._names(k))([record])
                    assert one.fake is not None  # the round is over, so this fake is made again, in another batch
                    assert_close(fake, one.fake, rtol=1e-4, atol=1e-5)
    assert {snapshot for k, snapshot in seen if k == 3} == {0, "1-2", 1, "2-2", 2}
    needed = {"opponent_real"} if points else {"opponent_real", "opponent_fake"}
    assert all(set(batch.known) == needed for k, _, batch in watched.batches if k > 1), "a step needs no opponent"
    counts = [event["opponents"] for event in outcome.rounds]
    assert counts[0] == {"0": len(session.train)} and sum(counts[2].values()) == len(session.train)
    assert [event["opponent"] for event in outcome.rounds] == [0, 1, 2], "held-out pictures meet the previous snapshot"


def test_whom_a_picture_meets_depends_on_the_seed_and_the_round_alone(each: Settings, tmp_path: Path):
    settings = changed(each, learn__updates=2, learn__snapshot_every=0)
    counts = [[e["opponents"] for e in train(settings, tmp_path / name / "r", Quiet()).rounds] for name in "ab"]
    other = [e["opponents"] for e in train(changed(settings, run__seed=1), tmp_path / "c" / "r", Quiet()).rounds]
    assert counts[0] == counts[1] != other


def test_snapshots_within_a_round_are_the_policy_as_it_stood(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A round of 4 updates that keeps a snapshot after 2 is that round without; the snapshot is the state after 2."""
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(toy, learn__updates=4, run__rounds=1)
    plain = train(settings, tmp_path / "a" / "r", Quiet())
    kept = train(changed(settings, learn__snapshot_every=2), tmp_path / "b" / "r", Quiet())
    assert kept.run.snapshots_within(1) == ["1-2"] and plain.run.snapshots_within(1) == []
    first, second = (read_tensors(outcome.run.snapshot_path(1))[0] for outcome in (plain, kept))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "c" / "r", Quiet(lambda title, done: "learn" in title and done == 3))
    state = read_tensors(tmp_path / "c" / "r" / "state.safetensors")[0]
    within = read_tensors(kept.run.snapshot_path("1-2"))[0]
    assert all(torch.equal(within[name], state[f"policy/{name}"]) for name in within)


def test_saving_takes_a_hundredth_of_the_time_at_the_most(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An update takes 10 seconds and a save 0.5: the first is saved after one update, the next after five more."""
    now, saves = 0.0, []
    save = Run.save

    def slow(run: Run, tensors: Any, **where: Any) -> None:
        nonlocal now
        save(run, tensors, **where)
        if where.get("update"):
            saves.append(where["update"])
            now += 0.5

    def tick(title: str, _: int) -> bool:
        nonlocal now
        now += 10 * ("learn" in title)
        return False

    monkeypatch.setattr(Run, "save", slow)
    monkeypatch.setattr(learn_module, "time", SimpleNamespace(monotonic=lambda: now))
    train(changed(toy, learn__updates=13, run__rounds=1), tmp_path / "r", Quiet(tick))
    assert saves == [1, 6, 11]


def test_a_random_opponent_of_a_round_may_be_a_snapshot_within_an_earlier_one(toy: Settings, tmp_path: Path):
    short = changed(toy, method__name="seppo", learn__updates=4, learn__snapshot_every=1, run__rounds=6, judge__stop=False)
    drawn = [event["opponent"] for event in train(short, tmp_path / "r", Quiet()).rounds]
    assert any(isinstance(snapshot, str) for snapshot in drawn) and drawn[0] == 0
    assert all(int(str(snapshot).partition("-")[0]) < k for k, snapshot in enumerate(drawn, 1))
