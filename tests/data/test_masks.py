"""Masks: which file belongs to which picture, what it says at the resolution of latents, and what is encoded again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from spinlite.config.settings import Data, Memory, Model
from spinlite.data.encoded import Encoded
from spinlite.data.mask_pixels import fit_mask, load_mask
from spinlite.data.pictures import mirror, resize_and_crop, silence_pillow
from spinlite.data.records import Record, Survey
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.memory import device
from spinlite.runs.files import fingerprint_files
from spinlite.runs.store import Store
from tests.conftest import Command

NOTHING: Any = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def demo() -> Family:
    return load_family(Model(), device.choose_device(Memory(precision="fp32")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of 64 px in colours of their own."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 90, 200)).save(place / f"p{i}.png")
        (place / f"p{i}.txt").write_text(f"kind {i}", encoding="utf-8")
    return place


def half(path: Path, size: tuple[int, int] = (64, 64), dark: int = 0) -> None:
    """A mask: the left half white, the right half dark."""
    mask = Image.new("L", size, dark)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(path)


def masks_of(found: Survey) -> dict[str, str]:
    """Name of a picture -> name of its mask."""
    return {r.path.name: r.mask.name for r in found.train + found.heldout if r.mask}


def test_masks_beside_pictures_are_never_pictures(folder: Path):
    for name in ("p0-masklabel.png", "p1-MaskLabel.PNG", "p9-masklabel.png", "p2-condlabel.png"):
        half(folder / name)
    found = survey(Data(folder=str(folder)))
    assert found.listed == 4 and masks_of(found) == {"p0.png": "p0-masklabel.png", "p1.png": "p1-MaskLabel.PNG"}
    assert found.unused == {
        "labels (-masklabel, -condlabel) that no picture here uses": ["p2-condlabel.png", "p9-masklabel.png"]
    }
    assert found.noted["with a mask, which says where they are learned from"] == ["p0.png", "p1.png"]


def test_names_of_masks_may_differ_in_case_and_in_the_form_of_unicode(folder: Path):
    for old, new, mask in (("p0", "M\u00fcller", "Mu\u0308ller"), ("p1", "PHOTO", "photo")):
        for ending in (".png", ".txt"):
            (folder / f"{old}{ending}").rename(folder / f"{new}{ending}")
        half(folder / f"{mask}-masklabel.png")
    found = survey(Data(folder=str(folder)))
    assert masks_of(found) == {"M\u00fcller.png": "Mu\u0308ller-masklabel.png", "PHOTO.png": "photo-masklabel.png"}


def test_masks_among_the_files_of_a_data_set_are_no_rows(folder: Path, tmp_path: Path):
    lines = [json.dumps({"file_name": f"p{i}.png", "caption": f"kind {i}"}) for i in range(4)]
    for name in ("p0-masklabel.png", "p2-condlabel.png", "p9-masklabel.png"):
        half(folder / name)
        lines.append(json.dumps({"file_name": name, "caption": "a mask"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = survey(Data(dataset=str(folder)), cache=tmp_path / "cache")
    assert masks_of(found) == {"p0.png": "p0-masklabel.png"} and len(found.train + found.heldout) == 4
    assert [len(names) for names in found.unused.values()] == [2]


def test_check_counts_masks_as_masks(folder: Path, command: Command):
    for i in range(4):
        half(folder / f"p{i}-masklabel.png")
    for words in ((), ("--full",)):
        ended = command("check", folder, "--preset", "demo", *words)
        assert ended.code == 0 and "4 with a mask, which says where they are learned from" in " ".join(ended.out.split()), ended
        assert "without caption" not in ended.out and "nearly the same" not in ended.out


@pytest.mark.parametrize("ending", ["p{}.png", "p{}.webp", "p{}-masklabel.png", "sub/p{}.png"])
def test_a_folder_of_masks_is_matched_by_name(ending: str, folder: Path, tmp_path: Path):
    masks = tmp_path / "masks"
    if "sub" in ending:
        (folder / "sub").mkdir()
        for path in [*folder.glob("p*")]:
            path.rename(folder / "sub" / path.name)
    for i in range(3):
        path = masks / ending.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        half(path)
    found = survey(Data(folder=str(folder), mask_folder=str(masks), recursive=True))
    name = Path(ending).name
    assert masks_of(found) == {f"p{i}.png": name.format(i) for i in range(3)}
    assert [names for what, names in found.noted.items() if "without a mask" in what] == [
        ["sub/p3.png" if "sub" in ending else "p3.png"]
    ]


def test_a_mask_with_the_picture_s_own_subfolder_goes_first(folder: Path, tmp_path: Path):
    for i, sub in enumerate(("one", "two")):
        (folder / sub).mkdir()
        (folder / f"p{i}.png").rename(folder / sub / "a.png")
        (folder / sub / "a.txt").write_text(sub, encoding="utf-8")
        (tmp_path / "masks" / sub).mkdir(parents=True)
        half(tmp_path / "masks" / sub / "a.png", dark=i)
    half(tmp_path / "masks" / "a.png")
    found = survey(Data(folder=str(folder), mask_folder=str(tmp_path / "masks"), recursive=True))
    masks = {r.path.parent.name: r.mask and r.mask.parent.name for r in found.train + found.heldout if r.path.name == "a.png"}
    assert masks == {"one": "one", "two": "two"}


def test_the_built_in_pictures_can_have_masks_too(tmp_path: Path):
    half(tmp_path / "airplane-departure.png")
    found = survey(Data(folder="demo", mask_folder=str(tmp_path)))
    assert masks_of(found) == {"airplane-departure.png": "airplane-departure.png"}


def test_a_folder_of_masks_within_the_pictures_holds_no_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "masks").mkdir()
    monkeypatch.chdir(folder.parent)
    for i in range(4):
        half(folder / "masks" / f"p{i}.png")
    found = survey(Data(folder=str(folder), mask_folder="pictures/masks", recursive=True))
    assert len(masks_of(found)) == len(found.train + found.heldout) == 4 and not found.uncaptioned


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_folder": "nowhere"}, "no folder nowhere with masks"),
        ({"folder": None, "dataset": "x/y", "mask_folder": "m"}, "for the pictures of a folder"),
    ],
)
def test_a_wrong_folder_of_masks_is_said(settings: dict[str, Any], words: str, folder: Path):
    with pytest.raises(SpinliteError, match=words):
        survey(Data(**{"folder": str(folder), **settings}))


def test_a_mask_that_cant_be_read_or_has_another_shape_is_named(folder: Path):
    half(folder / "p0-masklabel.png", (128, 32))
    half(folder / "p1-masklabel.png", (100, 101))
    (folder / "p2-masklabel.png").write_bytes(b"nothing")
    found = survey(Data(folder=str(folder), max_unusable=0.5))
    assert found.unusable == ["p2.png: its mask p2-masklabel.png: not a picture"]
    assert found.noted["with a mask of another shape, which is stretched over the picture"] == ["p0.png"]


def grey(path: Path, mask: Path) -> Image.Image:
    record = Record(path, "", fingerprint_files([path]), mask=mask, mask_key=fingerprint_files([mask]))
    with silence_pillow():
        image, fault = load_mask(record)
    assert image and not fault and image.mode == "L" and image.size == (64, 64)
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def as_bits(image: Image.Image) -> Image.Image:
    return image.convert("1", dither=Image.Dither.NONE)


def painted(image: Image.Image) -> Image.Image:
    """White paint on nothing, as painting programs save it."""
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    layer.putalpha(image)
    return layer


@pytest.mark.parametrize(
    "kind", [as_rgb, as_bits, painted, lambda image: image.quantize(4), lambda image: image.resize((32, 32))]
)
def test_however_a_mask_was_saved_white_is_1(kind: Callable[[Image.Image], Image.Image], tmp_path: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    kind(mask).save(tmp_path / "m.png")
    found = grey(tmp_path / "p.png", tmp_path / "m.png")
    assert [found.getpixel((x, 30)) for x in (0, 24, 40, 63)] == [255, 255, 0, 0]


def test_the_transparency_of_a_picture_is_its_mask(tmp_path: Path):
    picture = Image.effect_noise((64, 64), 80).convert("RGBA")
    alpha = Image.linear_gradient("L").resize((64, 64)).point([max(0, 2 * level - 255) for level in range(256)])
    picture.putalpha(alpha)
    picture.save(tmp_path / "p.png")
    found = grey(tmp_path / "p.png", tmp_path / "p.png")
    apart = [abs(int(a) - int(b)) for a, b in zip(found.tobytes(), alpha.tobytes(), strict=True)]
    assert max(apart) <= 1 and all(a == b for a, b in zip(found.tobytes(), alpha.tobytes(), strict=True) if b in (0, 255))
    as_rgb(picture).save(tmp_path / "opaque.png")
    assert grey(tmp_path / "opaque.png", tmp_path / "opaque.png").getextrema() == (255, 255)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("centring", [(0.5, 0.5), (0.1, 0.8)])
@pytest.mark.parametrize(
    ("size", "shape"), [((200, 120), (64, 64)), ((90, 300), (48, 80)), ((64, 64), (64, 64)), ((70, 50), (96, 32))]
)
def test_a_mask_is_cut_as_its_picture_is(size: Any, shape: Any, centring: Any, mirrored: bool):
    """The picture's own crop of the mask, averaged over squares of 8 px, up to what its sharper resampling adds."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((size[0] * 0.1, size[1] * 0.2, size[0] * 0.6, size[1] * 0.9), fill=255)
    draw.rectangle((size[0] * 0.7, 0, size[0] * 0.8, size[1]), fill=128)
    cut = resize_and_crop(mask.convert("RGB"), shape, centring)
    expected = (mirror(cut) if mirrored else cut).image.getchannel("R").reduce(8)
    found = fit_mask(mask, torch.zeros(4, shape[1] // 8, shape[0] // 8), centring, mirrored)
    assert found.shape == (1, shape[1] // 8, shape[0] // 8) and found.min() >= 0 and found.max() <= 1
    levels = torch.tensor(list(expected.tobytes())).view(found.shape) / 255
    assert (found - levels).abs().max() < 0.06
    turned = fit_mask(
        ImageOps.mirror(mask), torch.zeros(4, shape[1] // 8, shape[0] // 8), (1 - centring[0], centring[1]), not mirrored
    )
    assert (found - turned).abs().max() < 0.06


@pytest.mark.parametrize(("latent", "shape"), [((4, 8, 8), (1, 8, 8)), ((16, 1, 8, 8), (1, 1, 8, 8)), ((2,), (1,))])
def test_a_mask_has_the_dimensions_of_its_latent(latent: Any, shape: Any):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    found = fit_mask(mask, torch.zeros(latent), (0.5, 0.5), False)
    assert found.shape == shape and found.mean() == pytest.approx(0.5, abs=0.01)


def encode(family: Family, folder: Path, cache: Path, **settings: Any) -> tuple[Encoded, list[Record]]:
    found = survey(Data(folder=str(folder), max_unusable=0.5, **settings))
    records = sorted(found.train + found.heldout, key=lambda r: r.path)
    return Encoded(family, records, cache, 3, NOTHING, Data(max_unusable=0.5, **settings)), records


def test_a_mask_is_kept_beside_its_latents_without_encoding_any_picture_again(
    demo: Family, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []
    whole = demo.encode_pictures
    monkeypatch.setattr(demo, "encode_pictures", lambda some, *others: (seen.append(len(some)), whole(some, *others))[1])
    encoded, records = encode(demo, folder, tmp_path)
    assert encoded.masks(records) is None and sum(seen) == 4
    names = [set(Store(place)._places) for place in (tmp_path / "real").iterdir()]

    half(folder / "p0-masklabel.png")
    encoded, records = encode(demo, folder, tmp_path)
    found = encoded.masks(records)
    assert found is not None and found.shape == (4, 1, 16, 16) and encoded.masks(records[1:]) is None
    assert torch.equal(found[0, 0, 5], torch.tensor([1.0] * 8 + [0.0] * 8)) and (found[1:] == 1).all()
    assert [name for place in (tmp_path / "real").iterdir() for name in set(Store(place)._places) - names[0]] == [
        f"{records[0].key}-64x64-mask-{records[0].mask_key}"
    ]

    half(folder / "p0-masklabel.png", dark=128)  # a changed mask is another one
    encoded, records = encode(demo, folder, tmp_path, unmasked_weight=0.2)
    found = encoded.masks(records)
    assert found is not None and found[0].min().item() == pytest.approx(128 / 255)
    half(folder / "p0-masklabel.png")
    encoded, records = encode(demo, folder, tmp_path, unmasked_weight=0.2)
    found = encoded.masks(records)
    assert found is not None and found[0].min().item() == pytest.approx(0.2) and found.max() == 1
    assert sum(seen) == 4


def test_a_mirrored_picture_has_a_mirrored_mask(demo: Family, folder: Path, tmp_path: Path):
    half(folder / "p0-masklabel.png")
    encoded, records = encode(demo, folder, tmp_path, flip=True)
    plain, mirrored = (encoded.masks([replace(records[0], flip=flip)]) for flip in (False, True))
    assert isinstance(plain, Tensor) and isinstance(mirrored, Tensor)
    assert not torch.equal(plain, mirrored) and torch.equal(plain.flip(-1), mirrored)


def test_masks_that_hide_everything_or_changed_meanwhile_are_named(demo: Family, folder: Path, tmp_path: Path):
    Image.new("L", (64, 64)).save(folder / "p0-masklabel.png")
    half(folder / "p1-masklabel.png")
    encoded, records = encode(demo, folder, tmp_path)
    assert list(encoded.faults.values()) == ["p0.png: its mask is black, so nothing of it would be learned"]
    assert encoded.usable(records) == records[1:] and not encoded.changed
    half(folder / "p1-masklabel.png", dark=9)
    again = Encoded(demo, records[1:], tmp_path / "other", 3, NOTHING)
    assert again.changed == ["p1-masklabel.png"] and again.usable(records[1:]) == records[2:]


def test_what_a_run_depends_on_is_as_before_without_masks_and_wordings(tmp_path: Path):
    plain = Record(tmp_path / "a.png", "a, b", "key")
    assert plain.identity == ["key", "", "a, b"]
    assert Record(tmp_path / "a.png", "a, b", "key", mask=tmp_path / "m.png", mask_key="mask").identity != plain.identity
    assert Record(tmp_path / "a.png", "a, b", "key", wordings=("b, a",)).identity != plain.identity
