"""What a run says at its end and when it goes on: what came of it, and commands that can be typed as they stand."""

import shlex
from pathlib import Path

import pytest

from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.training import guards, learn
from tests.conftest import Command
from tests.toy import TOY

GENTLE = ("--set", "method.beta=2.0", "--set", "method.anchor=0.05", "--set", "learn.lr=3e-3", "--set", "play.guidance=1.0")
SPOILT = ("--set", "method.name=sft", "--set", "learn.lr=0.3")


def end_of(out: str) -> str:
    """What is said after the LoRA files were written."""
    return out.rpartition("exported round")[2].partition("\n")[2]


def typed(out: str, name: str) -> list[str]:
    """The words of the command that stands after a heading of the end screen."""
    words = " ".join(out.partition(f"\n  {name} ")[2].split())
    for other in ("try it", "go on", "again", "yours", "learned", "sheet"):
        words = words.partition(f" {other} ")[0]
    command, *rest = shlex.split(words)
    assert command == "spinlite"
    return rest


def test_a_run_ends_with_its_lora_its_sheet_and_what_to_type_next(command: Command, swatches: Path):
    ended = command("train", TOY, "--data", swatches, *GENTLE, "--set", "learn.updates=40", "--set", "run.seed=2")
    run = Run.open_existing(Path("runs/toy"))
    assert ended.code == 0 and run.best == 2
    learned = run.events("begin")[0]["settings"]["train"]
    for line in (
        f"LoRA       {run.export_path} (round 2)", f"sheet      {run.sheet_path(2)} (before, after, and your pictures)",
        f"learned    80 steps in 2 rounds: each of {learned} captions was seen {80 * 8 / learned:.0f} times on average",
    ):  # fmt: skip
        assert line in ended.out
    assert "yours" not in end_of(ended.out) and "No round" not in ended.out
    further = typed(ended.out, "go on")
    assert further[-2:] == ["--rounds", "4"] and "round 3 of 4" in command(*further).out
    assert command(*typed(ended.out, "try it")).code == 0


def test_a_run_in_which_no_round_was_better_says_so_first_and_hands_over_no_empty_file(command: Command, swatches: Path):
    spoilt = [*SPOILT, "--set", "run.seed=1", "--set", "judge.stop=false"]
    words = ["train", TOY, "--data", str(swatches), *spoilt, "--rounds", "1"]
    ended = command(*words)
    run = Run.open_existing(Path("runs/toy"))
    assert ended.code == 0 and run.best == 0 and not run.export_path.exists()
    assert read_tensors(run.last_export_path)[1]["spinlite.round"] == "1"
    said = "No round was better than the base, so there is no toy.safetensors. The last round is in toy-last.safetensors: "
    end = end_of(ended.out)
    assert " ".join(end.split()).startswith(said) and "(best)" not in end
    assert f"last       {run.last_export_path} (round 1)" in end and "  LoRA " not in end
    assert typed(ended.out, "try it")[2:4] == ["--round", "last"]
    again = command(*words)
    assert said in " ".join(again.out.split()) and "runs/toy is complete" in again.out.replace("\\", "/")
    assert typed(again.out, "go on") == [*words[:-2], "--rounds", "3"]
    assert command("export", run.folder, "--round", "1").code == 0
    assert "changes nothing" in command("export", run.folder).out


def test_after_a_stop_the_way_on_is_a_gentler_run_of_its_own(command: Command, swatches: Path):
    ended = command("train", TOY, "--data", swatches, *SPOILT, "--set", "data.heldout=0.5", "--rounds", "6")
    assert ended.code == 0 and "A guard stopped the run: " in end_of(ended.out) and "go on" not in end_of(ended.out)
    again = typed(ended.out, "again")
    assert again[-4:] == ["--name", "toy-gentler", "--lr", "0.1"]
    assert command(*again, "--rounds", "1").code == 0 and Path("runs/toy-gentler").is_dir()


def test_a_resumed_run_says_from_where_it_goes_on(command: Command, swatches: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learn, "SAVE_SECONDS", 0.0)
    find, calls = guards.find_alarm, [0]

    def interrupted(*given: object) -> object:
        calls[0] += 1
        if calls[0] == 28:  # of 20 a round: after each update, before it is kept
            raise KeyboardInterrupt
        return find(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(guards, "find_alarm", interrupted)
    words = ["train", TOY, "--data", str(swatches), "--rounds", "2"]
    assert command(*words).code == 130
    ended = command(*words)
    assert ended.code == 0 and "going on from round 2, update 7" in ended.out
    assert "going on from round 3, from its beginning" in command(*words[:-1], "3").out
    assert "going on" not in command(*words[:-1], "3").out
