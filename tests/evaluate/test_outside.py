"""The outside judges: a look and an alignment that tell what they should, and a run from end to end by two samplers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from spinlite.cli.console import Console
from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Play, Settings
from spinlite.data.pictures import open_picture
from spinlite.errors import SpinliteError
from spinlite.evaluate import look as looks
from spinlite.evaluate import outside
from spinlite.evaluate.__main__ import judges_of, main
from spinlite.evaluate.kid import estimate, off_diagonal
from spinlite.evaluate.look import STYLES, Look, head, styles
from spinlite.evaluate.outside import Judges, judge, samplers
from spinlite.evaluate.towers import Towers
from spinlite.families.load import load_family
from spinlite.selfplay import train

JUDGE = PACKAGE / "demo" / "judge"


def small(pictures: Sequence[Image.Image], stages: Sequence[int] = ()) -> Tensor:
    """Four pixels for features: for what does not depend on the network."""
    return torch.stack([torch.frombuffer(bytearray(p.resize((2, 2)).tobytes()), dtype=torch.uint8) for p in pictures]) / 255


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "features", small)


@pytest.mark.usefixtures("pixels")
def test_a_run_is_judged_round_by_round_by_two_samplers_and_its_samples_are_kept(
    toy: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, reals = tmp_path / "runs" / "toy", str(toy.data.folder)
    train(toy, folder, Console())
    capsys.readouterr()
    assert main([str(folder), "--reals", reals, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["round"], row["own"]) for row in found["rows"]] == [(k, own) for own in (True, False) for k in (0, 1, 2)]
    assert len({row["sampler"] for row in found["rows"]}) == 2 and found["reals"]["captions"] == 40
    base, last = found["rows"][3], found["rows"][-1]
    assert not base["to_base"] and base["way"] is None and set(last["figures"]) == {"kid"}
    moved = last["figures"]["kid"]["value"] - base["figures"]["kid"]["value"]
    assert last["to_base"]["kid"]["value"] == pytest.approx(moved)
    floor = found["through"]["toy"]["kid"]["value"]
    assert last["way"] == pytest.approx(moved / (floor - base["figures"]["kid"]["value"]))

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cache").rglob("*.safetensors")}

    before = kept()
    assert main([str(folder), "--reals", reals, "--rounds", "2"]) == 0
    told = capsys.readouterr().out
    assert f"{base['figures']['kid']['value']:.1f}" in told and "no fakes came from it" in told and kept() == before
    assert main([str(folder), "--reals", reals, "--draws", "2"]) == 0
    assert "40 captions, 2 samples each" in capsys.readouterr().out and before.items() < kept().items()


@pytest.mark.usefixtures("pixels")
def test_the_base_is_played_alike_in_every_run(toy: Settings, tmp_path: Path):
    judges, found = judges_of(Path(str(toy.data.folder))), []
    for name, seed in (("a", 1), ("b", 2)):
        settings = toy.model_copy(update={"run": toy.run.model_copy(update={"seed": seed, "rounds": 1})})
        train(settings, tmp_path / name / "run", Console())
        found.append(judge(tmp_path / name / "run", judges, 1, Console().phase).rows[:2])
    (base, one), (same_base, other) = found
    assert base == same_base and one != other


def test_the_second_sampler_is_a_good_one_and_never_the_runs_own():
    base = load_family(Settings().model, outside.device.choose_device())
    for own in (Play(steps=8, guidance=2.0, points=4), Play(steps=30, guidance=2.0), Play(sampler="euler-a", steps=50)):
        (mine, yes), (good, no) = samplers(base, own)
        assert yes and not no and mine.points == 0 and good.steps >= 30 and good.guidance == own.guidance
        assert good.spacing == "trailing" and good.model_dump() != mine.model_dump()


@pytest.mark.usefixtures("pixels")
def test_a_folder_that_is_no_run_is_refused(swatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path), "--reals", str(swatches)]) == 1
    assert "fix: name a run of" in capsys.readouterr().err
    for path in sorted(swatches.glob("*.png"))[7:]:
        path.unlink()
    assert main([str(tmp_path), "--reals", str(swatches)]) == 1
    assert "7 usable pictures; 8 is the least" in capsys.readouterr().err


def test_scores_are_means_over_draws_and_follow_the_pictures():
    look = Look(head(), 1.0)
    pictures = torch.randn(6, 1280 + STYLES, generator=torch.Generator().manual_seed(0))
    one = look.score(pictures)
    assert set(one.tolist()) <= {0.0, 1.0}
    judges = Judges([], torch.randn(6, 1280 + STYLES), look, None)
    twice = judges.score(torch.stack([pictures, pictures.flip(0)], 1))
    assert twice["look"].tolist() == (50 * (one + look.score(pictures.flip(0)))).tolist()
    same = judges.score(judges.reals[:, None])
    assert off_diagonal(same["kid"]) == pytest.approx(0, abs=1e-9) and estimate(same["kid"]).value == pytest.approx(0, abs=1e-6)


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
    judges = judges_of(JUDGE, 32)
    assert judges.look and judges.towers and judges.look.accuracy > 0.9
    shown = [open_picture(r.path) for r in judges.records]
    assert judges.look.score(judges.reals).mean() > 0.8
    ground = styles([ImageChops.multiply(picture, Image.new("RGB", picture.size, "#3060c0")) for picture in shown])
    soft = styles([picture.filter(ImageFilter.GaussianBlur(2)) for picture in shown])
    assert judges.look.score(ground).mean() < 0.1 and judges.look.score(soft).mean() < 0.5
    captions = [r.caption for r in judges.records]
    towers = Towers.load()
    both = captions, captions[1:] + captions[:1]
    right, wrong = (towers.score(judges.reals[:, :1280], words)["alignment"].mean() for words in both)
    assert right > wrong + 20 and towers.knows(captions) and not towers.knows(["no such thing"])
