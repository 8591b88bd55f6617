"""`check`, `plan` and `train` say the same of a folder: what is used, how much is held out, why a run would stop."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spinlite.cli.plan import _count
from spinlite.config.load import load_settings
from spinlite.data.records import Survey, count_pictures
from spinlite.errors import SpinliteError
from spinlite.runs.run import Run
from spinlite.training.pictures import survey_pictures
from tests.conftest import Command
from tests.toy import TOY, Quiet


def fill(folder: Path, count: int, size: int = 16, caption: Callable[[int], str | None] = lambda i: f"caption {i}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (size, size), (i, size, 7)).save(folder / f"p{size}-{i:02}.png")
        if (text := caption(i)) is not None:
            (folder / f"p{size}-{i:02}.txt").write_text(text)
    return folder


def broken(folder: Path, count: int) -> None:
    for path in sorted(folder.glob("*.png"))[:count]:
        path.write_bytes(b"")


def twice(folder: Path) -> None:
    for path in sorted(folder.glob("*")):
        shutil.copy(path, folder / f"again-{path.name}")


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "24 pictures": lambda f: fill(f, 24),
    "one trigger word for all": lambda f: fill(f, 24, caption=lambda i: "sks"),
    "a few captions": lambda f: fill(f, 30, caption=lambda i: f"caption {i % 4}"),
    "too small ones among them": lambda f: (fill(f, 24), fill(f, 2, 4)),
    "too many that are too small": lambda f: (fill(f, 20), fill(f, 9, 4)),
    "too many broken ones": lambda f: (fill(f, 20), broken(f, 3)),
    "some broken ones": lambda f: (fill(f, 40), broken(f, 4)),
    "everything twice": lambda f: (fill(f, 20), twice(f)),
    "eight pictures": lambda f: fill(f, 8),
    "two pictures": lambda f: fill(f, 2),
    "one picture": lambda f: fill(f, 1),
    "nothing": lambda f: fill(f, 0),
    "some without caption": lambda f: fill(f, 20, caption=lambda i: f"caption {i}" if i % 3 else None),
    "none with a caption": lambda f: fill(f, 20, caption=lambda i: None),
    "kohya's folders": lambda f: (fill(f / "10_sks cat", 15, caption=lambda i: None), fill(f / "0_no", 4, 20), fill(f, 1, 24)),
    "the parent of the pictures": lambda f: fill(f / "img", 20),
}
RULES = ((), ("data.uncaptioned=name",), ("data.uncaptioned=error",), ("data.lines=each", "data.max_unusable=0.5"))


def in_a_run(folder: Path, runs: Path, rules: tuple[str, ...]) -> Survey | SpinliteError:
    try:
        return survey_pictures(Run(runs / "r", load_settings(TOY, rules, data__folder=str(folder))), Quiet())
    except SpinliteError as error:
        return error


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: " ".join(rules) or "default")
@pytest.mark.parametrize("name", FOLDERS)
def test_all_three_say_the_same(name: str, rules: tuple[str, ...], tmp_path: Path, command: Command):
    folder = tmp_path / "pictures"
    FOLDERS[name](folder)
    sets = [word for rule in rules for word in ("--set", rule)]
    run = in_a_run(folder, tmp_path / "runs", rules)
    for full in ([], ["--full"]):
        ended = command("check", folder, "--preset", TOY, "--json", *full, *sets)
        found = json.loads(ended.out)
        if isinstance(run, SpinliteError):
            assert (ended.code, found["problem"], found["fix"]) == (1, run.problem, run.fix)
            with pytest.raises(SpinliteError) as caught:
                _count(TOY, str(folder), list(rules))
            assert (caught.value.problem, caught.value.fix) == (run.problem, run.fix)
        else:
            counts = [count_pictures(run.train), count_pictures(run.heldout)]
            assert not ended.code and [found["learned"], found["heldout"]] == counts and found["problem"] is None
            count = _count(TOY, str(folder), list(rules))
            assert [count.train, count.heldout] == [len(run.train), len(run.heldout)]
            words = count.words
            assert re.findall(r"\d+", words)[:2] == list(map(str, counts)) and ("too few" in words) == bool(found["few"])


@pytest.mark.parametrize("words", [("check", ""), ("plan", TOY, "--data", ""), ("train", TOY, "--data", "")], ids=str)
def test_an_empty_name_is_not_this_folder(words: tuple[str, ...], command: Command):
    problem, fix = command(*words).error()
    assert "empty" in problem and "my-pictures" in fix


def test_a_plan_counts_the_pictures_that_a_preset_names(tmp_path: Path):
    fill(tmp_path / "own", 20)
    preset = tmp_path / "own.toml"
    preset.write_text(f"extends = {json.dumps(TOY)}\n[data]\nfolder = {json.dumps(str(tmp_path / 'own'))}\n")
    assert astuple(_count(str(preset), None, []))[:2] == (16, 4)
    assert astuple(_count(TOY, None, []))[:2] == (90, 10)
    assert "data set" in _count(TOY, None, ["data.dataset=some/body"]).words
