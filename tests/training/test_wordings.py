"""Wordings of captions while learning: which one is shown when, and that everything about a picture is measured with it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spinlite.config.settings import Settings
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training.batches import Batches
from spinlite.training.play import fake_key
from spinlite.training.session import Session
from tests.toy import Quiet, changed, made

SHUFFLED = {"data__shuffle": True, "data__tag_dropout": 0.2, "data__trigger": "round,"}


@pytest.fixture
def tagged(small: Settings, swatches: Path) -> Settings:
    for i, path in enumerate(sorted(swatches.glob("*.txt"))):
        path.write_text(f"{path.read_text(encoding='utf-8').replace(' ', ', ')}, soft, kind {i % 7}", encoding="utf-8")
    return changed(small, **SHUFFLED)


@pytest.fixture
def round_(tagged: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Batches]:
    """A run's session and the batches of its first round, as they are when learning begins."""
    seen: list[tuple[Session, Batches]] = []

    def spied(session: Session, k: int, batches: Batches) -> dict[str, Tensor]:
        seen.append((session, batches))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learn_module, "known_errors", spied)
        train(changed(tagged, learn__updates=50, data__flip=True), tmp_path / "r", Quiet())
    return seen[0]


def test_each_showing_of_a_picture_has_one_of_its_wordings_at_random(round_: tuple[Session, Batches]):
    session, batches = round_
    rows = batches.rows(range(batches.draws))
    assert all(r.wording in r.wordings and r.wording.split(", ")[0] == "round" for r, _ in rows)
    turns: dict[str, list[tuple[str, bool]]] = {}
    for r, _ in rows:
        turns.setdefault(r.key, []).append((r.wording, r.flip))
    some = list(turns.values())
    assert min(map(len, some)) >= 9 and min(len({text for text, _ in each}) for each in some) >= 4
    both = [set(each) for each in some]  # neither mirrored nor plain pictures have wordings of their own
    assert any((text, True) in each and (text, False) in each for each in both for text, _ in each)
    again = Batches(session.family, session.encoded, session.train, None, session.settings.learn, 0, 1)
    assert [r.wording for r, _ in again.rows(range(37, 91))] == [r.wording for r, _ in rows[37:91]]
    other = Batches(session.family, session.encoded, session.train, None, session.settings.learn, 0, 2)
    assert [r.wording for r, _ in other.rows(range(37, 91))] != [r.wording for r, _ in rows[37:91]]


def test_a_sample_learns_with_its_wording_or_without_caption_and_its_fake_is_the_captions(round_: tuple[Session, Batches]):
    session, batches = round_
    family, words = session.family, []
    for update in range(6):
        (batch,) = batches.for_update(update)
        rows = batches.rows(range(update * 8, update * 8 + 8))
        texts = family.encode_captions([r.wording for r, _ in rows])["words"]
        given = batch.cond["words"]
        words += [bool((a == b).all()) for a, b in zip(texts, given, strict=True)]
        assert all((a == b).all() or not b.any() for a, b in zip(texts, given, strict=True))
        assert {fake_key(r) for r, _ in rows} <= {fake_key(r) for r in session.train}
    assert 0.25 < sum(words) / len(words) < 0.75  # half of the captions are dropped


@pytest.mark.parametrize("method", ["spin", "sft"])
def test_opponents_measured_ahead_meet_the_same_wordings(method: str, tagged: Settings, tmp_path: Path):
    settings = changed(tagged, method__name=method, learn__updates=8, run__rounds=1, learn__caption_dropout=0.2)
    ways = [
        {"memory__cache_opponent": False}, {"memory__cache_opponent": True}, {"memory__micro_batch": 3},
        {"data__shuffle": False, "data__tag_dropout": 0.0},
    ]  # fmt: skip
    runs = [train(changed(settings, **way), tmp_path / str(i) / "r", Quiet()).run for i, way in enumerate(ways)]
    live, ahead, parts, plain = ([event["loss"] for event in run.events("update")] for run in runs)
    assert ahead == pytest.approx(live, rel=1e-3) and parts == pytest.approx(live, rel=1e-3)
    assert plain != pytest.approx(live, rel=1e-2)


def test_a_run_with_wordings_that_was_cut_off_is_the_whole_one(
    tagged: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(tagged, learn__updates=12)
    train(settings, tmp_path / "a" / "r", Quiet())
    for title, stop in (("encode", 50), ("round 1/2 · learn", 5), ("round 2/2 · play", 8), ("round 2/2 · learn", 9)):
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "b" / "r", Quiet(lambda t, done, title=title, stop=stop: title in t and done >= stop))
    train(settings, tmp_path / "b" / "r", Quiet())
    assert made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


def test_captions_without_tags_learn_as_before(small: Settings, tmp_path: Path):
    """The swatches' captions hold no comma."""
    train(small, tmp_path / "a" / "r", Quiet())
    train(changed(small, data__shuffle=True), tmp_path / "b" / "r", Quiet())
    a, b = (made(tmp_path / name / "r") for name in "ab")
    assert a["snapshots/2.safetensors"] == b["snapshots/2.safetensors"]
    assert torch.equal(*(torch.tensor([e["loss"] for e in each["events"] if e["event"] == "update"]) for each in (a, b)))
