"""`spinlite evaluate` from end to end on the toy: paired figures, resumption, and what does not go together."""

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from spinlite.config.load import load_settings
from spinlite.config.settings import Play, Settings
from spinlite.evaluate.drawing import samplers
from spinlite.evaluate.evaluate import Request, _samplings, evaluate
from spinlite.evaluate.looking import Shown, look_at
from spinlite.evaluate.prompts import as_records
from spinlite.evaluate.scorer import Network
from spinlite.evaluate.studio import open_file
from spinlite.evaluate.weights import Weights
from spinlite.families.load import load_family
from spinlite.memory.device import choose_device
from spinlite.runs.disk import read_lines
from spinlite.selfplay import train
from tests.conftest import Command
from tests.toy import TOY, Quiet, changed


def four_pixels(pictures: Sequence[Image.Image], stages: Sequence[int] = ()) -> Tensor:
    """For what does not depend on the network."""
    return torch.stack([torch.frombuffer(bytearray(p.resize((2, 2)).tobytes()), dtype=torch.uint8) for p in pictures]) / 255


class Trained(NamedTuple):
    folder: Path
    reals: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of the toy, for all tests of this file."""
    root = tmp_path_factory.mktemp("evaluate")
    (root / "swatches").mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 0, 250 - 10 * i)).save(root / "swatches" / f"p{i:02}.png")
        (root / "swatches" / f"p{i:02}.txt").write_text(f"{'red' if i > 11 else 'blue'} {i % 4}", encoding="utf-8")
    settings = load_settings(TOY, ["learn.updates=4", "judge.stop=false"], data__folder=str(root / "swatches"))
    train(settings, root / "runs" / "toy", Quiet())
    return Trained(root / "runs" / "toy", root / "swatches")


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinlite.evaluate.offline.styles", four_pixels)


@pytest.mark.usefixtures("pixels")
def test_a_run_is_judged_by_two_samplers_and_all_is_kept(trained: Trained, command: Command, tmp_path: Path):
    words = ["evaluate", trained.folder, "--prompts", trained.reals, "--scorers", "kid,spread", "--rounds", "all"]
    found = json.loads(command(*words, "-o", tmp_path / "out", "--json").out)
    rows = found["rows"]
    names = ["base", "toy-1", "toy-2"]
    assert [(row["model"], row["own"]) for row in rows[:-1]] == [(name, own) for own in (True, False) for name in names]
    assert len({row["sampler"] for row in rows[:-1]}) == 2 and found["count"] == 24 and "real pictures" in rows[-1]["model"]
    base, last = (row["figures"]["kid"] for row in (rows[3], rows[5]))
    moved = last["mean"]["value"] - base["mean"]["value"]
    assert base["change"] is None and last["change"]["by"]["value"] == pytest.approx(moved) and last["change"]["wins"] is None
    assert rows[5]["way"] == pytest.approx(moved / (rows[-1]["figures"]["kid"]["mean"]["value"] - base["mean"]["value"]))

    def kept() -> dict[Path, int]:
        places = (tmp_path / "out", trained.folder.parent / "cache")
        return {path: path.stat().st_mtime_ns for place in places for path in place.rglob("*.*") if "results" not in path.name}

    before = kept()
    shown = command(*words, "-o", tmp_path / "out").out
    assert "no fakes came from it" in shown and f"{base['mean']['value']:.2f}" in shown
    assert {path: at for path, at in kept().items() if path.suffix != ".html"} == {
        path: at for path, at in before.items() if path.suffix != ".html"
    }
    command(*words, "-o", tmp_path / "out", "--seeds", "2")
    assert before.keys() < kept().keys()


@pytest.mark.usefixtures("pixels")
def test_the_base_is_drawn_alike_in_every_run(trained: Trained, command: Command, tmp_path: Path):
    settings = changed(load_settings(TOY, ["learn.updates=2"], data__folder=str(trained.reals)), run__seed=7, run__rounds=1)
    train(settings, tmp_path / "other" / "toy", Quiet())
    figures = []
    for run in (trained.folder, tmp_path / "other" / "toy"):
        words = ["--prompts", trained.reals, "--scorers", "kid", "--steps", "4", "--rounds", "1", "--json"]
        rows = json.loads(command("evaluate", run, *words).out)["rows"]
        figures.append([row["figures"]["kid"]["mean"]["value"] for row in rows[:2]])
    assert figures[0][0] == figures[1][0] and figures[0][1] != figures[1][1]
    problem, fix = command("evaluate", trained.folder, tmp_path / "other" / "toy", *words).error()
    assert "called toy-1" in problem and "rename" in fix


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (["--scorers", "beauty"], "no scorer 'beauty'", "pickscore"),
        (["--scorers", "look", "--prompts", "heldout"], "the demo's pictures alone", "--prompts demo"),
        (["--scorers", "diversity", "--prompts", "heldout"], "pictures of one prompt", "--seeds 4"),
        (["--scorers", "kid", "--prompts", "@TEXT"], "has too few", "--prompts FOLDER"),
        (["--scorers", "kid", "--prompts", "nowhere"], "'nowhere'", "parti"),
        (["--scorers", "pickscore", "--prompts", "parti"], "can't be read from the hub", "prompts.txt"),
        (["--scorers", "pickscore", "--prompts", "@TEXT"], "no weights for pickscore_v1", "--weights pickscore_v1=FILE"),
        (["--rounds", "9", "--scorers", "spread"], "has no round 9", "all, best, last"),
        (["--rounds", "two", "--scorers", "spread"], "is not a round", "numbers such as"),
        (["--weights", "beauty=x.pt"], "no weights called 'beauty'", "hps_v2.1"),
        (["--scorers", "hps", "--weights", "hps=x.pt"], "x.pt, the weights for hps_v2.1, is not there", "check --weights"),
        (["--weights", "hps"], "not NAME=FILE", "--weights hps_v2.1="),
    ],
)
def test_what_does_not_go_together_is_said(
    words: list[str], problem: str, fix: str, trained: Trained, command: Command, tmp_path: Path
):
    (tmp_path / "few.txt").write_text("a red thing\n\na blue one\n", encoding="utf-8")
    words = [str(tmp_path / "few.txt") if word == "@TEXT" else word for word in words]
    said = command("evaluate", trained.folder, *words).error()
    assert problem in said[0] and fix in said[1], said


def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path):
    assert "is not a run" in command("evaluate", tmp_path).error()[0]


def test_the_second_sampler_is_a_good_one_and_never_the_runs_own():
    base = load_family(Settings().model, choose_device())
    for own in (Play(steps=8, guidance=2.0, points=4), Play(steps=30, guidance=2.0), Play(sampler="euler-a", steps=50)):
        (mine, yes), (good, no) = samplers(base, own)
        assert yes and not no and mine.points == 0 and good.steps >= 30 and good.guidance == own.guidance
        assert good.spacing == "trailing" and good.model_dump() != mine.model_dump()


def test_a_lora_file_without_a_run_has_no_fakes_and_is_drawn_once():
    device = choose_device()
    studio = open_file(None, Settings().model, device, Play(), Path("cache"))
    ((good, own),) = _samplings(studio, {}, fakes=False)
    assert good.steps == 30 and not own
    for fakes in (False, True):
        ((asked, own),) = _samplings(studio, {"steps": Play().steps}, fakes)
        assert asked.steps == Play().steps and own == fakes


def test_a_prompt_that_comes_twice_is_drawn_from_another_noise():
    first, other, again = as_records(["a cat", "a dog", "a cat"])
    assert first.caption == again.caption and len({first.key, other.key, again.key}) == 3
    assert [r.key for r in as_records(["a dog", "a cat"])] == [other.key, first.key]  # whatever the set


def test_a_network_leaves_memory_sees_a_picture_once_and_again_with_other_weights(tmp_path: Path):
    class Net:
        count, alive = 0, weakref.WeakSet["Net"]()

        def __init__(self) -> None:
            self.alive.add(self)
            assert len(self.alive) == 1  # one in memory at a time

        def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            Net.count += len(pictures)
            return {"x": torch.tensor([float(len(text)) for text in prompts])}

    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    groups = {name: Shown([[tmp_path / f"{name}.png"]], ["red"]) for name in "abc"}
    weights, watch = Weights(choose_device()), Quiet()
    for name in ("one", "two"):
        seen = look_at(Network(name, lambda weights: Net()), groups, weights, tmp_path / "seen", watch)
        assert {place: found["x"].tolist() for place, found in seen.items()} == {place: [[3.0]] for place in "abc"}
        assert not Net.alive
    assert Net.count == 2 * 2  # a and b are the same picture with the same prompt
    (tmp_path / "w.safetensors").write_bytes(b"other")
    for given, count in (({}, 4), ({"two": tmp_path / "w.safetensors"}, 6)):
        look_at(Network("two", lambda weights: Net()), groups, Weights(choose_device(), given), tmp_path / "seen", watch)
        assert Net.count == count


@pytest.mark.usefixtures("pixels")
def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(trained: Trained, tmp_path: Path):
    request = Request([trained.folder], prompts=str(trained.reals), scorers=["kid"], sampling={"steps": 3}, rounds="all")
    for phase, when in (("toy-1 · 3 steps · 1/1", 8), ("score · lite0", 32)):
        with pytest.raises(KeyboardInterrupt):
            evaluate(request, tmp_path / "torn", Quiet(lambda title, done, p=phase, w=when: title == p and done >= w))
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "torn").rglob("*.png")}
    assert drawn
    torn, whole = (evaluate(request, tmp_path / name, Quiet()) for name in ("torn", "whole"))
    assert [row.figures for row in torn.rows] == [row.figures for row in whole.rows]
    ours = read_lines(trained.folder / "caches.txt")  # what `spinlite runs clean` may free
    assert {f"fake/{path.name}" for path in (trained.folder.parent / "cache" / "fake").iterdir()} <= ours
    assert all(path.stat().st_mtime_ns == at for path, at in drawn.items())


def test_lora_files_and_a_text_file_of_prompts(trained: Trained, command: Command, tmp_path: Path):
    """The exported LoRA of a run draws as its round does; the base is the same."""
    (tmp_path / "prompts.txt").write_text("red 1\nblue 2\nred 1\n", encoding="utf-8")
    words = ["--prompts", tmp_path / "prompts.txt", "--scorers", "spread", "--steps", "4", "--json"]
    command("export", trained.folder, "--round", "2", "--dtype", "fp32", "-o", tmp_path / "style")
    run = json.loads(command("evaluate", trained.folder, tmp_path / "style.safetensors", "--rounds", "2", *words).out)
    assert [row["model"] for row in run["rows"]] == ["base", "toy-2", "style"] and run["count"] == 3
    base, round_, file = (row["figures"]["spread"]["mean"]["value"] for row in run["rows"])
    assert file == pytest.approx(round_, rel=1e-3) and abs(base - file) > 1e-3
