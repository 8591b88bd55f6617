"""A person's choices: kept, taken back, counted, and left as pairs to learn from."""

from pathlib import Path

import pytest
import tomli_w
from PIL import Image

from spinlite.config.load import load_settings
from spinlite.data.survey import examine
from spinlite.runs.votes import METHODS, Vote, forget_votes_after, interval, read_votes, standing, undo, vote, write_preset


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "base.png", tmp_path / "round.png"
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(path)
    return paths


def test_a_choice_is_kept_with_its_pictures_and_can_be_taken_back(tmp_path: Path, pictures: tuple[Path, Path]):
    run = tmp_path / "run"
    run.mkdir()
    vote(run, "a cat", 1, "round", *pictures)
    vote(run, "a dog, “big”", 1, "base", *pictures)
    vote(run, "a hen", 1, "skip", *pictures)
    assert [(v.caption, v.chosen) for v in read_votes(run)] == [("a cat", "round"), ("a dog, “big”", "base"), ("a hen", "skip")]
    won = [(run / "votes" / "win" / f"{v.pair}.png").read_bytes() for v in read_votes(run)[:2]]
    assert won == [pictures[1].read_bytes(), pictures[0].read_bytes()]
    assert undo(run).caption == "a hen" and undo(run).caption == "a dog, “big”"  # pyright: ignore[reportOptionalMemberAccess]
    assert len([*run.glob("votes/*/*")]) == 3 and len(read_votes(run)) == 1
    undo(run)
    assert undo(run) is None and not [*run.glob("votes/*/*")]


@pytest.mark.parametrize("method", METHODS)
def test_choices_are_pairs_as_training_reads_them(method: str, tmp_path: Path, pictures: tuple[Path, Path]):
    run = tmp_path / "mine"
    (run / "export").mkdir(parents=True)
    (run / "export" / "mine.safetensors").touch()
    own = load_settings("demo", ["data.caption=[x]", "learn.lr=2e-4", "method.anchor=0.5"]).model_dump(exclude_none=True)
    (run / "settings.toml").write_text(tomli_w.dumps(own), encoding="utf-8")
    for i in range(12):
        vote(run, f"thing {i}", 1, "round" if i % 3 else "base", *pictures)
    settings = load_settings(str(write_preset(run, method)))
    assert settings.method["name"] == method and settings.model.init_lora == str(run / "export" / "mine.safetensors")
    assert settings.learn.lr == 2e-4 and not settings.data.caption and settings.model.targets == "all"
    found = examine(settings.data, settings.build_method().fakes == "given")
    records = found.train + found.heldout
    assert not found.stop and len(records) == 12 and all(record.lose_key for record in records)
    assert {record.caption for record in records} == {f"thing {i}" for i in range(12)}


def test_choices_on_rounds_that_are_made_again_are_forgotten(tmp_path: Path, pictures: tuple[Path, Path]):
    for k in (1, 2, 3):
        vote(tmp_path, "a cat", k, "round", *pictures)
    forget_votes_after(tmp_path, 1)
    assert [v.round for v in read_votes(tmp_path)] == [1] and len([*tmp_path.glob("votes/*/*")]) == 3


def test_how_a_round_stands_is_said_with_an_interval():
    votes = [Vote("", 2, chosen) for chosen in ["round"] * 14 + ["base"] * 3 + ["skip"] * 5] + [Vote("", 1, "skip")]
    assert standing(votes) == {2: "you preferred round 2 to the base in 14 of 17 (likely 59 to 94 % of the time)"}


@pytest.mark.parametrize(("won", "of", "low", "high"), [(14, 17, 0.5897, 0.9381), (0, 3, 0.0, 0.5615), (5, 10, 0.2366, 0.7634)])
def test_intervals_are_wilsons(won: int, of: int, low: float, high: float):
    assert interval(won, of) == pytest.approx((low, high), abs=1e-4)


def test_lines_that_are_no_votes_are_left_out(tmp_path: Path):
    (tmp_path / "votes.jsonl").write_text('{"caption": "a", "round": 1, "chosen": "base"}\n{\n[]\n{"x": 1}\n', encoding="utf-8")
    assert read_votes(tmp_path) == [Vote("a", 1, "base")]
