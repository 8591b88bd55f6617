"""The ladder: snapshots within a round, and a random opponent for a round or for each picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from spinlite.config.settings import Settings
from spinlite.runs.store import read
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training.batches import Batch
from spinlite.training.play import fake_key
from spinlite.training.session import Game
from spinlite.training.step import measure
from tests.toy import Quiet, changed


@pytest.fixture
def each(toy: Settings) -> Settings:
    """Three rounds of 4 updates with a snapshot in the middle; every picture has an opponent of its own."""
    short = changed(toy, method__name="seppo", learn__updates=4, learn__snapshot_every=2, run__rounds=3, judge__stop=False)
    return changed(short, method__reference="each", method__beta=5.0)


class Watched:
    """A round's game and what its steps are given, as it happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.game: Any = None
        self.k = 0
        self.batches: list[tuple[int, list[Any], Batch]] = []
        learned, at = learn_module._learn, learn_module.Batches.at

        def learn(game: Game, k: int, *others: Any) -> None:
            self.game, self.k = game, k
            learned(game, k, *others)

        def spied(batches: Any, update: int) -> list[Batch]:
            (made,) = at(batches, update)
            size = len(made.t)
            self.batches.append((self.k, batches.rows(range(update * size, (update + 1) * size)), made))
            return [made]

        monkeypatch.setattr(learn_module, "_learn", learn)
        monkeypatch.setattr(learn_module.Batches, "at", spied)


def owners(game: Game, k: int) -> dict[str, Any]:
    return {fake_key(record): rung for rung, records in game.rivals(k).items() for record in records}


@pytest.mark.parametrize("points", [0, 2], ids=["noised again", "on paths"])
def test_each_picture_meets_the_fakes_and_the_errors_of_its_own_opponent(
    points: int, each: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every fake and every error that a step sees, made again by the one snapshot that is drawn for that picture."""
    watched = Watched(monkeypatch)
    outcome = train(changed(each, play__points=points), tmp_path / "r", Quiet())
    game, seen = watched.game, set()
    for k, rows, batch in watched.batches:
        rungs = owners(game, k)
        for row, (record, _) in enumerate(rows):
            rung = rungs[fake_key(record)]
            seen.add((k, rung))
            game.enter(rung)
            one = next(replace(part, known={}) for i, part in enumerate(batch.parts(1)) if i == row)
            with torch.no_grad():
                for name, known in batch.known.items():
                    assert_close(measure(game.family, game.slots, name, one), known[row : row + 1], rtol=1e-4, atol=1e-6)
                if one.walked:
                    with game.slots.use("opponent"):
                        said = game.family.denoise(one.walked.x_t, one.walked.t, one.cond)
                    assert_close(said, one.walked.own, rtol=1e-4, atol=1e-5)
                else:
                    fake = game.played("opponent", rung, [record], "again", *game._names(k))([record])
                    assert one.fake is not None and torch.equal(fake, one.fake)
    assert {rung for k, rung in seen if k == 3} == {0, "1-2", 1, "2-2", 2}
    needed = {"opponent_real"} if points else {"opponent_real", "opponent_fake"}
    assert all(set(batch.known) == needed for k, _, batch in watched.batches if k > 1), "a step needs no opponent"
    counts = [event["opponents"] for event in outcome.rounds]
    assert counts[0] == {"0": len(game.train)} and sum(counts[2].values()) == len(game.train)
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
    assert kept.run.rungs(1) == ["1-2"] and plain.run.rungs(1) == []
    first, second = (read(outcome.run.snapshot(1))[0] for outcome in (plain, kept))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "c" / "r", Quiet(lambda title, done: "learn" in title and done == 3))
    state = read(tmp_path / "c" / "r" / "state.safetensors")[0]
    within = read(kept.run.snapshot("1-2"))[0]
    assert all(torch.equal(within[name], state[f"policy/{name}"]) for name in within)


def test_a_random_opponent_of_a_round_may_be_a_snapshot_within_an_earlier_one(toy: Settings, tmp_path: Path):
    short = changed(toy, method__name="seppo", learn__updates=4, learn__snapshot_every=1, run__rounds=6, judge__stop=False)
    drawn = [event["opponent"] for event in train(short, tmp_path / "r", Quiet()).rounds]
    assert any(isinstance(rung, str) for rung in drawn) and drawn[0] == 0
    assert all(int(str(rung).partition("-")[0]) < k for k, rung in enumerate(drawn, 1))
