"""Folders as people have them: what is used, what is named as left out and why, and what is refused."""

import hashlib
import os
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from spinlite.config.settings import Data
from spinlite.data.pictures import open_picture
from spinlite.data.records import Record, Survey, epoch_slots, list_names
from spinlite.data.split import split
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
LEVELS = [0, 1000, 32768, 65000, 65535]  # of 16 bits
BYTES = [0, 4, 128, 253, 255]  # the same of 8: level / 257, rounded


def look(folder: Path, pairs: bool = False, **settings: Any) -> Survey:
    return survey(Data(folder=str(folder), **settings), pairs)


def refused(folder: Path, pairs: bool = False, **settings: Any) -> SpinliteError:
    with pytest.raises(SpinliteError) as caught:
        look(folder, pairs, **settings)
    return caught.value


def names(found: Survey) -> set[str]:
    return {r.path.name for r in found.train + found.heldout}


def caption_of(found: Survey, name: str) -> str:
    return next(r.caption for r in found.train + found.heldout if r.path.name == name)


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes, **before: bytes) -> None:
    """A PNG from its parts: Pillow writes neither 16-bit colour nor sizes that it refuses to read."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), content) for name, content in before.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def reds(image: Image.Image) -> list[int]:
    """The red levels of the first row."""
    return [image.getpixel((x, 0))[0] for x in range(image.width)]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


# Folders


def test_a_good_folder_is_used_whole_and_in_silence(swatches: Path):
    found = look(swatches)
    assert len(found.train) + len(found.heldout) == 40 and found.heldout
    assert not (found.uncaptioned or found.orphans or found.unusable or found.notes)
    assert caption_of(found, "p3.png") == (swatches / "p3.txt").read_text()


def test_a_missing_folder_is_named(tmp_path: Path):
    error = refused(tmp_path / "nowhere")
    assert f"no folder {tmp_path / 'nowhere'}" in error.problem and "--data" in error.fix


def test_a_file_is_no_folder(swatches: Path):
    error = refused(swatches / "p0.png")
    assert "no folder" in error.problem and error.fix == f"type --data {swatches}"
    (swatches / "set.parquet").write_bytes(b"")
    assert refused(swatches / "set.parquet").fix.startswith("for a data set: --set data.dataset=")


def test_a_run_without_a_folder_says_how_to_name_one():
    with pytest.raises(SpinliteError, match="--data FOLDER"):
        survey(Data())


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path):
    error = refused(tmp_path)
    assert "has 0 pictures" in error.problem and "name.png + name.txt" in error.fix


def test_one_picture_is_not_enough(tmp_path: Path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    assert "has 1 pictures, but only 1 can be used" in refused(tmp_path).problem


def test_hidden_files_are_no_pictures(swatches: Path):
    for i in range(20):
        (swatches / f"._p{i}.png").write_bytes(b"\x00\x05\x16\x07 resource fork")
    found = look(swatches)
    assert len(names(found)) == 40 and not found.unusable


def test_upper_case_endings_are_found(tmp_path: Path):
    for i, (picture, text) in enumerate([(".PNG", ".TXT"), (".png", ".TXT"), (".JPG", ".txt"), (".JpEg", ".Txt")]):
        Image.new("RGB", (8, 8), (i * 50, 0, 0)).save(tmp_path / f"p{i}{picture}")
        (tmp_path / f"p{i}{text}").write_text(f"caption {i}")
    found = look(tmp_path)
    assert len(names(found)) == 4 and not found.orphans
    assert caption_of(found, "p1.png") == "caption 1" and caption_of(found, "p0.PNG") == "caption 0"


def test_a_picture_that_is_there_twice_is_used_once(swatches: Path):
    (swatches / "again.png").write_bytes((swatches / "p0.png").read_bytes())
    (swatches / "again.txt").write_text((swatches / "p0.txt").read_text())
    found = look(swatches)
    assert names(found) == {"again.png", *(f"p{i}.png" for i in range(1, 40))}
    assert found.notes == ["1 the same as another picture, left out: p0.png"]


def test_a_picture_that_is_there_twice_with_two_captions_is_shown_with_each_in_turn(swatches: Path):
    (swatches / "again.png").write_bytes((swatches / "p0.png").read_bytes())
    (swatches / "again.txt").write_text("another caption")
    found = look(swatches)
    assert found.notes == ["1 the same as another picture with another caption: shown with each caption in turn: p0.png"]
    places = [show for show in epoch_slots(found.train + found.heldout) if len(show.variants) > 1]
    assert len(epoch_slots(found.train + found.heldout)) == 40 and len(places) == 1
    seen = [places[0].at(epoch) for epoch in range(4)]
    captions = [(swatches / name).read_text() for name in ("again.txt", "p0.txt")]
    assert [r.caption for r, _ in seen] == captions * 2 and [turn for _, turn in seen] == [0, 1, 2, 3]


def test_copies_of_one_picture_are_one_picture(tmp_path: Path):
    for name in "abc":
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    assert "but only 1 can be used" in refused(tmp_path).problem


# Captions


def test_a_picture_without_caption_is_listed_by_name_and_left_out(swatches: Path):
    (swatches / "p7.txt").unlink()
    found = look(swatches)
    assert found.uncaptioned == ["p7.png"] and len(names(found)) == 39 and "p7.png" not in names(found)


def test_a_picture_without_caption_can_take_its_file_name(swatches: Path):
    (swatches / "p7.png").rename(swatches / "_a_red_swatch.png")
    found = look(swatches, uncaptioned="name")
    assert found.uncaptioned == ["_a_red_swatch.png"] and found.orphans == ["p7.txt"]
    assert caption_of(found, "_a_red_swatch.png") == "a red swatch"


def test_a_picture_without_caption_can_be_refused(swatches: Path):
    for i in (1, 2, 3, 4, 5, 6, 7):
        (swatches / f"p{i}.txt").unlink()
    error = refused(swatches, uncaptioned="error")
    assert "7 pictures" in error.problem and "p1.png, p2.png, p3.png, p4.png, p5.png and 2 more" in error.problem
    assert "data.uncaptioned" in error.fix


def test_a_folder_without_any_caption_says_how_to_go_on(swatches: Path):
    for text in swatches.glob("*.txt"):
        text.unlink()
    error = refused(swatches)
    assert "40 pictures, but only 0" in error.problem and "--set data.uncaptioned=name" in error.fix
    assert len(names(look(swatches, uncaptioned="name"))) == 40


def test_a_caption_without_picture_is_listed_by_name(swatches: Path):
    (swatches / "p7.png").unlink()
    (swatches / "readme.txt").write_text("where these are from")
    found = look(swatches)
    assert found.orphans == ["p7.txt", "readme.txt"] and len(names(found)) == 39


@pytest.mark.parametrize("content", [b"", b"   \n\t\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n"], ids=repr)
def test_a_blank_caption_is_none(swatches: Path, content: bytes):
    (swatches / "p7.txt").write_bytes(content)
    assert look(swatches).uncaptioned == ["p7.png"]
    assert caption_of(look(swatches, uncaptioned="name"), "p7.png") == "p7"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_a_caption_that_is_not_utf_8_makes_its_picture_unusable(swatches: Path, encoding: str):
    (swatches / "p7.txt").write_bytes("café".encode(encoding))
    found = look(swatches)
    guess = " (UTF-16?)" if encoding.startswith("utf-16") else ""
    assert found.unusable == [f"p7.txt: the caption is not UTF-8{guess}"] and "p7.png" not in names(found)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_caption_loses_its_byte_order_mark_and_line_ends(swatches: Path, encoding: str):
    (swatches / "p7.txt").write_bytes("\ufeffa café,\r\n  at night \n".encode(encoding))
    assert caption_of(look(swatches), "p7.png") == "a café, at night"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such file names")
def test_a_file_name_that_is_not_utf_8_is_no_caption(swatches: Path):
    Image.new("RGB", (8, 8), "white").save(swatches / "q.png")
    (swatches / "q.png").rename(os.fsdecode(os.fsencode(swatches) + b"/caf\xe9.png"))
    found = look(swatches, uncaptioned="name")
    assert len(found.unusable) == 1 and "the file name is not UTF-8" in found.unusable[0]
    assert len(names(found)) == 40


# Broken pictures


def noise(path: Path, **how: Any) -> bytes:
    """A picture that does not compress, so that half of its file is not all of it."""
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(path, **how)
    return path.read_bytes()


def half(path: Path) -> None:
    content = noise(path)
    path.write_bytes(content[: len(content) // 2])


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zero-byte": ("x.png", lambda p: p.write_bytes(b""), "empty file"),
    "truncated-png": ("x.png", half, "truncated"),
    "truncated-jpg": ("x.jpg", half, "truncated"),
    "truncated-webp": ("x.webp", half, ""),
    "truncated-gif": ("x.gif", half, ""),
    "header-alone": ("x.png", lambda p: p.write_bytes(noise(p)[:30]), ""),
    "garbage": ("x.jpg", lambda p: p.write_bytes(random.Random(1).randbytes(500)), "not a picture"),
    "text": ("x.png", lambda p: p.write_text("hello"), "not a picture"),
    "postscript": ("x.png", lambda p: Image.new("RGB", (8, 8)).save(p, "EPS"), "not a picture"),
    "floats": ("x.tif", lambda p: Image.new("F", (8, 8), 0.5).save(p), "neither 8 nor 16 bits"),
    "32-bit": ("x.tif", lambda p: Image.new("I", (8, 8), 70000).save(p), "neither 8 nor 16 bits"),
    "bomb": ("x.png", lambda p: png(p, 40_000, 40_000, 1, 0, b""), "above 268 megapixels"),
    "nearly-a-bomb": ("x.png", lambda p: png(p, 16_384, 16_385, 1, 0, b""), "above 268 megapixels"),
    "hidden-level": ("x.png", lambda p: png(p, 1, 1, 16, 0, b"\0\1\2", tRNS=b"\1\2"), "transparent level"),
}


@pytest.mark.parametrize(("name", "make", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_picture_is_listed_with_its_reason(swatches: Path, name: str, make: Callable[[Path], object], why: str):
    make(swatches / name)
    (swatches / "x.txt").write_text("a caption")
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests
        found = look(swatches)
    assert len(found.unusable) == 1 and found.unusable[0].startswith(f"{name}: ") and why in found.unusable[0]
    assert str(swatches) not in found.unusable[0]
    assert len(names(found)) == 40 and name not in names(found)


def test_whatever_is_wrong_with_a_picture_the_error_is_ours(tmp_path: Path):
    """Bytes changed and cut at random, in every format: Pillow's decoders raise a dozen kinds of errors."""
    chance, broken, exif = random.Random(2), 0, Image.Exif()
    exif[0x112], exif[0x10F] = 6, "maker"
    picture = Image.radial_gradient("L").resize((24, 24)).convert("RGB")
    for ending in ("png", "jpg", "webp", "tif", "gif", "bmp", *(["avif"] if features.check("avif") else [])):
        whole, path = tmp_path / f"whole.{ending}", tmp_path / f"broken.{ending}"
        how: dict[str, Any] = {"exif": exif} if ending in ("png", "jpg", "webp", "tif", "avif") else {}
        picture.save(whole, **how)
        for _ in range(20):
            content = bytearray(whole.read_bytes())
            for _ in range(4):
                content[chance.randrange(min(len(content), 300))] = chance.randrange(256)
            path.write_bytes(content[: chance.randrange(len(content))] if chance.random() < 0.3 else content)
            try:
                assert open_picture(path).mode == "RGB"
            except SpinliteError as error:
                assert error.problem.startswith(path.name)
                broken += 1
    assert broken > 30


def test_too_large_a_share_of_broken_pictures_stops_the_run(swatches: Path):
    for i in range(5):
        (swatches / f"p{i}.png").write_bytes(b"")
    error = refused(swatches)
    assert "5 of 40 files" in error.problem and "p4.png: empty file" in error.problem and "data.max_unusable" in error.fix
    assert len(names(look(swatches, max_unusable=0.2))) == 35


def test_the_share_itself_does_not_stop_the_run(swatches: Path):
    for i in range(4):
        (swatches / f"p{i}.png").write_bytes(b"")
    assert len(look(swatches, max_unusable=0.1).unusable) == 4
    assert "4 of 40" in refused(swatches, max_unusable=0.09).problem


def test_a_listing_is_short():
    assert list_names(["a", "b"]) == "a, b"
    assert list_names(list("abcdefgh")) == "a, b, c, d, e and 3 more"


# Pictures that are read, but not as they are


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_said(swatches: Path, ending: str):
    path = swatches / f"film.{ending}"
    Image.new("RGB", (8, 8), RED).save(path, save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])
    (swatches / "film.txt").write_text("a film")
    found = look(swatches)
    assert found.notes == [f"1 with several frames; only the first is used: {path.name}"] and path.name in names(found)
    red, _, blue = open_picture(path).getpixel((4, 4))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 250 and blue < 5


def test_notes_do_not_grow_with_the_folder(swatches: Path):
    for i in range(30):
        frames = [Image.new("RGB", (8, 8), (i, level, 0)) for level in (0, 255)]
        frames[0].save(swatches / f"film{i:02}.gif", save_all=True, append_images=frames[1:])
        (swatches / f"film{i:02}.txt").write_text(f"film {i}")
    (note,) = look(swatches).notes
    assert note.startswith("30 with several frames") and note.endswith("film04.gif and 25 more")


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "c.jpg", quality=100)
    image = open_picture(tmp_path / "c.jpg")
    assert image.mode == "RGB" and image.getpixel((8, 8)) == pytest.approx((0, 255, 255), abs=3)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path):
    png(tmp_path / "g.png", 5, 1, 16, 0, b"\0" + struct.pack(">5H", *LEVELS))
    image = open_picture(tmp_path / "g.png")
    assert image.mode == "RGB" and reds(image) == BYTES


def test_16_bit_grey_tiff_is_scaled_not_clipped(tmp_path: Path):
    Image.frombytes("I;16", (5, 1), struct.pack("<5H", *LEVELS)).save(tmp_path / "little.tif")
    Image.frombytes("I;16B", (5, 1), struct.pack(">5H", *LEVELS)).save(tmp_path / "big.tif")
    assert reds(open_picture(tmp_path / "little.tif")) == reds(open_picture(tmp_path / "big.tif")) == BYTES


def test_16_bit_colour_is_scaled_not_clipped(tmp_path: Path):
    png(tmp_path / "c.png", 5, 1, 16, 2, b"\0" + b"".join(struct.pack(">HHH", level, 0, 65535) for level in LEVELS))
    image = open_picture(tmp_path / "c.png")
    assert reds(image) == pytest.approx(BYTES, abs=1)  # Pillow takes the upper byte
    assert image.getpixel((1, 0))[1:] == (0, 255)  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


@pytest.mark.parametrize(("ending", "transparency"), [("png", 0), ("png", b"\x00\xff"), ("gif", 0)])
def test_a_transparent_palette_colour_is_white(tmp_path: Path, ending: str, transparency: int | bytes):
    image = Image.frombytes("P", (2, 1), b"\x00\x01")
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / f"p.{ending}", transparency=transparency)
    image = open_picture(tmp_path / f"p.{ending}")
    assert image.mode == "RGB" and [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


def test_transparency_is_laid_on_white(tmp_path: Path):
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 51))  # a fifth of red: 204 + 51 of the white
    image.putpixel((2, 0), (255, 0, 0, 255))
    image.save(tmp_path / "a.png")
    image = open_picture(tmp_path / "a.png")
    assert image.mode == "RGB" and [image.getpixel((x, 0)) for x in range(3)] == [WHITE, (255, 204, 204), RED]


def test_transparent_grey_is_laid_on_white(tmp_path: Path):
    Image.new("LA", (2, 1), (0, 0)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_picture_is_turned_upright(tmp_path: Path, ending: str):
    lying, exif = Image.new("RGB", (32, 16), RED), Image.Exif()
    lying.paste(BLUE, (16, 0, 32, 16))
    exif[0x112] = 6  # turn by a quarter, clockwise: what is left comes on top
    lying.save(tmp_path / f"a.{ending}", exif=exif)
    image = open_picture(tmp_path / f"a.{ending}")
    assert image.size == (16, 32)
    assert image.getpixel((8, 4)) == pytest.approx(RED, abs=40) and image.getpixel((8, 28)) == pytest.approx(BLUE, abs=40)


def test_odd_metadata_is_no_reason_to_leave_a_picture_out(swatches: Path):
    Image.new("RGB", (16, 16), "white").save(swatches / "p0.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    found = look(swatches)
    assert not found.unusable and "p0.jpg" in names(found)


# Pairs


@pytest.fixture
def pairs(swatches: Path) -> Path:
    """The swatches as winners, and darker ones of the same names as losers."""
    folder = swatches.parent / "pairs"
    (folder / "lose").mkdir(parents=True)
    swatches.rename(folder / "win")
    for path in (folder / "win").glob("*.png"):
        Image.open(path).point([level // 2 for level in range(256)] * 3).save(folder / "lose" / path.name)
    return folder


def test_pairs_are_a_winner_a_loser_and_a_caption(pairs: Path):
    found = look(pairs, pairs=True)
    assert len(names(found)) == 40 and not found.notes
    for r in found.train + found.heldout:
        assert r.lose == pairs / "lose" / r.path.name and r.lose_key and r.lose_key != r.key


@pytest.mark.parametrize("half", ["win", "lose"])
def test_pairs_need_both_folders(pairs: Path, half: str):
    (pairs / half).rename(pairs / "other")
    assert f"no folder {pairs / half}" in refused(pairs, pairs=True).problem


def test_a_winner_without_loser_is_named(pairs: Path):
    (pairs / "lose" / "p7.png").unlink()
    found = look(pairs, pairs=True)
    assert found.unusable == ["lose/p7.png: there is no such file"] and len(names(found)) == 39


def test_a_broken_loser_is_told_from_its_winner(pairs: Path):
    (pairs / "lose" / "p7.png").write_bytes(b"")
    (pairs / "win" / "p8.png").write_bytes(b"")
    assert look(pairs, pairs=True).unusable == ["lose/p7.png: empty file", "p8.png: empty file"]


def test_a_loser_without_winner_is_named(pairs: Path):
    Image.new("RGB", (8, 8)).save(pairs / "lose" / "alone.png")
    assert look(pairs, pairs=True).notes == ["1 in lose/ without a picture of the same name in win/, ignored: alone.png"]


def test_one_winner_may_have_several_losers(pairs: Path):
    (pairs / "win" / "p1.png").write_bytes((pairs / "win" / "p0.png").read_bytes())
    found = look(pairs, pairs=True)
    assert len(names(found)) == 40 and not found.notes


# The held-out share


def records(*captions: str) -> list[Record]:
    return [Record(Path(f"{i}.png"), caption, f"key {i} {caption}") for i, caption in enumerate(captions)]


def rank(text: str) -> float:
    """A caption's place in [0, 1)."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256


def test_the_share_is_set_apart_by_the_captions_hash():
    all_ = records(*(f"caption {i}" for i in range(1000)))
    train, heldout = split(all_, 0.2)
    assert [r.caption for r in heldout] == [r.caption for r in all_ if rank(r.caption) < 0.2]
    assert [r for r in all_ if r not in heldout] == train
    assert 150 < len(heldout) < 250


def test_a_caption_stays_on_its_side_when_pictures_come_and_go():
    some = records(*(f"caption {i}" for i in range(40)))
    more = [*some[5:], *records(*(f"new {i}" for i in range(60)))]
    before, after = (dict.fromkeys((r.caption for r in split(rs, 0.3)[1]), True) for rs in (some, more))
    assert all(before.get(r.caption) == after.get(r.caption) for r in some[5:])


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 0.89])
@pytest.mark.parametrize("count", [2, 3, 4, 7, 30])
def test_neither_side_is_empty_and_no_caption_is_on_both(count: int, share: float):
    for trial in range(20):
        captions = [f"{trial} {i}" for i in range(count)]
        some = records(*captions, *captions[: count - 1])  # all but one twice
        train, heldout = split(some, share)
        assert train and heldout and len(train) + len(heldout) == len(some)
        assert not {r.caption for r in train} & {r.caption for r in heldout}


def test_where_all_captions_are_alike_pictures_are_split():
    some = records(*["my style"] * 200)
    train, heldout = split(some, 0.2)
    assert [r.key for r in heldout] == [r.key for r in some if rank(r.key) < 0.2] and len(train) + len(heldout) == 200
    again = split(some[3:], 0.2)[1]
    assert [r.key for r in again] == [r.key for r in heldout if r in some[3:]]


def test_a_folder_is_split_the_same_way_every_time(swatches: Path):
    for i in range(40):
        (swatches / f"p{i}.txt").write_text(f"swatch {i}")
    first, second = look(swatches, heldout=0.3), look(swatches, heldout=0.3)
    assert (first.train, first.heldout) == (second.train, second.heldout)
    assert {r.caption for r in first.heldout} == {r.caption for r in first.train + first.heldout if rank(r.caption) < 0.3}
