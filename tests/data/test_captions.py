"""Captions as people and programs write them: tables that are nearly right, other encodings, triggers, weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spinlite.config.load import validate_settings
from spinlite.config.settings import Data
from spinlite.data.captions import JOINED, SURPLUS
from spinlite.data.records import PLACES, Survey, epoch_slots
from spinlite.data.survey import examine, survey
from spinlite.errors import SpinliteError

OUTSIDE = "named by a table, but outside of its folder, not used"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digest = hash(str(folder / name))
        Image.new("RGB", (8, 8), (digest % 256, digest // 256 % 256, digest // 65536 % 256)).save(folder / name)
    return folder


def look(folder: Path, **settings: Any) -> Survey:
    return survey(Data(folder=str(folder), max_unusable=1, **settings))


def captions(found: Survey) -> dict[str, str]:
    return {r.path.name: r.caption for r in found.train + found.heldout}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return fill(tmp_path / "three", "a.png", "b.png", "c.png")


# Tables that are nearly right


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_is_read_with_the_separator_of_its_header(three: Path, between: str, end: str):
    rows = [["file_name", "text"], *([f"{name}.png", f'"{name}{between} red"'] for name in "abc")]
    (three / "metadata.csv").write_bytes(end.join(between.join(row) for row in rows).encode("utf-8-sig"))
    wanted = {f"{name}.png": " ".join(f"{name}{between} red".split()) for name in "abc"}
    assert captions(look(three)) == wanted and not look(three).notes


def test_a_caption_with_commas_but_without_quotes_is_read_whole_and_that_is_said(three: Path):
    rows = ["file_name,text", "a.png,1girl, red hair, smile", 'b.png,"quoted, well"', "c.png,plain,,"]
    (three / "metadata.csv").write_text("\n".join(rows))
    found = look(three)
    assert captions(found) == {"a.png": "1girl, red hair, smile", "b.png": "quoted, well", "c.png": "plain"}
    assert found.noted == {JOINED: ["metadata.csv row 1"]}


def test_where_the_caption_is_not_the_last_cell_such_a_row_is_ignored_and_named(three: Path):
    rows = ["file_name,text,width", "a.png,1girl, red hair, smile,512", "b.png,b,512", "c.png,c,512"]
    (three / "metadata.csv").write_text("\n".join(rows))
    found = look(three)
    assert captions(found) == {"b.png": "b", "c.png": "c"} and found.uncaptioned == ["a.png"]
    assert found.noted == {SURPLUS: ["metadata.csv row 1"]}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "latin-1"])
def test_a_table_that_is_not_utf_8_is_named(three: Path, kind: str, encoding: str):
    text = {"jsonl": '{"file_name": "a.png", "text": "é"}', "csv": "file_name,text\na.png,é"}[kind]
    (three / f"metadata.{kind}").write_bytes(text.encode(encoding))
    with pytest.raises(SpinliteError, match=rf"metadata\.{kind} is not UTF-8") as caught:
        look(three)
    assert ("UTF-16?" in caught.value.problem) == encoding.startswith("utf-16") and "save it as UTF-8" in caught.value.fix


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_in_utf_16_with_its_mark_is_read(three: Path, kind: str):
    rows = [{"file_name": name, "text": "é"} for name in ("a.png", "b.png")]
    text = "\n".join(map(json.dumps, rows)) if kind == "jsonl" else "file_name,text\na.png,é\nb.png,é"
    (three / f"metadata.{kind}").write_bytes(text.encode("utf-16"))
    assert captions(look(three)) == {"a.png": "é", "b.png": "é"}


def test_rows_with_whole_paths_or_detours_are_used_within_the_folder_and_named_outside_of_it(three: Path, tmp_path: Path):
    other = fill(tmp_path / "other", "d.png", "e.png")
    outside = ["../other/d.png", str(other / "e.png")]
    files = [str(three / "a.png"), "./b.png", "../three/c.png", *outside, "/no/such.png", "9" * 5000 + ".png"]
    rows = [{"file_name": file, "text": Path(file).stem} for file in files]
    (three / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = look(three)
    assert captions(found) == {f"{name}.png": name for name in "abc"}
    assert found.unused == {OUTSIDE: [f"{file} (metadata.jsonl)" for file in outside]}
    assert found.orphans == ["/no/such.png (metadata.jsonl)", f"{'9' * 5000}.png (metadata.jsonl)"]


def test_a_table_that_names_no_pictures_says_which_column_it_lacks(three: Path):
    (three / "metadata.csv").write_text("image;caption\na.png;a\nb.png;b")
    with pytest.raises(SpinliteError, match="no row has a file_name"):
        look(three)


def test_a_row_for_a_file_that_is_no_picture_is_named(three: Path):
    (three / "d.xyz").write_text("x")
    rows = [{"file_name": f"{name}", "text": "t"} for name in ("a.png", "b.png", "c", "d.xyz")]
    (three / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = look(three)
    assert found.orphans == ["c (metadata.jsonl)", "d.xyz (metadata.jsonl)"] and found.uncaptioned == ["c.png"]


@pytest.mark.parametrize("ending", ["txt", "caption", "json"])
def test_a_caption_with_nul_characters_is_not_taken(three: Path, ending: str):
    for name in "abc":
        (three / f"{name}.txt").write_text(name)
    (three / "c.txt").unlink()
    (three / f"c.{ending}").write_bytes('"a cat"'.encode("utf-16-le"))
    found = look(three)
    assert found.unusable == [f"c.{ending}: the caption is not UTF-8 (UTF-16?)"] and len(captions(found)) == 2


# Triggers


@pytest.mark.parametrize(("trigger", "caption", "wanted"), [
    ("cat", "category theory", "cat, category theory"), ("cat", "cat, asleep", "cat, asleep"), ("cat", "cat", "cat"),
    ("cat", "cats", "cat, cats"), ("sks,", "sks, a dog", "sks, a dog"), ("sks dog", "sks doghouse", "sks dog, sks doghouse"),
    ("sks", "1girl, solo", "sks, 1girl, solo"), ("sks,", "1girl", "sks, 1girl"), ("photo:", "a cat", "photo: a cat"),
    ("sks", "a photo of [trigger] at night", "a photo of sks at night"), ("sks", "[Trigger], [trigger]", "sks, sks"),
    ("sks", "[name] sitting", "sks sitting"), (r"\d+", "[trigger]", r"\d+"), ("é", "école", "é, école"),
])  # fmt: skip
def test_a_trigger_is_put_in_once_and_counts_as_there_only_as_whole_words(
    three: Path, trigger: str, caption: str, wanted: str
):  # fmt: skip
    for name in "abc":
        (three / f"{name}.txt").write_text(caption, encoding="utf-8")
    assert set(captions(look(three, trigger=trigger)).values()) == {wanted}


def test_a_placeholder_without_a_trigger_is_said(three: Path):
    for name, text in zip("abc", ("a [trigger]", "plain", "[other]"), strict=True):
        (three / f"{name}.txt").write_text(text)
    assert look(three).noted == {"with [trigger] in the caption, learned as it stands: add --set data.trigger=WORD": ["a.png"]}


# Weights


def weighed(tmp_path: Path, *weights: float) -> Survey:
    """Two pictures for each weight."""
    sources = []
    for i, weight in enumerate(weights):
        place = fill(tmp_path / str(i), "a.png", "b.png")
        for name in "ab":
            Image.new("RGB", (8, 8), (i, ord(name), 9)).save(place / f"{name}.png")
            (place / f"{name}.txt").write_text(f"{i} {name}")
        sources.append({"folder": str(place), "weight": weight})
    return examine(validate_settings({"data": {"sources": sources}}).data)


@pytest.mark.parametrize("weight", [1e-300, 0.001, 0.004, 0.3, 1.0, 999.9])
def test_any_positive_weight_of_a_single_source_shows_its_pictures(tmp_path: Path, weight: float):
    found = weighed(tmp_path, weight)
    assert {r.repeats for r in found.train + found.heldout} == {1} and not found.notes


@pytest.mark.parametrize(("weights", "repeats"), [
    ((1.0, 0.003), [1000, 3]), ((1.0, 0.001), [1000, 1]), ((2.0, 0.5), [4, 1]), ((1.0, 0.333), [3, 1]),
    ((0.004, 0.008), [1, 2]),
])  # fmt: skip
def test_a_source_is_shown_as_often_as_its_weight_asks(tmp_path: Path, weights: tuple[float, ...], repeats: list[int]):
    found = weighed(tmp_path, *weights)
    shown = {r.path.parent.name: r.repeats for r in found.train + found.heldout}
    assert [shown[str(i)] for i in range(len(weights))] == repeats and not found.notes


def test_odd_weights_make_a_short_schedule_in_nearly_the_same_ratios(tmp_path: Path):
    weights = (10.0, 0.0103, 0.0127, 0.7777, 3.3333)
    found = weighed(tmp_path, *weights)
    records = found.train + found.heldout
    assert len(epoch_slots(records)) <= PLACES + len(records)
    shown = {r.path.parent.name: r.repeats for r in records}
    for i, weight in enumerate(weights):
        assert shown[str(i)] / shown["0"] == pytest.approx(weight / weights[0], rel=0.25)


def test_a_source_too_rare_for_the_schedule_is_shown_now_and_then_and_that_is_said(tmp_path: Path):
    found = weighed(tmp_path, 1000.0, 1e-6)
    shown = {r.path.parent.name: r.repeats for r in found.train + found.heldout}
    assert shown["1"] == 1 and 0 < shown["0"] <= PLACES
    assert found.notes == ["2 shown more often than the weight asks for: once in 20,002 pictures: 1/a.png, 1/b.png"]


# The built-in set


def test_a_folder_of_ones_own_that_is_called_like_the_built_in_set_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert not examine(Data(folder="demo"), headers=True).noted
    for name in "ab":
        (fill(tmp_path / "demo", f"{name}.png") / f"{name}.txt").write_text(name)
    found = examine(Data(folder="demo"), headers=True)
    assert found.listed == 160 and list(found.noted) == [
        "folder of yours is called like the built-in set, which is used; for your own type --data ./demo"
    ]
    assert examine(Data(folder="./demo")).listed == 2
