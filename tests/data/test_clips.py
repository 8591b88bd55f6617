"""Clips: which frames are read of which files, how files are cut, and what is wrong with some."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from spinlite.config.settings import Data, Memory, Model, Settings, Source
from spinlite.data import clips
from spinlite.data.clips import count_frames, is_moving, open_clip, own_rate, times_of
from spinlite.data.encoded import Encoded
from spinlite.data.folder import list_folder, list_pairs
from spinlite.data.looks import LookCache, decode_all, read_headers
from spinlite.data.records import Record, Survey
from spinlite.data.survey import examine, grid_of, survey
from spinlite.errors import SpinliteError
from spinlite.families.load import clip_rule, load_family
from spinlite.families.picture import ClipRule, Picture
from spinlite.memory import device
from tests.clips import ball, captioned, number, numbered, write, write_animation, write_frames, write_video

RULE = ClipRule(fps=8.0, step=4, most=9)
MODEL = Model(family="toy", base="clips-0")


def read(path: Path, start: int = 0, count: int = 9, rule: ClipRule = RULE) -> list[Image.Image]:
    return list(open_clip(path, rule).frames(times_of(start, count, rule.fps)))


def found_in(folder: Path, **data: object) -> Survey:
    settings = Settings(model=MODEL, data=Data.model_validate({"folder": str(folder), "max_unusable": 1.0, **data}))
    return examine(settings.data, grid=grid_of(settings))


def records_of(found: Survey) -> list[Record]:
    return sorted(found.train + found.heldout, key=lambda r: (r.path, r.clip.start if r.clip else 0))


@pytest.mark.parametrize(("frames", "taken"), [(1, 1), (4, 1), (5, 5), (8, 5), (9, 9), (12, 9), (500, 9)])
def test_a_clip_has_one_frame_more_than_a_multiple_of_the_step(frames: int, taken: int):
    assert RULE.length(frames) == taken


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi", "a.mkv", "a.gif", "a.webp", "a"])
def test_each_frame_is_the_one_that_is_on_the_screen_at_its_time(tmp_path: Path, name: str):
    """A folder of frames has the model's own rate; of the others every other frame, and all of a slower one twice."""
    made = write(tmp_path / name, numbered(24), fps=16 if name != "a" else 8)
    footage = open_clip(made, RULE)
    assert is_moving(made) and count_frames(footage, 8.0) == (24 if name == "a" else 12)
    rate = {"a": 8, "a.gif": 1 / 0.06, "a.webp": 1 / 0.062}.get(name, 16)  # GIF counts in 10 ms, WebP in 1 ms

    def shown(at: list[float]) -> list[int]:
        return [min(23, int((time + clips.TICK) * rate)) for time in at]

    assert own_rate(footage) == pytest.approx(rate, rel=0.01)
    assert [number(frame) for frame in read(made)] == shown(times_of(0, 9, 8))
    assert [number(frame) for frame in read(made, 7, 5)] == shown(times_of(7, 5, 8))
    if name != "a":
        assert [number(f) for f in read(made, 3, 4, ClipRule(32.0, 4, 9))] == shown(times_of(3, 4, 32))


def test_a_video_is_turned_as_it_says_and_has_square_pixels(tmp_path: Path):
    frames = [Image.new("RGB", (64, 32), "black") for _ in range(3)]
    for frame in frames:
        frame.paste("white", (0, 0, 16, 16))
    corner = {0: (4, 4), 90: (4, -4), 180: (-4, -4), 270: (-4, 4)}
    for turned, place in corner.items():
        image = read(write_video(tmp_path / f"{turned}.mp4", frames, turned=turned), count=1)[0]
        assert image.size == ((64, 32) if turned in (0, 180) else (32, 64))
        bright = image.convert("L").getpixel((place[0] % image.width, place[1] % image.height))
        assert float(bright) > 200, turned  # pyright: ignore[reportArgumentType]
    assert read(write_video(tmp_path / "wide.mp4", frames, wide=2), count=1)[0].size == (128, 32)


def test_what_is_no_clip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.mp4").write_bytes(b"not a video at all")
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_animation(tmp_path / "cut.webp", ball(12))
    whole = (tmp_path / "cut.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nothing").mkdir()
    write_frames(tmp_path / "odd", ball(6))
    (tmp_path / "odd" / "3.png").write_bytes(b"no picture")
    looks = {path.name: look for path, look in decode_all(sorted(tmp_path.iterdir()), "white", rule=RULE).items()}
    assert all(look.fault for name, look in looks.items() if name != "odd"), looks
    assert looks["text.mp4"].fault.startswith("not a clip that can be read (Invalid data")
    assert "no frames in this folder" in looks["nothing"].fault
    with pytest.raises(SpinliteError, match=r"3\.png: not a picture"):
        read(tmp_path / "odd", count=6)
    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpinliteError, match="PyAV") as error:
        clips.require_decoder([tmp_path / "text.mp4"])
    assert error.value.fix == "pip install av"
    clips.require_decoder([tmp_path / "cut.webp"])


def test_half_a_video_is_used_as_far_as_it_can_be_decoded(tmp_path: Path):
    noise = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(30)]
    made = write_video(tmp_path / "half.avi", noise)
    content = made.read_bytes()
    made.write_bytes(content[: len(content) // 2])
    footage = open_clip(made, RULE)
    assert 9 < count_frames(footage, RULE.fps) < 30 and len(read(made)) == 9


def test_pictures_and_clips_of_a_folder_become_records(tmp_path: Path):
    for name, count in (("long.mp4", 20), ("short.webm", 6), ("blink.gif", 3), ("frames", 11)):
        captioned(tmp_path / name, ball(count), f"a {name}")
    captioned(tmp_path / "slow.mp4", ball(8), "slow", fps=4)
    ball(1)[0].save(tmp_path / "still.png")
    (tmp_path / "still.txt").write_text("still", encoding="utf-8")
    found = found_in(tmp_path)
    shapes = {r.path.name: r.bucket for r in records_of(found)}
    assert shapes == {
        "long.mp4": (32, 32, 9), "short.webm": (32, 32, 5), "blink.gif": (32, 32), "frames": (32, 32, 9),
        "slow.mp4": (32, 32, 9), "still.png": (32, 32),
    }  # fmt: skip
    assert found.listed == 6 and not found.unusable and not found.orphans and not found.elsewhere
    said = {what: names for what, names in found.noted.items() if "same as another" not in what}
    assert [(what[:20], names) for what, names in sorted(said.items())] == [
        ("clips at least twice", ["long.mp4"]), ("clips too short for ", ["blink.gif"]), ("clips with fewer fra", ["slow.mp4"]),
    ]  # fmt: skip


def test_a_long_clip_gives_its_head_or_all_of_it_and_its_parts_stay_on_one_side(tmp_path: Path):
    for n in range(4):
        captioned(tmp_path / f"{n}.webp", ball(29, 1 + n, colour=("red", "white", "green", "pink")[n]), "a ball")
    assert len(records_of(found_in(tmp_path))) == 4
    found = found_in(tmp_path, long_clips="all")
    parts = records_of(found)
    assert len(parts) == 12 and [r.clip.start for r in parts[:3] if r.clip] == [0, 9, 18]
    assert len({r.key for r in parts}) == 12 and len({r.file_key for r in parts}) == 4
    assert {r.path for r in found.train}.isdisjoint(r.path for r in found.heldout)


def test_headers_alone_give_the_same_records(tmp_path: Path):
    for n in range(3):
        captioned(tmp_path / f"{n}.mp4", ball(10 + n, 1 + n), "the same words")
    settings = Settings(model=MODEL, data=Data(folder=str(tmp_path)))
    quick = examine(settings.data, grid=grid_of(settings), headers=True)
    assert records_of(quick) == records_of(found_in(tmp_path))
    looks = read_headers(sorted(tmp_path.glob("*.mp4")), rule=RULE).values()
    assert [look.frames for look in looks] == [10, 11, 12]


def test_pairs_of_clips_have_the_length_of_the_shorter_one(tmp_path: Path):
    for side, count in (("win", 12), ("lose", 6)):
        (tmp_path / side).mkdir()
        captioned(tmp_path / side / "a.mp4", ball(count), "a")
        captioned(tmp_path / side / "b", ball(count), "b")
    settings = Settings(model=MODEL, data=Data(folder=str(tmp_path)))
    pairs = records_of(survey(settings.data, True, grid=grid_of(settings)))
    assert {(r.path.name, r.bucket, bool(r.lose_clip)) for r in pairs} == {(name, (32, 32, 5), True) for name in ("a.mp4", "b")}
    assert [e.lose for e in list_pairs(tmp_path, Source(), Survey(), clips=True)] == [
        tmp_path / "lose" / n for n in ("a.mp4", "b")
    ]


def test_a_folder_is_a_clip_where_it_has_a_caption_and_only_for_models_of_clips(tmp_path: Path):
    captioned(tmp_path / "a", ball(6), "a")
    write_frames(tmp_path / "b", ball(6))
    write_frames(tmp_path / "plain", ball(2))
    captioned(tmp_path / "c.mp4", ball(6), "c")
    for recursive, names in ((False, ["a", "c.mp4"]), (True, ["a", *[f"b/{n}.png" for n in range(6)], "c.mp4"])):
        source = Source(recursive=recursive)
        listed = [e.name for e in list_folder(tmp_path, source, Survey(), clips=True) if not e.name.startswith("plain")]
        assert sorted(listed) == sorted(names)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b", "text": "by a table"}\n', encoding="utf-8")
    entries = {e.name: e.captions for e in list_folder(tmp_path, Source(), Survey(), clips=True)}
    assert entries == {"a": ("a",), "b": ("by a table",), "c.mp4": ("c",)}
    assert [e.name for e in list_folder(tmp_path, Source(), Survey())] == []


def test_clips_in_kohyas_folders_are_repeated(tmp_path: Path):
    (tmp_path / "3_a ball").mkdir()
    write_video(tmp_path / "3_a ball" / "x.mp4", ball(6))
    [entry] = list_folder(tmp_path, Source(), Survey(), clips=True)
    assert (entry.weight, entry.captions) == (3, ("a ball",))


def test_clips_that_look_alike_are_named(tmp_path: Path):
    noise = [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(9)]
    captioned(tmp_path / "a.webp", ball(9), "one")
    captioned(tmp_path / "b.mp4", ball(9), "the same, compressed")
    captioned(tmp_path / "c.webp", [*ball(4), *noise[4:]], "another end")
    captioned(tmp_path / "d.webp", noise, "noise")
    noted = found_in(tmp_path).noted
    assert noted["nearly the same as another picture, used all the same"] == ["b.mp4 (like a.webp)"]


def test_looks_at_clips_are_remembered_and_those_of_another_rate_are_not(tmp_path: Path):
    made = [write_video(tmp_path / "a.mp4", ball(9)), write_frames(tmp_path / "b", ball(9))]
    looks = decode_all(made, "white", rule=RULE)
    memo = LookCache(tmp_path / "looks.json", "white", RULE)
    for path, look in looks.items():
        memo.put(path, [1, 0, 0, 1], look, 10.0)
    memo.save()
    kept = LookCache(tmp_path / "looks.json", "white", RULE)
    assert {path: look for path, (_, look) in kept._looks.items()} == {str(path): look for path, look in looks.items()}
    assert not LookCache(tmp_path / "looks.json", "white", ClipRule(16.0, 4, 9))._looks
    assert not LookCache(tmp_path / "looks.json", "white")._looks


def test_clips_are_encoded_as_they_are_cut_and_mirrored(tmp_path: Path):
    family = load_family(MODEL, device.choose_device(Memory()))
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(3):
        captioned(folder / f"{n}.webp", ball(20, 1 + n), f"ball {n}")
    ball(1)[0].save(folder / "s.png")
    (folder / "s.txt").write_text("still", encoding="utf-8")
    settings = Data(folder=str(folder), flip=True, long_clips="all", heldout=0.1)
    records = records_of(found_in(folder, flip=True, long_clips="all"))
    encoded = Encoded(family, records, tmp_path / "cache", 2, lambda *_: None, settings)
    assert encoded.usable(records) == records and not encoded.faults
    assert [tuple(encoded.real([r]).shape) for r in records] == [(1, 3, 3, 4, 4)] * 6 + [(1, 3, 1, 4, 4)]
    second, frame = encoded.real([records[1]])[0], ball(20, 1)[9]
    still = family.encode_pictures([Picture(frame, frame.size, (0, 0))])["x0"][0]
    assert torch.equal(second[:, 0], still[:, 0])  # of a clip the first latent frame is that of its first frame alone
    assert torch.equal(encoded.real([replace(records[1], flip=True)])[0], second.flip(-1))


def test_a_clip_that_changed_is_named(tmp_path: Path):
    family = load_family(MODEL, device.choose_device(Memory()))
    for n in range(2):
        captioned(tmp_path / f"{n}", ball(6, 1 + n), f"ball {n}")
    records = records_of(found_in(tmp_path))
    Image.new("RGB", (32, 32)).save(tmp_path / "0" / "2.png")
    encoded = Encoded(family, records, tmp_path / "cache", 2, lambda *_: None, Data(folder=str(tmp_path)))
    assert encoded.changed == ["0"]


def test_the_length_of_clips_is_the_models_own():
    rule = clip_rule(MODEL)
    assert rule == RULE and clip_rule(Model(family="toy", base="0")) is None
    assert clip_rule(MODEL.model_copy(update={"frames": 5})) == ClipRule(8.0, 4, 5)
    with pytest.raises(SpinliteError, match=r"clips have 1, 5, 9, … frames") as error:
        clip_rule(MODEL.model_copy(update={"frames": 8}))
    assert error.value.fix == "set model.frames = 5"
    with pytest.raises(SpinliteError, match="this one makes pictures"):
        clip_rule(Model(family="toy", base="0", frames=5))


def test_a_mask_of_a_clip_is_for_all_its_frames_and_its_transparency_is_none(tmp_path: Path):
    family = load_family(MODEL, device.choose_device(Memory()))
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(2):
        captioned(folder / f"{n}.mp4", ball(9, 1 + n), f"ball {n}")
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "0-masklabel.png")
    records = records_of(found_in(folder, alpha_mask=True))
    assert [r.mask.name if r.mask else None for r in records] == ["0-masklabel.png", None]
    encoded = Encoded(family, records, tmp_path / "cache", 2, lambda *_: None, Data(folder=str(folder), alpha_mask=True))
    mask = encoded.masks(records[:1])
    assert not encoded.faults and mask is not None and mask.shape == (1, 1, 1, 4, 4)
    assert mask[0, 0, 0].round().tolist() == [[1, 1, 0, 0]] * 4
