"""Pictures that look alike are found, however many there are; those that do not are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Data
from spinlite.data.alike import FAR, find_alike, fingerprint_look
from spinlite.data.pictures import open_picture
from spinlite.data.survey import examine

DEMO = sorted((PACKAGE / "demo" / "fluent").glob("*.png"))[:40]


def compressed(image: Image.Image, quality: int = 50) -> Image.Image:
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=quality)
    return Image.open(kept).convert("RGB")


def mark_of(bits: int, tint: str = "808080") -> str:
    return f"{bits:016x}{tint}"


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": compressed,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "five times, compressed": lambda image: compressed(image.resize((5 * image.width, 5 * image.height))),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_picture_that_was_changed_a_little_is_found(name: str):
    pictures = [open_picture(path) for path in DEMO]
    marks = [fingerprint_look(picture) for picture in pictures]
    assert find_alike([*marks, *(fingerprint_look(CHANGES[name](picture)) for picture in pictures)]) == {
        40 + i: i for i in range(40)
    }


def test_a_mirrored_or_recoloured_picture_is_another():
    marks = [fingerprint_look(open_picture(path)) for path in DEMO]
    assert not find_alike([*marks, *(fingerprint_look(ImageOps.mirror(open_picture(path))) for path in DEMO)]).keys() & {
        0,
        1,
        2,
    }
    discs = [Image.new("RGB", (64, 64), "white") for _ in range(2)]
    for disc, colour in zip(discs, ("red", "blue"), strict=True):
        ImageDraw.Draw(disc).ellipse((4, 4, 50, 50), fill=colour)
    assert not find_alike([fingerprint_look(disc) for disc in discs])


def test_plain_pictures_are_not_compared():
    assert fingerprint_look(Image.new("RGB", (64, 64), "red")) == "" and find_alike(["", ""]) == {} and find_alike([]) == {}


def test_what_is_found_is_what_comparing_all_pairs_finds():
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 300).tolist()
    near = [value ^ sum(1 << int(bit) for bit in random.choice(64, k, replace=False)) for k in range(9) for value in base[:30]]
    marks = [mark_of(value, f"{random.integers(100, 130):02x}8080") for value in [*base, *near]]

    def close(a: str, b: str) -> bool:
        colours = abs(int(a[16:18], 16) - int(b[16:18], 16)) <= 24
        return colours and (int(a[:16], 16) ^ int(b[:16], 16)).bit_count() <= FAR

    found = find_alike(marks)
    firsts = [next(j for j in range(i + 1) if close(marks[i], marks[j])) for i in range(len(marks))]
    assert {i: found.get(i, i) for i in range(len(marks))} == dict(enumerate(firsts)) and len(found) > 150


def test_a_hundred_thousand_pictures_are_compared():
    bits = np.random.default_rng(1).integers(0, 2**63, 100_000).tolist()
    assert find_alike([*map(mark_of, bits), mark_of(bits[7] ^ 0b101)]) == {100_000: 7}


def test_those_of_a_folder_are_named_and_used(tmp_path: Path):
    for path in DEMO[:3]:
        picture = open_picture(path)
        picture.save(tmp_path / path.name)
        (tmp_path / path.name).with_suffix(".txt").write_text(path.stem)
    compressed(open_picture(DEMO[0])).save(tmp_path / "zz.jpg")
    (tmp_path / "zz.txt").write_text("again")
    for cache in (tmp_path / "cache", tmp_path / "cache"):  # looked at, then remembered
        found = examine(Data(folder=str(tmp_path)), cache=cache)
        assert found.notes == [f"1 nearly the same as another picture, used all the same: zz.jpg (like {DEMO[0].name})"]
        assert len(found.train + found.heldout) == 4
