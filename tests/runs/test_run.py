"""What decides how a run goes on: its journal, the places that are named, the pictures themselves."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from spinlite.cli.console import Console
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.runs.changes import kept_settings
from spinlite.runs.journal import Journal
from spinlite.runs.run import Run
from spinlite.selfplay import train
from tests.conftest import Command
from tests.runs import faults
from tests.runs.faults import lora_of
from tests.toy import TOY, Quiet, changed

SMALL = ["method.name=spin", "learn.updates=2", "learn.batch=4", "learn.snapshot_every=0", "run.rounds=1"]
WORDS = [part for value in [*SMALL, "judge.draws=1", "play.steps=2", "data.heldout=0.3"] for part in ("--set", value)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return faults.pictures(tmp_path / "work" / "pics")


@pytest.fixture
def small(pictures: Path) -> Settings:
    settings = faults.settings_for(pictures)
    return changed(settings, method__name="spin", learn__updates=2, learn__batch=4, learn__snapshot_every=0)


def begun(settings: Settings, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(settings, folder, Quiet(lambda title, done: "round 2/2 · learn" in title))


def edited(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("lr = 0.01", "lr = 0.02"), encoding="utf-8")


@pytest.mark.parametrize("spoil", [Path.unlink, edited], ids=["deleted", "edited"])
def test_the_journal_and_not_settings_toml_says_what_the_run_was_made_with(spoil, small: Settings, tmp_path: Path):
    begun(small, tmp_path / "r")
    kept = tmp_path / "r" / "settings.toml"
    before = kept.read_bytes()
    spoil(kept)
    with pytest.raises(SpinliteError, match=r"learn\.lr = 0\.01 there, 0\.02 now"):
        train(changed(small, learn__lr=0.02), tmp_path / "r", Quiet())
    assert Run.open_existing(tmp_path / "r").settings == small
    assert len(train(small, tmp_path / "r", Quiet()).rounds) == 2 and kept.read_bytes() == before


def test_what_may_change_is_kept_in_the_journal(small: Settings, tmp_path: Path):
    train(small, tmp_path / "r", Quiet())
    train(changed(small, run__rounds=3), tmp_path / "r", Quiet())
    run = Run.open_existing(tmp_path / "r")
    assert run.settings.run.rounds == 3 and [e["changes"] for e in run.events("settings")] == [{"run.rounds": 3}]


@pytest.mark.parametrize(
    ("section", "said"),
    [({"learn": {"warmup": 3}}, "unknown key 'warmup'"), ({"extras": {"a": 1}}, "unknown key 'extras'")],
)
def test_settings_of_another_version_are_named_by_the_file(section: dict[str, object], said: str, tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.log("begin", settings={**section, "train": 3, "heldout": 1})
    with pytest.raises(SpinliteError) as caught:
        kept_settings(journal, tmp_path / "settings.toml")
    assert said in caught.value.problem and str(journal.path) in caught.value.problem and "--name" in caught.value.fix


@pytest.mark.parametrize("spelt", ["pics/", "./pics", "../work/pics", "absolute"])
def test_one_folder_may_be_spelt_in_several_ways(spelt: str, command: Command, pictures: Path):
    assert command("train", TOY, "--data", "pics", *WORDS).code == 0
    again = command("train", TOY, "--data", pictures if spelt == "absolute" else spelt, *WORDS)
    assert again.code == 0 and "is complete" in again.out, again


def test_another_folder_is_refused_and_nobody_is_told_to_delete_a_run(command: Command, pictures: Path):
    assert command("train", TOY, "--data", "pics", *WORDS).code == 0
    faults.pictures(Path("other"))
    problem, fix = command("train", TOY, "--data", "other", *WORDS).error()
    assert "data.folder = 'pics' there, 'other' now" in problem and "--name" in fix and "delete" not in fix


def test_a_folder_that_was_moved_is_the_same_if_its_pictures_are(small: Settings, pictures: Path, tmp_path: Path):
    train(small, tmp_path / "a" / "r", Quiet())
    begun(small, tmp_path / "b" / "r")
    pictures.rename(tmp_path / "moved")
    moved = changed(small, data__folder=str(tmp_path / "moved"))
    train(moved, tmp_path / "b" / "r", Quiet())
    assert lora_of(tmp_path / "a" / "r") == lora_of(tmp_path / "b" / "r")


def test_a_picture_that_was_only_renamed_has_not_changed(small: Settings, pictures: Path, tmp_path: Path):
    train(small, tmp_path / "a" / "r", Quiet())
    begun(small, tmp_path / "b" / "r")
    for old, new in {"p1": "z1", "p7": "a7"}.items():
        for ending in ("png", "txt"):
            (pictures / f"{old}.{ending}").rename(pictures / f"{new}.{ending}")
    train(small, tmp_path / "b" / "r", Quiet())
    assert lora_of(tmp_path / "a" / "r") == lora_of(tmp_path / "b" / "r")


def test_a_picture_that_did_change_is_named(small: Settings, pictures: Path, tmp_path: Path):
    begun(small, tmp_path / "r")
    (pictures / "p3.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(SpinliteError, match=r"captions have changed since .*: changed or gone: p3\.png"):
        train(small, tmp_path / "r", Quiet())


def test_an_export_that_is_gone_or_damaged_is_written_again(small: Settings, tmp_path: Path):
    train(small, tmp_path / "r", Quiet())
    whole, path = lora_of(tmp_path / "r"), next((tmp_path / "r" / "export").glob("*.safetensors"))
    for spoil in (Path.unlink, lambda each: each.write_bytes(each.read_bytes()[:50]), lambda each: faults.flip(each, 0.9)):
        spoil(path)
        watch = Quiet()
        again = train(small, tmp_path / "r", watch)
        assert not again.already and lora_of(tmp_path / "r") == whole and not any("learn" in title for title in watch.phases)
    assert train(small, tmp_path / "r", Quiet()).already


def test_a_broken_sheet_does_not_keep_the_lora_from_being_written(small: Settings, tmp_path: Path):
    outcome = train(small, tmp_path / "r", Quiet())
    written = next((tmp_path / "r" / "export").glob("*.safetensors"))
    written.unlink()
    for k in (1, 2):
        outcome.run.sheet_path(k).write_bytes(b"")
    assert not train(small, tmp_path / "r", Quiet()).already and written.exists()


def test_the_best_and_the_last_round_are_told_by_their_numbers(tmp_path: Path, small: Settings):
    run = Run(tmp_path / "r", small)
    (tmp_path / "r").mkdir()
    for k, error in ((3, 0.5), (4, 0.4), (6, 0.9)):
        run.log("judge", round=k, policy_real=error, previous_real=0.6)
    assert run.best == 4


BEST = {  # distances of rounds 1, 2, 3 from the pictures, the start at 0.3 and all errors 0.02; which is the best
    "the nearest": ([0.2, 0.1, 0.15], 2),
    "a later one that chance may put above it": ([0.2, 0.1, 0.125], 3),
    "none: all are further than the start": ([0.31, 0.4, 0.5], 0),
    "none, though chance may put it above the start": ([0.305, 0.4, 0.5], 0),
}


@pytest.mark.parametrize(("distances", "best"), BEST.values(), ids=BEST)
def test_the_best_round_is_the_nearest_to_the_pictures(distances: list[float], best: int, tmp_path: Path, small: Settings):
    run = judged(tmp_path / "r", small, distances)
    assert run.best == best


def test_the_best_round_has_hardly_a_larger_error_than_the_start_and_ended_no_run(tmp_path: Path, small: Settings):
    assert judged(tmp_path / "a", small, [0.2, 0.1, 0.05], errors=[0.5, 0.602, 0.61]).best == 2
    assert judged(tmp_path / "b", small, [0.2, 0.1, 0.05], stopped="samples are too far").best == 2
    run = judged(tmp_path / "c", small, [0.2, 0.1, 0.05])
    run.log("judge", round=4, policy_real=0.4, previous_real=0.6)  # by a version that measured no distances
    assert run.best == 4


def judged(
    folder: Path, settings: Settings, distances: list[float], errors: list[float] | None = None, stopped: str | None = None
) -> Run:
    """A run with a judge event for each distance, the last one with a reason to stop."""
    folder.mkdir()
    run = Run(folder, settings)
    for k, (distance, error) in enumerate(zip(distances, errors or [0.5] * len(distances), strict=True), 1):
        why = stopped if k == len(distances) else None
        run.log(
            "judge", round=k, policy_real=error, previous_real=0.6, start_distance=0.3, distance=distance, distance_error=0.02,
            stopped=why,
        )  # fmt: skip
    return run


def test_fakes_of_rounds_that_are_over_are_removed(small: Settings, tmp_path: Path):
    outcome = train(changed(small, run__rounds=4, judge__stop=False), tmp_path / "r", Quiet())
    stores = list((tmp_path / "cache" / "fake").iterdir())
    # Of round 1 to learn from, for other runs too; held-out ones of the base and each round; the last round's, to be compared.
    assert len(stores) == 1 + (1 + 4) + 1
    assert len(outcome.rounds) == 4


# The commands


def test_runs_are_listed_with_how_they_stand(command: Command, pictures: Path):
    assert "there are no runs" in command("runs").out
    assert command("train", TOY, "--data", "pics", *WORDS).code == 0
    shutil.copytree("runs/toy", "runs/cut")
    save = faults.journal_size(Path("runs/cut/state.safetensors"))
    Path("runs/cut/journal.jsonl").write_bytes(Path("runs/cut/journal.jsonl").read_bytes()[:save])
    for state in Path("runs/cut").glob("state*"):
        state.write_bytes(b"damaged")
    ended = command("runs")
    lines = {line.split()[0]: line.rstrip() for line in ended.out.splitlines() if line.startswith(("toy", "cut"))}
    assert lines["toy"].endswith("done") and "1 of 1" in lines["toy"] and "%" in lines["toy"]
    assert "can't go on" in " ".join(ended.out.split()) and ended.code == 0


def test_what_can_be_made_again_is_shown_and_freed(command: Command, pictures: Path):
    assert command("train", TOY, "--data", "pics", *WORDS).code == 0
    assert command("train", TOY, "--data", "pics", "--name", "b", *WORDS, "--set", "learn.lr=0.02").code == 0
    kept = {path: path.read_bytes() for path in Path("runs/toy").rglob("*") if path.suffix == ".safetensors"}
    shared = set(Path("runs/cache/real").rglob("*.safetensors"))
    freed = command("runs", "clean", "toy", "--yes")
    assert freed.code == 0 and "fake" in freed.out and "freed" in freed.out and "real" not in freed.out
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert set(Path("runs/cache/real").rglob("*.safetensors")) == shared, "the other run uses them"
    assert command("runs", "clean", "b", "--yes").code == 0
    assert "nothing to free" in command("runs", "clean", "toy", "--yes").out
    problem, fix = command("runs", "clean", "nobody").error()
    assert "no run 'nobody'" in problem and "b, toy" in fix


def test_a_run_goes_back_to_an_earlier_round_and_on_to_the_same_lora(command: Command, small: Settings, tmp_path: Path):
    train(small, tmp_path / "r", Quiet())
    whole = lora_of(tmp_path / "r")
    (tmp_path / "r" / "snapshots" / "2.safetensors").write_bytes(b"damaged")
    next((tmp_path / "r" / "export").glob("*.safetensors")).unlink()
    with pytest.raises(SpinliteError, match=r"2\.safetensors is damaged") as caught:
        train(small, tmp_path / "r", Quiet())
    words = caught.value.fix.partition("`spinlite ")[2].partition("`")[0].split()
    assert words[-2:] == ["--to", "1"]
    ended = command(*words, "--yes")
    assert ended.code == 0 and "stands at the end of round 1" in ended.out
    train(small, tmp_path / "r", Quiet())
    assert lora_of(tmp_path / "r") == whole


# Ctrl-C and SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no way to send Ctrl-C to one process")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no signals to send")
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_a_signal_ends_the_run_after_the_step_and_a_second_one_at_once(
    number: signal.Signals, times: int, pictures: Path, tmp_path: Path
):
    many = ["--set", "method.name=spin", "--set", "learn.updates=100000", "--set", "data.heldout=0.3"]
    words, said = ["train", TOY, "--data", str(pictures), "--runs", str(tmp_path / "runs"), *many], tmp_path / "said"

    def never_end_a_step() -> None:
        if times == 2:
            Console._stop_if_asked = lambda self: None

    child = faults.start(words, said, never_end_a_step)
    journal = tmp_path / "runs" / "toy" / "journal.jsonl"
    wait_for('"update"', journal, child)
    os.kill(child, number)
    if times == 2:
        wait_for("stopping after this step", said, child)
        os.kill(child, number)
    code, text = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text(encoding="utf-8")
    assert code == 130 and "Traceback" not in text and "stopping after this step" in text, text
    assert ("stopped at once. Nothing is lost" if times == 2 else "stopped. Nothing is lost") in text
    if times == 1:
        updates = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()][-1]["update"]
        state = Run.open_existing(journal.parent).state
        assert state["update"] == updates, "the last step was saved"


def wait_for(text: str, file: Path, child: int) -> None:
    while not (file.exists() and text in file.read_text(encoding="utf-8")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it has ended too soon"
        time.sleep(0.02)
