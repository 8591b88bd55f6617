"""Data sets as sources, read by the real library: parquet, image folders, WebDataset, saved ones, and Pick-a-Pic's layout."""

import base64
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from spinlite.cli import app as cli
from spinlite.config.load import validate_settings
from spinlite.data import dataset as module
from spinlite.data.records import Survey
from spinlite.data.survey import examine, survey
from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint_bytes
from tests.toy import TOY


def content(i: int, kind: str = "PNG") -> bytes:
    """A picture's file; each number's differs."""
    kept = io.BytesIO()
    Image.new("RGB", (8, 8), (i % 256, i // 256, 9)).save(kept, kind)
    return kept.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def cells(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"image": {"bytes": content(i), "path": None}, "caption": f"caption {i}"} for i in range(start, start + count)]


def look(place: Path, cache: Path, pairs: bool = False, **settings: Any) -> Survey:
    return survey(validate_settings({"data": {"dataset": str(place), **settings}}).data, pairs, cache)


def captions(found: Survey) -> dict[str, str]:
    """Caption -> the key of its picture's bytes."""
    return {r.caption: r.key for r in found.train + found.heldout}


def expected(numbers: range) -> dict[str, str]:
    return {f"caption {i}": fingerprint_bytes(content(i)) for i in numbers}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_folder_of_parquet_files_is_read_with_its_pictures_byte_for_byte(tmp_path: Path, cache: Path):
    for part in range(2):
        parquet(tmp_path / "set" / f"train-{part:05}-of-00002.parquet", cells(4, 4 * part))
    found = look(tmp_path / "set", cache)
    assert captions(found) == expected(range(8)) and found.origins == {"column caption": 8} and not found.notes
    assert all(r.path.read_bytes() in [content(i) for i in range(8)] for r in found.train)


def test_one_parquet_file_is_a_data_set_and_the_ending_is_found_from_the_content(tmp_path: Path, cache: Path):
    rows = [{"image": content(i, kind), "text": kind} for i, kind in enumerate(["JPEG", "WEBP", "PNG", "BMP"])]
    found = look(parquet(tmp_path / "some.parquet", rows), cache)
    suffixes = {"JPEG": ".jpeg", "WEBP": ".webp", "PNG": ".png", "BMP": ".bmp"}
    assert {r.caption: r.path.suffix for r in found.train + found.heldout} == suffixes
    assert not found.notes


def test_an_image_folder_is_read_where_it_lies(tmp_path: Path, cache: Path):
    place = tmp_path / "set" / "train"
    place.mkdir(parents=True)
    for i in range(4):
        (place / f"{i}.png").write_bytes(content(i))
    rows = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in range(4)]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = look(tmp_path / "set", cache)
    assert captions(found) == expected(range(4)) and {r.path.parent for r in found.train} == {place}


def test_a_zipped_image_folder_is_unpacked(tmp_path: Path, cache: Path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for i in range(4):
            file.writestr(f"{i}.png", content(i))
        rows = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in range(4)]
        file.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    assert captions(look(tmp_path / "set.zip", cache)) == expected(range(4))


def zipped(path: Path, **texts: str) -> Path:
    """A zip of 4 pictures and of these texts, with what a Mac adds."""
    with zipfile.ZipFile(path, "w") as file:
        for i in range(4):
            file.writestr(f"{i}.png", content(i))
            file.writestr(f"__MACOSX/._{i}.png", b"no picture")
        for name, text in texts.items():
            file.writestr(name, text)
    return path


def rows_of(count: int) -> str:
    return "\n".join(json.dumps({"file_name": f"{i}.png", "text": f"caption {i}"}) for i in range(count))


@pytest.mark.parametrize("ending", ["txt", "caption", "json"])
def test_captions_beside_the_pictures_of_a_zip_are_not_taken_for_pictures(tmp_path: Path, cache: Path, ending: str):
    with pytest.raises(SpinliteError, match="has captions beside its pictures") as caught:
        look(zipped(tmp_path / "set.zip", **{f"{i}.{ending}": "a cat" for i in range(4)}), cache)
    assert caught.value.fix == "unpack it, then name the folder: --data FOLDER"


def test_a_folder_with_captions_beside_pictures_is_no_data_set(tmp_path: Path, cache: Path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(content(i))
        (tmp_path / f"{i}.txt").write_text("a cat")
    with pytest.raises(SpinliteError, match="has captions beside its pictures") as caught:
        look(tmp_path, cache)
    assert caught.value.fix == f"type --data {tmp_path} instead of data.dataset"


UNLISTED = "in the data set's folder, but in none of its rows, not used"


def test_pictures_without_a_row_are_named(tmp_path: Path, cache: Path):
    found = look(zipped(tmp_path / "set.zip", **{"metadata.jsonl": rows_of(3), "readme.txt": "x"}), cache)
    assert captions(found) == expected(range(3)) and found.unused == {UNLISTED: ["3.png"]}
    for split in ("train", "test"):
        place = tmp_path / "set" / split
        place.mkdir(parents=True)
        for i in range(5):
            (place / f"{i}.png").write_bytes(content(i))
        (place / "metadata.jsonl").write_text(rows_of(3))
    found = look(tmp_path / "set", cache)
    assert captions(found) == expected(range(3)) and found.unused == {UNLISTED: ["train/3.png", "train/4.png"]}
    assert not look(tmp_path / "set", cache, limit=2).unused


def tar(path: Path, **more: bytes) -> Path:
    """A WebDataset of 4 pictures with captions, and further files of other endings."""
    with tarfile.open(path, "w") as file:
        for i in range(4):
            for ending, inside in {"png": content(i), "txt": f"caption {i}".encode(), **more}.items():
                info = tarfile.TarInfo(f"{i:03}.{ending}")
                info.size = len(inside)
                file.addfile(info, io.BytesIO(inside))
    return path


def test_a_web_dataset_is_read(tmp_path: Path, cache: Path):
    found = look(tar(tmp_path / "set.tar"), cache)
    assert captions(found) == expected(range(4)) and found.origins == {"column txt": 4}


def test_pickles_in_a_web_dataset_are_never_opened(tmp_path: Path, cache: Path):
    place = tar(tmp_path / "set.tar", pth=b"not even one")  # whoever opened it would fail
    assert captions(look(place, cache, image_column="png")) == expected(range(4))


def test_a_saved_data_set_is_read_by_its_split(tmp_path: Path, cache: Path):
    made = datasets.DatasetDict({
        name: datasets.Dataset.from_list(cells(4, start)).cast_column("image", datasets.Image())
        for name, start in (("train", 0), ("more", 10))
    })  # fmt: skip
    made.save_to_disk(tmp_path / "set")
    assert captions(look(tmp_path / "set", cache, split="more")) == expected(range(10, 14))
    with pytest.raises(SpinliteError, match="Bad split: tset"):
        look(tmp_path / "set", cache, split="tset")


# Columns


def test_columns_that_could_be_several_must_be_named(tmp_path: Path, cache: Path):
    rows = [{"a": content(i), "b": content(i + 9), "x": f"x {i}", "y": f"y {i}"} for i in range(3)]
    place = parquet(tmp_path / "some.parquet", rows)
    with pytest.raises(SpinliteError, match="pictures may be in a or b") as caught:
        look(place, cache)
    assert "data.image_column" in caught.value.fix
    with pytest.raises(SpinliteError, match="captions may be in x or y"):
        look(place, cache, image_column="a")
    with pytest.raises(SpinliteError, match="no column 'z'"):
        look(place, cache, image_column="a", caption_column="z")
    found = look(place, cache, image_column="b", caption_column="y")
    assert captions(found) == {f"y {i}": fingerprint_bytes(content(i + 9)) for i in range(3)}


@pytest.mark.parametrize("named", [None, "image"], ids=["found", "named"])
@pytest.mark.parametrize("kind", ["path", "whole path", "base64", "data URL", "list"])
def test_a_column_may_hold_paths_base64_or_lists_of_one(tmp_path: Path, cache: Path, kind: str, named: str | None):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(content(i))
    cell = {
        "path": lambda i: f"{i}.png", "whole path": lambda i: str(tmp_path / f"{i}.png"), "list": lambda i: [content(i)],
        "base64": lambda i: base64.b64encode(content(i)).decode(),
        "data URL": lambda i: "data:image/png;base64," + base64.b64encode(content(i)).decode(),
    }[kind]  # fmt: skip
    rows = [{"image": cell(i), "caption": f"caption {i}"} for i in range(3)]
    assert captions(look(parquet(tmp_path / "some.parquet", rows), cache, image_column=named)) == expected(range(3))


def test_beside_pictures_a_column_of_file_names_is_neither_picture_nor_caption(tmp_path: Path, cache: Path):
    rows = [{"image": content(i), "file_name": f"{i}.png", "about": f"caption {i}"} for i in range(3)]
    assert captions(look(parquet(tmp_path / "some.parquet", rows), cache)) == expected(range(3))


@pytest.mark.parametrize("named", [None, "image"])
@pytest.mark.parametrize(("cell", "kind", "fix"), [
    ("https://example.org/0.png", "web addresses", "img2dataset"), ("no picture", "texts", "image_column"),
    (7, "numbers", "image_column"), ([[0, 0, 0]], "values of the kind list", "image_column"),
])  # fmt: skip
def test_a_column_without_pictures_is_said_with_what_it_holds(
    tmp_path: Path, cache: Path, cell: Any, kind: str, fix: str, named: str | None
):
    place = parquet(tmp_path / "some.parquet", [{"image": cell, "caption": f"caption {i}"} for i in range(3)])
    with pytest.raises(SpinliteError) as caught:
        look(place, cache, image_column=named)
    assert fix in caught.value.fix and "Strings" not in caught.value.problem
    wanted = f"its column 'image' holds {kind}, not pictures" if named or "addresses" in kind else f"image holds {kind}"
    assert wanted in caught.value.problem


def test_a_folder_whose_table_the_library_refuses_is_read_as_a_plain_folder(tmp_path: Path, cache: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(content(i))
    rows = [{"file_name": str(folder / f"{i}.png"), "text": f"caption {i}"} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(SpinliteError, match=r"must be a relative path") as caught:
        look(folder, cache)
    assert caught.value.fix.startswith(f"type --data {folder} instead of data.dataset")
    plain = survey(validate_settings({"data": {"folder": str(folder)}}).data, False, cache)
    assert captions(plain) == expected(range(3))


def test_a_data_set_without_captions_follows_the_rule_for_them(tmp_path: Path, cache: Path):
    place = parquet(tmp_path / "some.parquet", [{"image": content(i)} for i in range(3)])
    found = look(place, cache, uncaptioned="fixed", caption="a photo")
    assert set(captions(found)) == {"a photo"} and len(found.uncaptioned) == 3
    with pytest.raises(SpinliteError, match="have no file names"):
        look(place, cache, uncaptioned="name")


def test_a_cell_may_hold_several_captions_or_none(tmp_path: Path, cache: Path):
    rows = [{"image": content(i), "captions": captions} for i, captions in enumerate([["a", "b"], ["c"], []])]
    found = look(parquet(tmp_path / "some.parquet", rows), cache)
    assert set(captions(found)) == {"a", "b", "c"} and found.uncaptioned == ["row 3"]


def test_rows_with_bad_pictures_are_listed_and_the_rest_is_used(tmp_path: Path, cache: Path):
    rows = cells(4)
    rows += [{"image": {"bytes": held, "path": None}, "caption": "x"} for held in (None, b"", b"no picture", content(9)[:40])]
    found = look(parquet(tmp_path / "some.parquet", rows), cache, max_unusable=0.5)
    assert captions(found) == expected(range(4))
    assert found.unusable[:3] == ["row 5: empty file", "row 6: empty file", "row 7: not a picture"]
    assert len(found.unusable) == 4 and found.unusable[3].startswith("row 8: ")


def test_pictures_that_are_there_twice_are_named_by_row(tmp_path: Path, cache: Path):
    rows = [*cells(3), *cells(1), {**cells(1)[0], "caption": "another"}]
    found = look(parquet(tmp_path / "some.parquet", rows), cache)
    assert found.notes == [
        "1 the same as another picture with another caption: shown with each caption in turn: row 5",
        "1 the same as another picture, left out: row 4",
    ]


# What is fetched, and when


def test_rows_are_fetched_once_up_to_the_limit_and_further_when_it_is_raised(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    place = parquet(tmp_path / "some.parquet", cells(9))
    saved: list[int] = []
    whole = module._Index._save_row

    def counting(self: Any, row: Any) -> Any:
        saved.append(1)
        return whole(self, row)

    monkeypatch.setattr(module._Index, "_save_row", counting)
    assert captions(look(place, cache, limit=4)) == expected(range(4)) and len(saved) == 4
    assert captions(look(place, cache, limit=4)) == expected(range(4)) and len(saved) == 4
    assert captions(look(place, cache)) == expected(range(9)) and len(saved) == 9
    assert captions(look(place, cache, limit=2)) == expected(range(2)) and len(saved) == 9


@pytest.mark.parametrize("saved", [0.0, 1e9], ids=["saved all the time", "never saved"])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_fetch_that_was_cut_off_goes_on_to_the_same_rows(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, at: int, saved: float
):
    place = parquet(tmp_path / "some.parquet", cells(9))
    monkeypatch.setattr(module, "SAVE_SECONDS", saved)

    def cut(done: int, of: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    settings = validate_settings({"data": {"dataset": str(place)}}).data
    with pytest.raises(KeyboardInterrupt):
        examine(settings, cache=cache, progress=cut)
    for index in cache.rglob("*.jsonl"):
        index.write_bytes(index.read_bytes() + b'["half a line')
    assert captions(look(place, cache)) == expected(range(9))


def test_a_data_set_that_has_changed_is_read_again(tmp_path: Path, cache: Path):
    place = parquet(tmp_path / "some.parquet", cells(4))
    look(place, cache)
    parquet(place, cells(6))
    assert captions(look(place, cache)) == expected(range(6))


def test_a_picture_that_was_lost_from_the_cache_is_named(tmp_path: Path, cache: Path):
    place = parquet(tmp_path / "some.parquet", cells(20))
    path = look(place, cache).train[0].path
    path.unlink()
    assert "there is no such file" in look(place, cache).unusable[0]


def test_what_can_not_be_reached_or_read_is_one_clear_error(tmp_path: Path, cache: Path):
    with pytest.raises(SpinliteError, match="Couldn't reach 'nobody/nothing'"):
        look(Path("nobody/nothing"), cache)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SpinliteError, match=r"bad\.parquet can't be read"):
        look(tmp_path / "bad.parquet", cache)
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(SpinliteError, match="such files end in"):
        look(tmp_path / "weights.pkl", cache)


def test_a_hub_data_set_that_was_fetched_is_used_without_the_network(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    place = parquet(tmp_path / "some.parquet", cells(4))
    builder = datasets.load_dataset_builder

    def reached(path: str, *args: Any, **named: Any) -> Any:
        return builder("parquet", data_files={"train": str(place)})

    monkeypatch.setattr(datasets, "load_dataset_builder", reached)
    look(Path("some/body"), cache)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    found = look(Path("some/body"), cache)
    assert captions(found) == expected(range(4)) and "can't be reached, so the copy fetched on" in found.notes[0]


def test_a_source_is_a_folder_or_a_data_set(tmp_path: Path):
    with pytest.raises(SpinliteError, match="both the folder"):
        look(tmp_path, tmp_path, folder=str(tmp_path))


def test_a_data_set_and_a_folder_are_used_together(tmp_path: Path, cache: Path):
    place = parquet(tmp_path / "some.parquet", cells(3))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_bytes(content(99))
    (tmp_path / "own" / "a.txt").write_text("own")
    found = look(place, cache, sources=[{"folder": str(tmp_path / "own"), "weight": 2.0}])
    assert captions(found) == expected(range(3)) | {"own": fingerprint_bytes(content(99))}
    assert {r.caption: r.repeats for r in found.train + found.heldout}["own"] == 2


# Pick-a-Pic


def votes() -> list[dict[str, Any]]:
    """The first picture of a row is an even number, the second an odd one."""
    labels = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    return [
        {"jpg_0": content(2 * i), "jpg_1": content(2 * i + 1), "label_0": a, "label_1": b}
        | {"caption": f"p {i}", "has_label": i != 3}
        for i, (a, b) in enumerate(labels)
    ]


def test_pick_a_pics_pairs_are_chosen_by_label_and_ties_are_left_out(tmp_path: Path, cache: Path):
    found = look(parquet(tmp_path / "set" / "train.parquet", votes()), cache, pairs=True)
    assert {r.caption: (r.key, r.lose_key) for r in found.train + found.heldout} == {
        f"p {i}": (fingerprint_bytes(content(win)), fingerprint_bytes(content(lose)))
        for i, win, lose in ((0, 0, 1), (1, 3, 2), (4, 9, 8))
    }
    assert found.notes == ["1 with both pictures equally preferred, left out: row 3", "1 without a label, left out: row 4"]


def test_without_pairs_the_pictures_that_were_preferred_are_learnt_from(tmp_path: Path, cache: Path):
    found = look(parquet(tmp_path / "some.parquet", votes()), cache)
    assert captions(found) == {f"p {i}": fingerprint_bytes(content(win)) for i, win in ((0, 0), (1, 3), (4, 9))}


def test_a_data_set_without_pairs_is_refused_where_pairs_are_needed(tmp_path: Path, cache: Path):
    with pytest.raises(SpinliteError, match="has no pairs: its columns are image, caption"):
        look(parquet(tmp_path / "some.parquet", cells(3)), cache, pairs=True)


def test_a_run_learns_from_pick_a_pics_pairs_and_is_found_complete_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    place = parquet(tmp_path / "some.parquet", [votes()[i % 2] | pair(i) for i in range(12)])
    settings = (f"data.dataset={place}", "data.heldout=0.4", "method.name=dpo", "learn.updates=2", "run.rounds=1")
    words = ["spinlite", "train", TOY, "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*words, *(word for text in settings for word in ("--set", text))])
    for expected in ("12 from column caption", "is complete"):
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().out
        assert not left.value.code and expected in said, said


def pair(i: int) -> dict[str, Any]:
    return {"jpg_0": content(100 + 2 * i), "jpg_1": content(101 + 2 * i), "caption": f"p {i}"}
