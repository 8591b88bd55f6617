"""Wordings of captions: which tags move or go, which stay, and what is encoded of them."""

from pathlib import Path
from typing import Any

import pytest

from spinlite.config.load import load_settings
from spinlite.config.settings import Data, Memory, Model, Source
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record
from spinlite.data.survey import survey
from spinlite.data.wordings import LEAST, MOST, TEXTS, reword, wordings
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.memory import device
from spinlite.runs.store import Store
from tests.toy import TOY

NOTHING: Any = lambda *_: None  # noqa: E731


@pytest.fixture
def toy_model() -> Family:
    return load_family(Model(base="0", family="toy"), device.choose_device(Memory()))


@pytest.mark.parametrize(
    ("caption", "settings", "first", "free", "last"),
    [
        ("1girl, red hair,smile", {}, [], ["1girl", "red hair", "smile"], []),
        ("1girl, red hair, smile, hat", {"keep_tokens": 2}, ["1girl", "red hair"], ["smile", "hat"], []),
        ("sks, 1girl, hat", {"trigger": "sks"}, ["sks"], ["1girl", "hat"], []),
        ("sks 1girl, hat, smile", {"trigger": "sks"}, ["sks 1girl"], ["hat", "smile"], []),
        ("sks, my style, 1girl, hat", {"trigger": " sks,  my style,"}, ["sks", "my style"], ["1girl", "hat"], []),
        ("sks, 1girl, hat, smile", {"trigger": "sks", "keep_tokens": 2}, ["sks", "1girl"], ["hat", "smile"], []),
        ("sks, b ||| c, d", {"keep_tokens": 3}, ["sks", "b"], ["c", "d"], []),
        ("a, b||| c, d ,e |||f, g", {}, ["a", "b"], ["c", "d", "e"], ["f", "g"]),
        ("||| c, d ||| e ||| f", {}, [], ["c", "d"], ["e", "f"]),
        ("a, , b,", {}, [], ["a", "b"], []),
    ],
)
def test_tags_move_between_those_that_stay(caption: str, settings: dict[str, Any], first: Any, free: Any, last: Any):
    found = wordings(caption, Source(shuffle=True, **settings), 16)
    tags = [text.split(", ") for text in found]
    assert all(each[: len(first)] == first and each[len(each) - len(last) :] == last for each in tags)
    assert {tuple(sorted(each[len(first) : len(each) - len(last)])) for each in tags} == {tuple(sorted(free))}
    assert len(set(found)) == len(found) > 1


@pytest.mark.parametrize("caption", ["", "a photo of a cat", "1girl", "a, ", "a, b, c ||| d"])
def test_a_caption_without_tags_to_change_has_no_wordings(caption: str):
    assert wordings(caption, Source(shuffle=True), 16) == ()


def test_nothing_changes_unless_a_source_asks_for_it():
    assert wordings("a, b, c", Source(keep_tokens=1), 16) == ()


def test_dropped_tags_are_the_share_asked_for_and_never_kept_ones():
    tags = [f"tag {i}" for i in range(40)]
    found = wordings(", ".join(["sks", "solo", *tags]), Source(tag_dropout=0.25, trigger="sks", keep_tokens=2), 64)
    rows = [text.split(", ") for text in found]
    assert all(row[:2] == ["sks", "solo"] and row == [tag for tag in ["sks", "solo", *tags] if tag in row] for row in rows)
    assert sum(len(row) - 2 for row in rows) / (40 * 64) == pytest.approx(0.75, abs=0.03)
    assert {tag for row in rows for tag in row} == {"sks", "solo", *tags}


def test_a_trigger_within_the_caption_is_never_dropped_and_something_is_always_left():
    rows = wordings("red hair, photo of sks, hat", Source(tag_dropout=0.9, trigger="sks"), 64)
    assert len(rows) > 1 and all("photo of sks" in row for row in rows)
    assert "" not in wordings("a, b", Source(tag_dropout=0.9), 64)


def test_there_are_fewer_wordings_where_there_are_many_captions_and_the_first_stay_the_same(tmp_path: Path):
    source, caption = Source(shuffle=True), ", ".join("abcdefgh")
    every = [Record(tmp_path / str(i), caption, str(i)) for i in range(TEXTS)]
    few, many = (reword(records, dict.fromkeys((r.path for r in records), source)) for records in (every[:20], every))
    assert len(few[0].wordings) == MOST and len(many[0].wordings) == LEAST
    assert few[0].wordings[:LEAST] == many[0].wordings


def test_each_source_has_its_own_rule_and_held_out_pictures_their_captions_as_written(swatches: Path, tmp_path: Path):
    for path in swatches.glob("*.txt"):
        tags = path.read_text(encoding="utf-8").split()
        path.write_text(f"{path.stem} ||| {tags[0]}, {tags[1]}, round", encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    for i, path in enumerate(swatches.glob("p1*.*")):
        (other / path.name).write_bytes(path.read_bytes() + bytes(i) * (path.suffix == ".png"))
    sources = [Source(folder=str(swatches), shuffle=True), Source(folder=str(other))]
    found = survey(Data(sources=sources), cache=tmp_path / "cache")
    assert all(bool(r.wordings) == (r.path.parent == swatches) for r in found.train)
    assert not any(r.wordings for r in found.heldout)
    assert not any("|||" in text for r in found.train + found.heldout for text in (r.caption, *r.wordings))
    first = next(r for r in found.train if r.wordings)
    assert first.wording == "" and first.caption.startswith(f"{first.path.stem}, ")
    assert all(text.startswith(f"{first.path.stem}, ") for text in first.wordings)


def test_each_wording_is_encoded_once_and_other_settings_encode_only_the_new_ones(
    toy_model: Family, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in swatches.glob("*.txt"):
        path.write_text(path.read_text(encoding="utf-8").replace(" ", ", ") + ", round", encoding="utf-8")
    seen: list[str] = []
    whole = toy_model.encode_captions
    monkeypatch.setattr(toy_model, "encode_captions", lambda some, *more: (seen.extend(some), whole(some, *more))[1])

    def encode(**settings: Any) -> list[Record]:
        found = survey(Data(folder=str(swatches), **settings))
        Encoded(toy_model, found.train + found.heldout, tmp_path, 7, NOTHING)
        return found.train

    plain = {"", *(r.caption for r in encode())}
    assert len(seen) == 5 and plain >= set(seen)
    train = encode(shuffle=True)
    shuffled = {text for r in train for text in r.wordings}
    assert len(seen) == len(set(seen)) == len(plain | shuffled) > 10
    for settings in ({"shuffle": True}, {}, {"shuffle": True, "heldout": 0.3}):
        encode(**settings)
    assert set(seen) == plain | shuffled
    kept = {text for r in encode(shuffle=True, keep_tokens=1, tag_dropout=0.2) for text in r.wordings}
    assert set(seen) == plain | shuffled | kept and len(seen) == len(set(seen))
    assert len(Store(next((tmp_path / "prompt").iterdir()))) == len(seen)


@pytest.mark.parametrize("word", ["data.shuffle=true", "data.tag_dropout=0.1"])
def test_predictions_kept_for_captions_as_written_allow_no_other_wording(word: str, tmp_path: Path):
    with pytest.raises(SpinliteError, match="captions as written") as caught:
        load_settings(TOY, [word, "play.points=2"], data__folder=str(tmp_path))
    assert "--set play.points=0" in caught.value.fix
