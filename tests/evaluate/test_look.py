"""The demo's judges of look and alignment tell what they should."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFilter

from spinlite.data.pictures import open_picture
from spinlite.errors import SpinliteError
from spinlite.evaluate.kid import estimate, off_diagonal
from spinlite.evaluate.look import STYLES, Look, head, styles
from spinlite.evaluate.offline import COLUMNS
from spinlite.evaluate.prompts import JUDGE, Prompts, read_pictures
from spinlite.evaluate.scorer import Ground
from spinlite.evaluate.towers import Towers
from spinlite.evaluate.weights import Weights
from spinlite.memory.device import choose_device

BY_NAME = {column.name: column for column in COLUMNS}


def test_scores_are_means_over_seeds_and_follow_the_pictures(monkeypatch: pytest.MonkeyPatch):
    look = Look(head(), 1.0)
    monkeypatch.setattr("spinlite.evaluate.offline._judge_of_look", lambda: look)
    pictures = torch.randn(6, 1280 + STYLES, generator=torch.Generator().manual_seed(0))
    ground = Ground(Prompts("", [], True), {"seen": pictures}, Weights(choose_device()))
    one = look.score(pictures)
    assert set(one.tolist()) <= {0.0, 1.0}
    column = BY_NAME["look"]
    twice = column.per_prompt(column.score({"seen": torch.stack([pictures, pictures.flip(0)], 1)}, ground))
    assert twice.tolist() == (50 * (one + look.score(pictures.flip(0)))).tolist()
    same = BY_NAME["kid"].score({"seen": pictures[:, None]}, ground)
    assert off_diagonal(same) == pytest.approx(0, abs=1e-9) and estimate(same).value == pytest.approx(0, abs=1e-6)


def test_spread_is_the_mean_distance_between_prompts():
    shown = torch.zeros(3, 1, 1280)
    shown[1:, 0, :2] = torch.tensor([3.0, 4.0])
    column = BY_NAME["spread"]
    ground = Ground(Prompts("", [], False), {}, Weights(choose_device()))
    found = column.estimate(column.score({"seen": shown}, ground))
    assert found.value == pytest.approx(10 / 3)


def test_a_look_is_read_back_as_it_was(tmp_path: Path):
    look, pictures = Look(head(), 0.9), torch.randn(64, 1280 + STYLES)
    look.save(tmp_path / "look.safetensors")
    again = Look.load(tmp_path / "look.safetensors")
    assert again.accuracy == 0.9 and (again.score(pictures) == look.score(pictures)).double().mean() > 0.95
    with pytest.raises(SpinliteError, match="is not there"):
        Look.load(tmp_path / "other.safetensors")


def test_the_shipped_judges_tell_the_users_look_and_captions_from_others():
    """Pictures that none of them learnt from: as they are, on a ground, and blurred; captions right and shifted."""
    pytest.importorskip("efficientnet_lite_pytorch")
    records = read_pictures(JUDGE)[::8]
    shown, look, towers = [open_picture(r.path) for r in records], Look.load(), Towers.load()
    reals = styles(shown)
    assert look.accuracy > 0.9 and look.score(reals).mean() > 0.8
    ground = styles([ImageChops.multiply(picture, Image.new("RGB", picture.size, "#3060c0")) for picture in shown])
    soft = styles([picture.filter(ImageFilter.GaussianBlur(2)) for picture in shown])
    assert look.score(ground).mean() < 0.1 and look.score(soft).mean() < 0.5
    captions = [r.caption for r in records]
    both = captions, captions[1:] + captions[:1]
    right, wrong = (towers.score(reals[:, :1280], words)["alignment"].mean() for words in both)
    assert right > wrong + 20 and towers.knows(captions) and not towers.knows(["no such thing"])
