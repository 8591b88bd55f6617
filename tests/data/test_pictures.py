"""Pictures as cameras, editors and people leave them: made right where that can be done, named where it can't."""

import io
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, features

from spinlite.config.settings import Data
from spinlite.data import looks as looks_module
from spinlite.data.looks import LookCache, decode_all, in_order, read_headers
from spinlite.data.pictures import open_picture, read_size
from spinlite.data.records import Survey
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint_bytes, fingerprint_files

RED = (255, 0, 0)


def look(folder: Path, **settings: Any) -> Survey:
    return survey(Data(folder=str(folder), **settings))


def linear_profile() -> bytes:
    """A real ICC profile: sRGB's primaries, and levels that are light (gamma 1)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = profile.find(b"para", 128)
    assert curve > 0 and profile[curve + 8 : curve + 10] == b"\0\3"
    profile[curve + 8 : curve + 10] = b"\0\0"  # a power alone
    profile[curve + 12 : curve + 16] = (65536).to_bytes(4, "big")  # of 1
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "line".encode("utf-16-be"))


# Colour


def test_a_colour_profile_is_applied(tmp_path: Path):
    """Half of the light is level 188 of sRGB."""
    Image.new("RGB", (4, 4), (128, 0, 255)).save(tmp_path / "a.png", icc_profile=linear_profile())
    red, green, blue = open_picture(tmp_path / "a.png").getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
    assert abs(red - 188) <= 1 and green <= 1 and blue >= 254


def test_a_colour_profile_leaves_transparency_alone(tmp_path: Path):
    image = Image.new("RGBA", (2, 1), (128, 0, 255, 0))
    image.putpixel((1, 0), (128, 0, 255, 255))
    image.save(tmp_path / "a.png", icc_profile=linear_profile())
    read = open_picture(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == (255, 255, 255) and abs(read.getpixel((1, 0))[0] - 188) <= 1  # pyright: ignore


def test_srgbs_own_profile_changes_nothing(tmp_path: Path):
    picture = Image.radial_gradient("L").convert("RGB")
    picture.save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert open_picture(tmp_path / "a.png").tobytes() == picture.tobytes()


@pytest.mark.parametrize("profile", [b"nonsense", linear_profile()[:200], b""])
def test_a_broken_profile_is_said_and_the_picture_is_used(swatches: Path, profile: bytes):
    Image.new("RGB", (4, 4), RED).save(swatches / "p0.png", icc_profile=profile)
    found = look(swatches)
    assert found.notes == (["1 with a colour profile that can't be applied, read as sRGB: p0.png"] if profile else [])
    assert open_picture(swatches / "p0.png").getpixel((0, 0)) == RED


def test_a_profile_of_another_colour_space_is_not_applied(tmp_path: Path):
    Image.new("L", (4, 4), 128).save(tmp_path / "a.png", icc_profile=linear_profile())
    said: list[str] = []
    image = open_picture(tmp_path / "a.png", lambda what, name: said.append(what))
    assert image.getpixel((0, 0)) == (128, 128, 128) and said == ["with a colour profile that can't be applied, read as sRGB"]


def test_transparency_is_laid_on_the_colour_that_is_set(swatches: Path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(swatches / "p0.png")
    assert open_picture(swatches / "p0.png", background="#102030").getpixel((0, 0)) == (16, 32, 48)
    with pytest.raises(SpinliteError, match=r"data\.background = 'dreen' is not a colour"):
        look(swatches, background="dreen")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    match mode:
        case "LAB" | "I;16":
            image = Image.new(mode, (8, 8))
        case "PA":
            image = Image.new("RGBA", (8, 8), (255, 0, 0, 9)).quantize(4)
        case _:
            image = Image.new("RGB", (8, 8), RED).convert(mode)
    path = tmp_path / f"a.{'png' if mode in ('P', 'PA', 'LA') else 'tif'}"
    image.save(path)
    assert open_picture(path).mode == "RGB" and open_picture(path).size == (8, 8)


# Formats


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "jfif", "png", "webp", "avif", "bmp", "dib", "tif", "tiff", "gif"])
def test_every_format_is_read_by_a_real_encoder_and_decoder(swatches: Path, ending: str):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    kind = {"jfif": "JPEG", "dib": "DIB"}.get(ending)
    Image.new("RGB", (16, 16), RED).save(swatches / f"new.{ending}", kind)
    (swatches / "new.txt").write_text("new")
    found = look(swatches)
    assert not found.notes and any(r.caption == "new" for r in found.train + found.heldout)
    red, green, blue = open_picture(swatches / f"new.{ending}").getpixel((8, 8))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 245 and green < 10 and blue < 10


def test_what_a_phone_writes_is_one_picture(swatches: Path):
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (250, 20)]
    frames[0].save(swatches / "p0.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert not look(swatches).notes
    assert open_picture(swatches / "p0.jpg").getpixel((0, 0))[0] > 240  # pyright: ignore


def test_a_wrong_ending_is_said_and_the_picture_is_used(swatches: Path):
    Image.new("RGB", (16, 16), RED).save(swatches / "p0.png", "WEBP")
    found = look(swatches)
    assert found.notes == ["1 with the ending of another format, used all the same: p0.png"]
    assert any(r.path.name == "p0.png" for r in found.train + found.heldout)


# Looking


def test_a_header_tells_the_size_that_the_picture_has(tmp_path: Path):
    chance = random.Random(0)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = turn
        path = tmp_path / f"{turn}.{chance.choice(['jpg', 'png', 'webp', 'tif'])}"
        Image.new("RGB", (20 + turn, 10)).save(path, exif=exif)
        assert read_size(path)[0] == open_picture(path).size
    assert [look.size for look in read_headers(sorted(tmp_path.iterdir())).values()] == [
        look.size for look in decode_all(sorted(tmp_path.iterdir()), "white").values()
    ]


def test_headers_find_the_same_files_by_their_contents(tmp_path: Path):
    for name, content in {"a.bmp": b"1", "b.bmp": b"2", "c.bmp": b"1"}.items():
        Image.new("RGB", (4, 4), (int(content), 0, 0)).save(tmp_path / name)
    Image.new("RGB", (5, 5)).save(tmp_path / "d.bmp")
    keys = [look.key for look in read_headers(sorted(tmp_path.iterdir())).values()]
    assert keys[0] == keys[2] == fingerprint_files([tmp_path / "a.bmp"]) and len(set(keys)) == 3


def test_a_key_is_the_same_from_bytes_and_from_a_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"some bytes")
    assert fingerprint_bytes(b"some bytes") == fingerprint_files([tmp_path / "a"])


def settled(memo: Path, folder: Path, background: str = "white") -> tuple[LookCache, list[str]]:
    """A memo, and the files that a look with it decodes."""
    decoded: list[str] = []
    whole = looks_module.decode

    def counted(content: bytes, path: Path, *args: Any, **how: Any):
        decoded.append(path.name)
        return whole(content, path, *args, **how)

    looks_module.decode = counted
    try:
        made = LookCache(memo, background)
        decode_all(sorted(folder.glob("*.png")), background, made)
    finally:
        looks_module.decode = whole
    return made, sorted(decoded)


def test_what_is_unchanged_is_not_read_again(swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks_module, "SETTLED", -1.0)
    (swatches / "p9.png").write_bytes(b"")
    every = sorted(path.name for path in swatches.glob("*.png"))
    assert settled(tmp_path / "memo.json", swatches)[1] == every
    memo, decoded = settled(tmp_path / "memo.json", swatches)
    look = memo.get(swatches / "p9.png")
    assert decoded == [] and look is not None and look.fault == "empty file"
    Image.new("RGB", (16, 16), RED).save(swatches / "p3.png")
    os.replace(swatches / "p5.png", swatches / "p6.png")  # another file in its place
    assert settled(tmp_path / "memo.json", swatches)[1] == ["p3.png", "p6.png"]
    assert len(settled(tmp_path / "memo.json", swatches, "black")[1]) == 39


def test_an_edit_that_keeps_length_and_time_is_seen(swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks_module, "SETTLED", -1.0)
    path = swatches / "p3.bmp"
    Image.new("RGB", (4, 4), RED).save(path)
    memo = LookCache(tmp_path / "memo.json", "white")
    before = decode_all([path], "white", memo)[path]
    stamp = path.stat()
    time.sleep(0.02)
    Image.new("RGB", (4, 4), "blue").save(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = decode_all([path], "white", memo)[path]
    assert path.stat().st_size == stamp.st_size and before.key != after.key


def test_a_file_that_was_just_written_is_not_remembered(swatches: Path, tmp_path: Path):
    assert settled(tmp_path / "memo.json", swatches)[1] == settled(tmp_path / "memo.json", swatches)[1] != []


def test_a_memo_of_other_rules_is_forgotten(swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(looks_module, "SETTLED", -1.0)
    settled(tmp_path / "memo.json", swatches)
    kept = json.loads((tmp_path / "memo.json").read_text())
    (tmp_path / "memo.json").write_text(json.dumps({**kept, "rules": "older"}))
    assert len(settled(tmp_path / "memo.json", swatches)[1]) == 40


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"rules": 1}'])
def test_a_damaged_memo_is_forgotten(swatches: Path, tmp_path: Path, content: bytes):
    (tmp_path / "memo.json").write_bytes(content)
    assert len(settled(tmp_path / "memo.json", swatches)[1]) == 40


def test_work_of_several_threads_comes_in_order_and_its_errors_too():
    assert list(in_order(lambda i: i * i, range(1000), 7)) == [i * i for i in range(1000)]

    def odd(i: int) -> float:
        return 1 / (50 - i)

    seen = []
    with pytest.raises(ZeroDivisionError):
        for value in in_order(odd, range(100)):
            seen.append(value)
    assert seen == [1 / (50 - i) for i in range(50)]


# Mangled at random


def mangled(chance: random.Random, content: bytes) -> bytes:
    match chance.randrange(5):
        case 0:
            return content[: chance.randrange(len(content))]
        case 1:
            return b""
        case 2:
            return content + chance.randbytes(100)
        case 3:
            start = chance.randrange(len(content))
            return content[:start] + content[start + chance.randrange(1, 20) :]
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 20)):
        changed[chance.randrange(min(len(changed), 400))] = chance.randrange(256)
    return bytes(changed)


def test_of_500_mangled_files_every_one_is_used_or_named(tmp_path: Path):
    """Bytes flipped, cut, inserted; files renamed and of the wrong type, pictures and captions alike."""
    chance = random.Random(0)
    picture = Image.radial_gradient("L").resize((24, 24)).convert("RGB")
    kinds = ["png", "jpg", "webp", "tif", "gif", "bmp", *(["avif"] if features.check("avif") else [])]
    contents = {}
    for kind in kinds:
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
        contents[kind] = file.getvalue()
    captions = {".txt": b"a caption", ".caption": b"a caption", ".json": b'{"caption": ["a", "b"]}'}
    for i in range(500):
        kind, ending = chance.choice(kinds), chance.choice([*kinds, "xyz", "txt", "JPG"]) if i % 7 == 0 else None
        (tmp_path / f"f{i:03}.{ending or kind}").write_bytes(mangled(chance, contents[kind]))
        beside, text = chance.choice(list(captions.items()))
        if i % 5:
            (tmp_path / f"f{i:03}{beside}").write_bytes(mangled(chance, text) if i % 3 == 0 else text)
    for i in range(2):
        (tmp_path / f"good{i}.png").write_bytes(contents["png"] + bytes([i]))
        (tmp_path / f"good{i}.txt").write_text(f"good {i}")
    found = look(tmp_path, max_unusable=1.0)
    used = {r.path.name for r in found.train + found.heldout}
    lists = [found.unusable, found.uncaptioned, found.orphans, *found.noted.values(), *found.unused.values()]
    told = " ".join(name for names in lists for name in names)
    for path in tmp_path.iterdir():
        if path.suffix.lower() in (".txt", ".caption", ".json"):
            assert path.stem in told or any(name.startswith(path.stem) for name in used), path.name
        else:
            assert path.name in used or path.name in told or f"{path.stem}." in told, path.name
    assert len(found.unusable) > 100 and len(used) > 50
