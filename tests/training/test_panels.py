"""The sheet of a round: what is where on it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from spinlite.training.panels import COLUMNS, write_panels
from spinlite.training.sheet import read_current


def flat(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def drawn(path: Path, count: int, steps: int) -> Image.Image:
    colours = {"the base": "#ff0000", "after round 2": "#00ff00", "yours": "#0000ff"}
    sides = {label: [flat(colour)] * count for label, colour in colours.items()}
    strips = [{f"step {i}": flat("#ffff00") for i in range(steps)}] * 2
    write_panels(path, "a run", [f"thing {i}" for i in range(count)], sides, strips)
    with Image.open(path) as image:
        return image.convert("RGB")


def share(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pictures of 128 px have this colour."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3)
    return round((pixels == torch.tensor(colour)).all(1).sum().item() / 128**2)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_every_picture_is_there_once_whole_and_side_by_side(tmp_path: Path, count: int):
    image = drawn(tmp_path / "round.png", count, 4)
    assert [share(image, c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [count] * 3
    assert share(image, (255, 255, 0)) == 8
    places = [min(x for x in range(image.width) for y in (70, 100) if image.getpixel((x, y)) == c)
              for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]  # fmt: skip
    assert places == sorted(places)


def test_the_sheet_says_which_picture_the_round_drew(tmp_path: Path):
    drawn(tmp_path / "round.png", 12, 3)
    found = read_current(tmp_path / "round.png")
    assert found and found.size == (128, 128) and found.convert("RGB").tobytes() == bytes((0, 255, 0)) * 128**2
    with Image.open(tmp_path / "round.png") as image:
        left, top, right, bottom = json.loads(image.info["spinlite current"])
    assert (right - left, bottom - top) == (128, 128) and left > COLUMNS * 128


def test_a_strip_longer_than_the_panels_widens_the_page(tmp_path: Path):
    image = drawn(tmp_path / "round.png", 1, 10)
    assert share(image, (255, 255, 0)) == 20
