"""What lies in a folder is used, or named with the reason: links, what can't be opened, names that look the same."""

import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from spinlite.config.settings import Data
from spinlite.data import folder
from spinlite.data.records import Survey
from spinlite.data.survey import examine
from spinlite.data.walk import Tree, pair_names

ELSEWHERE = "in subfolders, not used (data.recursive = true uses them)"
KOHYA = "beside kohya's folders, not used"
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def fill(root: Path, *names: str, captions: bool = True) -> Path:
    """Pictures that no other is like, with captions."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hash(name)
        Image.new("RGB", (8, 8), (digest % 256, digest // 256 % 256, digest // 65536 % 256)).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"caption of {name}", encoding="utf-8")
    return root


def look(place: Path, pairs: bool = False, **settings: Any) -> Survey:
    return examine(Data(folder=str(place), max_unusable=1, **settings), pairs)


def used(found: Survey) -> set[str]:
    return {found.names[r.path] for r in found.train + found.heldout}


def captions(found: Survey) -> dict[str, str]:
    return {found.names[r.path]: r.caption for r in found.train + found.heldout}


def told(found: Survey) -> str:
    """Everything that is said of files."""
    lists = [found.unusable, found.uncaptioned, found.orphans, *found.noted.values(), *found.unused.values()]
    return "\n".join(name for names in lists for name in names)


# Links, and what can't be opened


@LINKS
def test_a_link_to_a_folder_is_followed(tmp_path: Path):
    fill(tmp_path / "else", "b.png", "deep/c.png")
    root = fill(tmp_path / "root", "a.png")
    (root / "link").symlink_to(tmp_path / "else", target_is_directory=True)
    assert used(look(root, recursive=True)) == {"a.png", "link/b.png", "link/deep/c.png"}
    assert look(root).unused[ELSEWHERE] == ["link/b.png", "link/deep/c.png"]


@LINKS
@pytest.mark.parametrize("target", ["root", "root/sub", ".", "root/sub/deep"])
def test_links_that_go_round_in_circles_end_and_are_named(tmp_path: Path, target: str):
    root = fill(tmp_path / "root", "a.png", "b.png", "sub/c.png", "sub/deep/d.png")
    (root / "sub" / "again").symlink_to(tmp_path / target, target_is_directory=True)
    (root / "twice").symlink_to(root / "sub", target_is_directory=True)
    for recursive in (True, False):
        found = look(root, recursive=recursive)
        named = found.unused["links to a folder that is read anyway, not followed"]
        assert sorted(named) == ["sub/again", "twice"]
    assert used(look(root, recursive=True)) == {"a.png", "b.png", "sub/c.png", "sub/deep/d.png"}


@LINKS
def test_two_links_to_one_folder_are_followed_once_and_one_into_each_other_not(tmp_path: Path):
    for here, there in (("x", "y"), ("y", "x")):
        fill(tmp_path / here, f"{here}.png")
        (tmp_path / here / there).symlink_to(tmp_path / there, target_is_directory=True)
    root = fill(tmp_path / "root", "a.png")
    for name in ("one", "two"):
        (root / name).symlink_to(tmp_path / "x", target_is_directory=True)
    found = look(root, recursive=True)
    assert used(found) == {"a.png", "one/x.png", "one/y/y.png"}
    assert found.unused["links to a folder that is read anyway, not followed"] == ["one/y/x", "two"]


@LINKS
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path):
    root = fill(tmp_path / "root", "a.png", "b.png", "c.png", "d.png")
    (root / "c.png").unlink()
    (root / "c.png").symlink_to(tmp_path / "lost.png")
    (root / "d.txt").unlink()
    (root / "d.txt").symlink_to("d.txt")
    found = look(root)
    assert used(found) == {"a.png", "b.png"} and found.unusable[0] == "c.png: there is no such file"
    assert found.unusable[1].startswith("d.txt: the caption can't be read: ")


@LINKS
def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path):
    fill(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "c.png")
    assert look(tmp_path).unused == {"neither a file nor a folder, not used": ["c.png"]}


@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_that_can_not_be_opened_is_named_and_the_rest_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recursive: bool
):
    root = fill(tmp_path, "a.png", "b.png", "lost+found/c.png")
    whole = os.scandir

    def scandir(path: Any) -> Any:  # whoever runs the tests may be allowed to open everything
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = look(root, recursive=recursive)
    assert used(found) == {"a.png", "b.png"} and not found.stop
    assert found.unused == {"folders can't be opened": ["lost+found (Permission denied)"]}


def test_a_caption_that_can_not_be_opened_is_named_and_the_rest_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = fill(tmp_path, "a.png", "b.png", "c.png")
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:  # whoever runs the tests may be allowed to open everything
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = look(root)
    assert used(found) == {"b.png", "c.png"} and not found.stop
    assert found.unusable == ["a.txt: the caption can't be read: Permission denied"]


def test_a_huge_subfolder_is_not_searched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "GLANCE", 3)
    fill(tmp_path, "a.png", "b.png", *(f"sub{i}/{j}.png" for i in range(5) for j in range(2)))
    named = look(tmp_path).unused[ELSEWHERE]
    assert named == ["sub0/0.png", "sub0/1.png", "and maybe more: only 4 files were looked at"]


# kohya's folders


def test_what_lies_in_and_beside_kohyas_folders_is_named(tmp_path: Path):
    fill(tmp_path, "10_cat/a.png", "10_cat/b.png", "10_cat/more/c.png", "stray.png", "extra/d.png", "extra/deep/e.png")
    fill(tmp_path, "0_rejects/f.png")
    found = look(tmp_path)
    assert used(found) == {"10_cat/a.png", "10_cat/b.png"}
    assert found.unused == {
        KOHYA: ["stray.png", "extra/d.png", "extra/deep/e.png"], ELSEWHERE: ["10_cat/more/c.png"],
        "in folders with 0 repeats, not used": ["0_rejects/f.png"],
    }  # fmt: skip
    assert found.orphans == ["stray.txt"]


@pytest.mark.parametrize(("folder", "caption"), [
    ("20_eir_niflheimr", "eir_niflheimr"), ("3_sks cat", "sks cat"), ("1_ohwx  man ", "ohwx man"), ("007_x", "x"),
])  # fmt: skip
def test_a_kohya_folders_caption_is_what_follows_the_first_underscore(tmp_path: Path, folder: str, caption: str):
    fill(tmp_path, f"{folder}/a.png", f"{folder}/b.png", captions=False)
    assert set(captions(look(tmp_path)).values()) == {caption}


def test_a_kohya_folder_without_a_caption_gives_repeats_alone(tmp_path: Path):
    fill(tmp_path, "6_/a.png", "2_b/b.png", "2_b/c.png")
    found = look(tmp_path)
    assert {r.path.name: r.repeats for r in found.train + found.heldout} == {"a.png": 3, "b.png": 1, "c.png": 1}


def test_a_plain_folder_with_an_old_kohya_folder_in_it_stays_plain(tmp_path: Path):
    fill(tmp_path, "a.png", "b.png", "c.png", "2_old/d.png")
    found = look(tmp_path)
    assert used(found) == {"a.png", "b.png", "c.png"} and found.unused == {ELSEWHERE: ["2_old/d.png"]}


def test_rejects_are_left_out_of_subfolders_too(tmp_path: Path):
    fill(tmp_path, "5_cat/a.png", "5_cat/b.png", "5_cat/more/c.png", "0_rejects/d.png", "0_rejects/deep/e.png")
    found = look(tmp_path, recursive=True)
    assert used(found) == {"5_cat/a.png", "5_cat/b.png", "5_cat/more/c.png"} and set(found.unused) == {
        "in folders with 0 repeats, not used"
    }


def test_repeats_that_are_ignored_are_named(tmp_path: Path):
    fill(tmp_path, "5_cat/a.png", "5_cat/b.png", "dogs/c.png")
    found = look(tmp_path, recursive=True)
    assert len(used(found)) == 3
    assert found.noted == {"named like kohya's folders, read as plain ones because of pictures beside them": ["5_cat"]}


@pytest.mark.parametrize("stray", [(), ("preview.png",)])
@pytest.mark.parametrize("inside", ["img/10_sks cat", "img"])
def test_the_parent_of_the_folder_of_pictures_names_that_folder(tmp_path: Path, inside: str, stray: tuple[str, ...]):
    fill(tmp_path, f"{inside}/a.png", f"{inside}/b.png")
    fill(tmp_path, *stray, captions=False)
    (tmp_path / "log").mkdir()
    error = look(tmp_path).stop
    assert error and f"type --data {tmp_path / 'img'}" in error.fix
    assert not stray or "preview.png" in told(look(tmp_path))


def test_of_several_folders_of_pictures_one_is_named_and_how_to_use_all(tmp_path: Path):
    fill(tmp_path, "cats/a.png", "dogs/b.png")
    error = look(tmp_path).stop
    assert error and error.fix == f"add --set data.recursive=true, or type --data {tmp_path / 'cats'}"


def test_a_folder_of_pairs_names_the_methods_that_learn_from_pairs(tmp_path: Path):
    fill(tmp_path, "win/a.png", "lose/a.png")
    error = look(tmp_path).stop
    assert error and "method.name=dpo" in error.fix and "method.fakes=given" in error.fix


# Names that are the same to people

NFD, NFC = (unicodedata.normalize(form, "Müller") for form in ("NFD", "NFC"))


@pytest.mark.parametrize(("picture", "caption"), [
    (f"{NFD}.png", f"{NFC}.txt"), (f"{NFC}.png", f"{NFD}.caption"), ("IMG_1.PNG", "img_1.txt"), ("cat.png", "CAT.TXT"),
    (f"{NFD.upper()}.png", f"{NFC}.txt"), ("straße.png", "STRASSE.txt"), ("a.png", "A.PNG.txt"),
])  # fmt: skip
def test_a_caption_belongs_to_the_picture_whose_name_looks_the_same(tmp_path: Path, picture: str, caption: str):
    fill(tmp_path, picture, "other.png", captions=False)
    (tmp_path / "other.txt").write_text("other")
    (tmp_path / caption).write_text("its own")
    found = look(tmp_path)
    assert set(captions(found).values()) == {"its own", "other"} and not found.orphans and not found.uncaptioned


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere these files are one")
def test_where_several_names_look_the_same_none_is_guessed(tmp_path: Path):
    fill(tmp_path, "a.png", "A.png", "b.png", captions=False)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    found = look(tmp_path)
    assert captions(found) == {"a.png": "a", "b.png": "b"} and found.uncaptioned == ["A.png"]
    (tmp_path / "a.txt").rename(tmp_path / "á.txt")
    assert look(tmp_path).orphans == ["á.txt"]
    assert pair_names(["X", "x"], ["x"]) == {"x": "x"} and pair_names(["Ab", "aB"], ["ab"]) == {}


def test_rows_of_a_table_are_matched_by_names_that_look_the_same(tmp_path: Path):
    fill(tmp_path, f"{NFD}.png", "Big.PNG", "c.png", captions=False)
    rows = [f'{{"file_name": "{name}", "text": "t{i}"}}' for i, name in enumerate((f"{NFC}.png", "big.png", "c.png"))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert set(captions(look(tmp_path)).values()) == {"t0", "t1", "t2"} and not look(tmp_path).orphans


def test_pairs_are_matched_by_names_that_look_the_same(tmp_path: Path):
    fill(tmp_path / "win", f"{NFD}.png", "a.png", "b.png")
    fill(tmp_path / "lose", f"{NFC}.png", "A.PNG", "b.png", captions=False)
    found = look(tmp_path, pairs=True)
    assert len(used(found)) == 3 and not told(found)


def test_what_is_no_part_of_a_pair_is_named(tmp_path: Path):
    fill(tmp_path / "win", "a.png", "b.png")
    fill(tmp_path / "lose", "a.png", "b.png", "c.png")
    fill(tmp_path, "beside.png", captions=False)
    found = look(tmp_path, pairs=True)
    assert {"c.png", "a.txt", "beside.png"} <= set(told(found).split("\n"))


@LINKS
def test_of_a_tangled_folder_every_picture_is_used_or_named(tmp_path: Path):
    """Whatever the layout and the rule for subfolders, no picture is passed over in silence."""
    fill(tmp_path / "out", "o1.png", "o2.png")
    layouts = {
        "plain": ["a.png", "b.png", "sub/c.png", "sub/2_x/d.png"],
        "kohya": ["2_x/a.png", "2_x/b.png", "s.png", "2_x/deep/c.png", "0_no/d.png"],
        "mixed": ["2_x/a.png", "2_x/q.png", "y/b.png", "y/deep/3_z/c.png"],
        "deep": ["x/y/z/a.png", "x/y/w/3_q/b.png"],
    }
    for kind, names in layouts.items():
        root = fill(tmp_path / kind, *names)
        (root / "link").symlink_to(tmp_path / "out", target_is_directory=True)
        for recursive in (True, False):
            found = look(root, recursive=recursive)
            said = told(found)
            for name in (*names, "link/o1.png", "link/o2.png"):
                assert name in used(found) or name in said, (kind, recursive, name)
                assert not (name in used(found) and name in said), (kind, recursive, name)


def test_the_folder_itself_must_be_there_to_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def scandir(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        Tree(tmp_path, Survey()).files(tmp_path)


@pytest.mark.parametrize("where", [{"folder": ""}, {"dataset": ""}, {"sources": [{"folder": ""}]}])
def test_an_empty_name_is_refused(where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(fill(tmp_path, "a.png", "b.png"))
    with pytest.raises(ValidationError, match="should not be empty"):
        Data.model_validate(where)
