"""Where pictures and captions come from: every layout that people have, and what is said about it."""

import csv
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.settings import Data, Learn, Memory, Model
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record, Survey, epoch_slots, whole_numbers
from spinlite.data.split import split
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.memory import device
from spinlite.runs.files import fingerprint_files
from spinlite.training.batches import Batches

COLOURS = 0


def picture(path: Path) -> Path:
    """A small picture that no other is like."""
    global COLOURS
    COLOURS += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (COLOURS % 256, COLOURS // 256, 7)).save(path)
    return path


def look(folder: Path, pairs: bool = False, **settings: Any) -> Survey:
    return survey(Data(folder=str(folder), **settings), pairs)


def captions(found: Survey) -> dict[str, list[str]]:
    """The captions of each picture, by its file name."""
    every: dict[str, list[str]] = {}
    for r in found.train + found.heldout:
        every.setdefault(r.path.name, []).append(r.caption)
    return every


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    return tmp_path


# Captions beside the picture


def test_captions_are_read_from_every_ending_and_counted_by_it(three: Path):
    (three / "a.txt").write_text("from text")
    (three / "b.caption").write_text("from caption")
    (three / "c.json").write_text('{"caption": "from json"}')
    found = look(three)
    assert captions(found) == {"a.png": ["from text"], "b.png": ["from caption"], "c.png": ["from json"]}
    assert found.origins == {".txt": 1, ".caption": 1, ".json": 1} and not found.notes


def test_a_caption_may_carry_the_whole_name_of_its_picture(three: Path):
    for name in "abc":
        (three / f"{name}.png.txt").write_text(f"caption {name}")
    found = look(three)
    assert captions(found)["b.png"] == ["caption b"] and not found.orphans


def test_of_several_files_beside_a_picture_the_text_is_used_and_that_is_said(three: Path):
    for name in "abc":
        (three / f"{name}.txt").write_text(f"text {name}")
    (three / "b.caption").write_text("another")
    found = look(three)
    assert captions(found)["b.png"] == ["text b"]
    assert found.notes == ["1 with captions in .txt and .caption; .txt is used: b.png"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('"plain"', ["plain"]), ('["one", "two", "one"]', ["one", "two"]), ('{"text": "t", "tags": "x"}', ["t"]),
        ('{"captions": ["one", "two"]}', ["one", "two"]), ('{"tags": ["a cat", "red"]}', ["a cat, red"]),
        ('{"caption": "", "prompt": "p"}', ["p"]),
    ],
)  # fmt: skip
def test_a_json_may_hold_a_text_several_or_tags(three: Path, content: str, wanted: list[str]):
    (three / "a.txt").write_text("a")
    (three / "c.txt").write_text("c")
    (three / "b.json").write_text(content)
    assert captions(look(three))["b.png"] == wanted


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"caption": 3}', "{}", "3", ""])
def test_a_json_without_caption_leaves_out_its_picture_alone(three: Path, content: str):
    (three / "a.txt").write_text("a")
    (three / "c.txt").write_text("c")
    (three / "b.json").write_text(content)
    found = look(three, max_unusable=0.5)
    assert captions(found).keys() == {"a.png", "c.png"}
    assert found.uncaptioned == ["b.png"] or found.unusable == ["b.json: the caption is not JSON"]


def test_lines_are_one_caption_or_a_caption_each(three: Path):
    for name in "abc":
        (three / f"{name}.txt").write_text(f"{name} one\n\n  {name}  two \n{name} one\n")
    assert captions(look(three))["a.png"] == ["a one a two a one"]
    found = look(three, lines="each")
    assert captions(found)["a.png"] == ["a one", "a two"] and found.origins == {".txt": 3}


def test_a_picture_with_several_captions_has_one_place_in_an_epoch_and_one_side(three: Path):
    for name in "abc":
        (three / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(7)))
    found = look(three, lines="each")
    assert len(epoch_slots(found.train)) + len(epoch_slots(found.heldout)) == 3
    assert not {r.key for r in found.train} & {r.key for r in found.heldout}


# Tables


def write_table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"metadata.{kind}"
    match kind:
        case "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


KINDS = pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])


@KINDS
def test_a_table_names_pictures_and_their_captions(three: Path, kind: str):
    write_table(three, kind, [{"file_name": f"{name}.png", "text": f"täble, {name}"} for name in "abc"])
    found = look(three)
    assert captions(found) == {f"{name}.png": [f"täble, {name}"] for name in "abc"}
    assert found.origins == {f"metadata.{kind}": 3} and not (found.orphans or found.notes or found.uncaptioned)


@KINDS
def test_rows_for_the_same_picture_are_several_captions(three: Path, kind: str):
    rows = [{"file_name": f"{name}.png", "caption": f"{name} {i}"} for name in "abc" for i in range(2)]
    write_table(three, kind, rows)
    assert captions(look(three))["b.png"] == ["b 0", "b 1"]


@KINDS
def test_rows_without_picture_and_pictures_without_row_are_named(three: Path, kind: str):
    write_table(three, kind, [{"file_name": f"{name}.png", "text": name} for name in "abxy"])
    found = look(three)
    assert found.orphans == [f"x.png (metadata.{kind})", f"y.png (metadata.{kind})"] and found.uncaptioned == ["c.png"]


def test_a_table_speaks_for_the_subfolders_of_its_folder(tmp_path: Path):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        picture(tmp_path / name)
    files = {"a.png": "a", "sub/b.png": "b", "sub\\deep\\c.png": "c"}
    write_table(tmp_path, "jsonl", [{"file_name": file, "text": text} for file, text in files.items()])
    found = look(tmp_path, recursive=True)
    assert captions(found) == {"a.png": ["a"], "b.png": ["b"], "c.png": ["c"]} and not found.orphans


def test_a_table_goes_before_captions_beside_pictures_and_that_is_said(three: Path):
    write_table(three, "jsonl", [{"file_name": f"{name}.png", "text": f"table {name}"} for name in "ab"])
    (three / "b.txt").write_text("beside")
    (three / "c.txt").write_text("c beside")
    found = look(three)
    assert captions(found) == {"a.png": ["table a"], "b.png": ["table b"], "c.png": ["c beside"]}
    assert found.notes == ["1 with a caption in metadata.jsonl, which is used, and another in a file beside it: b.png"]


def test_a_row_that_can_not_be_read_is_named_and_the_rest_is_used(three: Path):
    path = write_table(three, "jsonl", [{"file_name": f"{name}.png", "text": name} for name in "abc"])
    path.write_text(path.read_text() + '\n{"file_na\n[1]\n{"text": "no name"}\n')
    found = look(three)
    assert len(captions(found)) == 3
    assert found.notes == [
        "3 rows of a table can't be read and are ignored: metadata.jsonl row 4, metadata.jsonl row 5, metadata.jsonl row 6"
    ]


@KINDS
def test_a_table_without_captions_says_which_columns_it_needs(three: Path, kind: str):
    write_table(three, kind, [{"file_name": "a.png", "label": "x"}])
    with pytest.raises(SpinliteError, match=rf"metadata\.{kind} has no captions") as caught:
        look(three)
    assert "file_name and caption" in caught.value.fix


@pytest.mark.parametrize("name", ["metadata.parquet", "metadata.jsonl"])
def test_a_table_that_can_not_be_read_is_named(three: Path, name: str):
    (three / name).write_bytes(b"PAR1\xff\xfe\x00nothing")
    with pytest.raises(SpinliteError, match=name):
        look(three)


# Folders in folders


def test_subfolders_are_used_if_asked_for_and_never_passed_over_in_silence(three: Path):
    picture(three / "more" / "d.png")
    picture(three / ".hidden" / "e.png")
    (three / "more" / "d.txt").write_text("d")
    for name in "abc":
        (three / f"{name}.txt").write_text(name)
    found = look(three)
    assert found.notes == ["1 in subfolders, not used (data.recursive = true uses them): more/d.png"]
    deep = look(three, recursive=True)
    assert captions(deep).keys() == {"a.png", "b.png", "c.png", "d.png"} and not deep.notes


def test_pictures_of_the_same_name_in_two_folders_keep_their_captions(tmp_path: Path):
    for sub in ("x", "y"):
        picture(tmp_path / sub / "a.png")
        (tmp_path / sub / "a.txt").write_text(f"in {sub}")
    found = look(tmp_path, recursive=True)
    assert sorted(captions(found)["a.png"]) == ["in x", "in y"]


def test_a_folder_with_pictures_in_subfolders_alone_says_how_to_use_them(tmp_path: Path):
    picture(tmp_path / "cats" / "a.png")
    with pytest.raises(SpinliteError, match=r"1 in subfolders, not used \(data\.recursive = true"):
        look(tmp_path)


def test_kohyas_folders_are_read_with_repeats_and_caption(tmp_path: Path):
    for name in ("10_sks cat/a.png", "10_sks cat/b.png", "4_a_dog/c.png"):
        picture(tmp_path / name)
    (tmp_path / "10_sks cat" / "a.txt").write_text("a cat asleep")
    found = look(tmp_path)
    assert captions(found) == {"a.png": ["a cat asleep"], "b.png": ["sks cat"], "c.png": ["a_dog"]}
    assert {r.path.name: r.repeats for r in found.train + found.heldout} == {"a.png": 5, "b.png": 5, "c.png": 2}
    assert found.origins == {".txt": 1, "folder name": 2} and not found.uncaptioned


def test_folders_that_only_look_like_kohyas_are_plain_ones(tmp_path: Path):
    for name in ("2024_summer/a.png", "2024_summer/b.png", "winter/c.png"):
        picture(tmp_path / name)
    found = look(tmp_path, recursive=True, uncaptioned="name")
    assert {r.repeats for r in found.train + found.heldout} == {1} and len(captions(found)) == 3


def test_files_that_are_no_pictures_are_named(three: Path):
    for name in "abc":
        (three / f"{name}.txt").write_text(name)
    (three / "photo.heic").write_bytes(b"x")
    picture(three / "d.png").rename(three / "d.xyz")
    (three / "d.txt").write_text("d")
    found = look(three)
    assert found.notes == ["2 with an ending that is not read here, not used: d.xyz, photo.heic"]
    assert found.orphans == ["d.txt"]


def test_a_name_with_escape_codes_is_spelt_out(three: Path):
    for name in "abc":
        (three / f"{name}.txt").write_text(name)
    (three / "\x1b[2J.xyz").write_bytes(b"")
    assert look(three).notes == ["1 with an ending that is not read here, not used: \\x1b[2J.xyz"]


# Captions that are missing, and triggers


def test_a_fixed_caption_is_given_to_pictures_without_one(three: Path):
    (three / "a.txt").write_text("its own")
    found = look(three, uncaptioned="fixed", caption="a photo  of sks")
    assert captions(found) == {"a.png": ["its own"], "b.png": ["a photo of sks"], "c.png": ["a photo of sks"]}
    assert found.origins == {".txt": 1, "data.caption": 2} and found.uncaptioned == ["b.png", "c.png"]


def test_a_fixed_caption_must_be_given(three: Path):
    with pytest.raises(SpinliteError, match=r"data\.uncaptioned = \"fixed\" needs a caption"):
        look(three, uncaptioned="fixed")


def test_a_trigger_stands_in_front_of_every_caption_once(three: Path):
    (three / "a.txt").write_text("a cat")
    (three / "b.txt").write_text("sks, already")
    found = look(three, trigger="sks,", uncaptioned="name")
    assert captions(found) == {"a.png": ["sks, a cat"], "b.png": ["sks, already"], "c.png": ["sks, c"]}


# Several sources


def sources(tmp_path: Path) -> list[dict[str, Any]]:
    for name in ("one/a.png", "one/b.png", "two/c.png", "two/d.png"):
        picture(tmp_path / name).with_suffix(".txt").write_text(name)
    return [{"folder": str(tmp_path / name)} for name in ("one", "two")]


def test_several_sources_are_used_together_each_with_its_rules(tmp_path: Path):
    one, two = sources(tmp_path)
    (tmp_path / "two" / "d.txt").unlink()
    settings = validate_settings({"data": {"sources": [{**one, "trigger": "x"}, {**two, "uncaptioned": "name"}]}})
    found = survey(settings.data)
    assert captions(found) == {"a.png": ["x, one/a.png"], "b.png": ["x, one/b.png"], "c.png": ["two/c.png"], "d.png": ["d"]}
    assert found.uncaptioned == ["two/d.png"]


def test_weights_say_how_often_a_picture_is_shown(tmp_path: Path):
    one, two = sources(tmp_path)
    found = survey(validate_settings({"data": {**one, "sources": [{**two, "weight": 1.5}]}}).data)
    assert {r.path.name: r.repeats for r in found.train + found.heldout} == {"a.png": 2, "b.png": 2, "c.png": 3, "d.png": 3}
    places = Counter(show.variants[0].path.name for show in epoch_slots(found.train + found.heldout))
    assert places == {"a.png": 2, "b.png": 2, "c.png": 3, "d.png": 3}


def test_a_source_that_is_missing_or_nameless_is_said(tmp_path: Path):
    with pytest.raises(SpinliteError, match="no folder nowhere"):
        survey(validate_settings({"data": {"sources": [{"folder": "nowhere"}]}}).data)
    with pytest.raises(SpinliteError, match="neither folder nor dataset"):
        survey(validate_settings({"data": {"sources": [{}]}}).data)


def test_an_unknown_key_of_a_source_is_refused_with_the_nearest_name():
    with pytest.raises(SpinliteError, match="unknown key 'wieght'") as caught:
        validate_settings({"data": {"sources": [{"wieght": 2.0}]}})
    assert "weight" in caught.value.fix


def test_weights_become_the_smallest_whole_numbers():
    assert whole_numbers([Fraction(1), Fraction(3, 2), Fraction(1, 2)]) == [2, 3, 1]
    assert whole_numbers([Fraction(10), Fraction(20)]) == [1, 2] and whole_numbers([]) == []


def test_a_repeated_picture_is_never_shown_with_the_same_turn_twice():
    record = Record(Path("a.png"), "a", "k", repeats=3)
    turns = [show.at(epoch)[1] for epoch in range(4) for show in epoch_slots([record])]
    assert turns == list(range(12))


def test_learning_shows_repeats_and_captions_in_turn(swatches: Path, tmp_path: Path):
    paths = [swatches / f"p{i}.png" for i in range(3)]
    a, b, c = (fingerprint_files([path]) for path in paths)
    some = [Record(paths[0], caption, a) for caption in ("one", "two")]
    some += [Record(paths[1], "cat", b), Record(paths[2], "dog", c, repeats=2)]
    toy = load_family(Model(base="0", family="toy"), device.choose_device(Memory()))
    encoded = Encoded(toy, some, tmp_path, 4, lambda done, of: None)
    batches = Batches(toy, encoded, some, None, Learn(batch=4, caption_dropout=0.0), 0, 1)
    words = {caption: toy.encode_captions([caption])["words"][0].tolist() for caption in ("one", "two", "cat", "dog")}
    assert len({str(value) for value in words.values()}) == 4
    wanted = [["cat", "dog", "dog", "one"], ["cat", "dog", "dog", "two"]] * 2
    for update, captions in enumerate(wanted):
        (batch,) = batches.for_update(update)
        assert sorted(batch.cond["words"].tolist()) == sorted(words[caption] for caption in captions)
        assert len({str(eps.tolist()) for eps in batch.eps}) == 4, "no draw is there twice"


# The split


def test_captions_that_share_a_picture_stay_on_one_side():
    some = [Record(Path(f"{i}.png"), f"caption {i}", f"key {i // 2}") for i in range(400)]
    train, heldout = split(some, 0.3)
    assert len(train) + len(heldout) == 400 and not {r.key for r in train} & {r.key for r in heldout}
    assert not {r.caption for r in train} & {r.caption for r in heldout}


def test_pairs_that_share_a_picture_stay_on_one_side():
    some = [Record(Path(f"{i}.png"), f"caption {i}", f"win {i}", Path("x.png"), f"lose {i // 2}") for i in range(100)]
    train, heldout = split(some, 0.3)
    assert heldout and not {r.lose_key for r in train} & {r.lose_key for r in heldout}


def test_where_all_captions_hang_together_pictures_are_split():
    some = [Record(Path(f"{i}.png"), f"caption {i}", "key 0" if i < 3 else "key 1") for i in range(3)]
    some += [Record(Path("b.png"), f"caption {i}", "key 1") for i in range(3)]
    train, heldout = split(some, 0.3)
    assert len({r.key for r in train}) == len({r.key for r in heldout}) == 1


def test_the_demo_is_split_alike_everywhere():
    found = survey(load_settings("demo").data)
    assert (len(found.train), len(found.heldout)) == (140, 20)
    like = "hushed-face.png (like astonished-face.png)"
    assert found.notes == [f"1 nearly the same as another picture, used all the same: {like}"]
    assert sorted(r.path.stem for r in found.heldout)[:4] == [
        "bullseye", "camera-with-flash", "canned-food", "chestnut",
    ]  # fmt: skip
