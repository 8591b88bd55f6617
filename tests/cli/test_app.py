"""The command line where something is wrong: two lines on the error stream, exit code 1, nothing lost."""

import ast
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console as Screen

import spinlite
from spinlite.cli.console import Console
from spinlite.training import learn as learn_module
from tests.conftest import Command, Ended
from tests.toy import TOY

QUICK = ("--set", "learn.updates=2", "--set", "judge.draws=1", "--set", "run.rounds=1")
HOSTILE = ["[bold]x[/] [/red]", "[/red]", "[link=x]y", "[b", "\\[b]", "[[b]]", ":heart: :x:", "{x} %s", "C:\\new\\"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's own files")
Files = dict[str, bytes]


def contents(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def content_of(lora: bytes) -> bytes:
    """The data of a safetensors file; its header tells the time."""
    return lora[8 + int.from_bytes(lora[:8], "little") :]


def python(code: str, folder: Path) -> Ended:
    """A fresh interpreter."""
    paths = os.pathsep.join([str(Path(spinlite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=folder, timeout=60,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


# What is asked for


def test_without_a_command_there_is_help(command: Command):
    ended = command()
    assert ended.code == 0 and not ended.err
    assert "Usage: spinlite" in ended.out and "train" in ended.out and "presets" in ended.out


WRONG = {
    "command": (["trian", "demo"], "No such command 'trian'", "type `spinlite train`"),
    "no-preset": (["train"], "Missing argument", "type e.g. spinlite train sdxl-12gb"),
    "option": (["train", "demo", "--bogus"], "No such option: --bogus", "spinlite train --help"),
    "rounds-text": (["train", "demo", "--rounds", "many"], "rounds = 'many' in [run] should be a whole", "type --rounds 3"),
    "rounds": (
        ["train", "demo", "--rounds", "0"],
        "rounds = 0 in [run] should be a whole number, at least 1",
        "type --rounds 1",
    ),
    "option-value": (["bench", "demo", "--steps", "many"], "Invalid value for '--steps'", "spinlite bench --help"),
    "preset": (["train", "dmo"], "no preset 'dmo'", "did you mean 'demo'?"),
    "section": (["train", "demo", "--set", "lern.updates=3"], "unknown section [lern]", "did you mean 'learn'?"),
    "key": (["train", "demo", "--set", "learn.updatse=3"], "unknown key 'updatse' in [learn]", "did you mean 'updates'?"),
    "type": (["train", "demo", "--set", "learn.updates=many"], "updates = 'many' in [learn] should be", "learn.updates"),
    "range": (["train", "demo", "--lr", "5"], "lr = 5 in [learn] should be a number, above 0 and at most 1", "type --lr 1"),
    "method": (["train", "demo", "--set", "method.name=sppin"], "unknown method 'sppin'", "did you mean 'spin'?"),
    "syntax": (["train", "demo", "--set", "learn"], "'learn' is not section.key=value", "e.g. --set"),
    "no-data": (["train", TOY], "no pictures to train on were given", "--data FOLDER"),
    "data": (["train", TOY, "--data", "nowhere"], "there is no folder nowhere", "--data"),
    "empty-data": (["train", TOY, "--data", "."], "has 0 pictures", "name.png + name.txt"),
    "markup": (["train", TOY, "--data", "[bold]x[/] [/red]"], "there is no folder [bold]x[/] [/red]", "--data"),
}


@pytest.mark.parametrize(("words", "problem", "fix"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_answered_in_two_lines(command: Command, words: list[str], problem: str, fix: str):
    said = command(*words).error()
    assert problem in said[0] and fix in said[1]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "cache", "/tmp"])
def test_a_name_that_is_no_folder_of_runs_is_refused(command: Command, name: str):
    problem, fix = command("train", "demo", "--name", name).error()
    assert problem.startswith(f"{name!r} can't be a run's name") and "--name" in fix
    assert not list(Path.cwd().iterdir())


def test_a_broken_picture_folder_is_answered_in_two_lines(command: Command, swatches: Path):
    for i in range(9):
        (swatches / f"p{i}.png").write_bytes(b"")
    problem, _ = command("train", TOY, "--data", swatches).error()
    assert "9 of 40 files" in problem and "p0.png: empty file" in problem and problem.endswith("and 4 more")


def test_what_is_left_out_is_said_before_the_training(command: Command, swatches: Path):
    (swatches / "p0.txt").unlink()
    (swatches / "p1.png").unlink()
    (swatches / "p2.png").write_bytes(b"")
    frames = [Image.new("RGB", (8, 8), color) for color in ("white", "black")]
    frames[0].save(swatches / "p1.gif", save_all=True, append_images=frames[1:])
    (swatches / "alone.txt").write_text("no picture")
    ended = command("train", TOY, "--data", swatches, *QUICK)
    assert ended.code == 0 and not ended.err
    for line in (
        "1 pictures without caption, left out: p0.png", "1 captions without a picture, ignored: alone.txt",
        "1 file can't be used: p2.png: empty file", "1 with several frames; only the first is used: p1.gif",
    ):  # fmt: skip
        assert line in ended.out and ended.out.index(line) < ended.out.index("round 1")


@linux
def test_a_folder_name_that_is_not_utf_8_is_refused(command: Command):
    problem, fix = command("train", TOY, "--data", os.fsdecode(b"caf\xe9")).error()
    assert problem == r"'caf\udce9' is not UTF-8" and "rename" in fix


# The run folder


def test_a_run_made_with_other_settings_is_left_as_it_is(command: Command, swatches: Path):
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0
    before = contents(Path("runs"))
    problem, fix = command("train", TOY, "--data", swatches, *QUICK, "--set", "learn.lr=0.02", "--set", "play.steps=5").error()
    assert "learn.lr = 0.01 there, 0.02 now" in problem and "play.steps = 4 there, 5 now" in problem
    assert "updates" not in problem
    assert "--name" in fix and "delete" not in fix
    assert contents(Path("runs")) == before
    assert command("train", TOY, "--data", swatches, *QUICK, "--set", "learn.lr=0.02", "--name", "other").code == 0


def test_a_first_try_that_failed_does_not_bind_the_second(command: Command, swatches: Path):
    """Until something is made, there is nothing that other settings would spoil."""
    command("train", TOY, "--data", "nowhere").error()
    command("train", TOY, "--data", swatches, "--set", "model.base=x").error()
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0


@pytest.mark.parametrize("taken", ["runs", "runs/toy", "runs/cache", "runs/toy/snapshots"])
def test_a_file_in_the_way_of_a_folder_is_named(command: Command, swatches: Path, taken: str):
    Path(taken).parent.mkdir(parents=True, exist_ok=True)
    Path(taken).write_text("mine")
    problem, fix = command("train", TOY, "--data", swatches, *QUICK).error()
    assert str(Path(taken)) in problem and "read and written" in fix
    assert Path(taken).read_text() == "mine"
    Path(taken).unlink()
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0


@linux
def test_a_place_that_takes_no_folders_is_named(command: Command, swatches: Path):
    problem, fix = command("train", TOY, "--data", swatches, "--runs", "/proc/runs").error()
    assert "/proc/runs" in problem and "written" in fix


WRITTEN = ["settings.toml", "state.safetensors", "snapshots/1.safetensors", "samples/round-1.png", "export/toy.safetensors"]


def test_a_full_disk_costs_nothing_but_the_time_to_free_some_space(
    command: Command, swatches: Path, monkeypatch: pytest.MonkeyPatch
):
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0
    whole = contents(Path("runs/toy"))
    for name in WRITTEN:
        shutil.rmtree("runs")

        def full(draft: Any, path: Any, name: str = name, replace: Any = os.replace) -> None:
            if Path(path).as_posix().endswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(draft, path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            problem, fix = command("train", TOY, "--data", swatches, *QUICK).error()
        assert problem.startswith("the disk is full: runs") and name in problem.replace(os.sep, "/")
        assert "free some space" in fix and not list(Path("runs").rglob("*.part"))
        assert command("train", TOY, "--data", swatches, *QUICK).code == 0, name
        now = contents(Path("runs/toy"))
        assert set(now) == set(whole)
        for each in ("snapshots/1.safetensors", "samples/round-1.png", "settings.toml"):
            assert now[each] == whole[each], (name, each)
        assert content_of(now["export/toy.safetensors"]) == content_of(whole["export/toy.safetensors"]), name


def test_ctrl_c_says_that_nothing_is_lost_and_it_is_true(command: Command, swatches: Path, monkeypatch: pytest.MonkeyPatch):
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0
    whole = contents(Path("runs/toy/snapshots"))
    shutil.rmtree("runs")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learn_module, "learn", interrupted)
        ended = command("train", TOY, "--data", swatches, *QUICK)
    assert ended.code == 130 and not ended.err and "Traceback" not in ended.out
    assert "Nothing is lost: type the same command again to go on from here." in ended.out
    assert command("train", TOY, "--data", swatches, *QUICK).code == 0
    assert contents(Path("runs/toy/snapshots")) == whole


# What a person sees


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]):
    console = Console()
    console.say(text)
    console.error(text, text)
    console.show_facts({"data": text})
    with console.phase(text, 3) as progress:
        progress(1, 3, loss=0.5)
    out, err = capsys.readouterr()
    said, fact, phase = out.splitlines()
    assert said == text and fact.split(maxsplit=1) == ["data", text] and phase.startswith(f"  {text} ")
    assert err.splitlines() == [f"error: {text}", f"fix:   {text}"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_is_in_a_terminal(text: str, capsys: pytest.CaptureFixture[str]):
    console = Console(Screen(force_terminal=True, color_system=None, width=120, highlight=False, soft_wrap=True))
    console.say(text)
    with console.phase(text, 3) as progress:
        progress(1, 3, loss=0.5)
        progress(3, 3, loss=0.25)
    out, _ = capsys.readouterr()
    assert out.splitlines()[0] == text
    assert f"{text} " in out.split("0/3")[0].removeprefix(text)


def test_names_and_captions_that_look_like_markup_change_nothing(command: Command, swatches: Path):
    folder = swatches.rename(swatches.parent / "[red]swatches[bold]")
    for i, text in enumerate(HOSTILE):
        (folder / f"p{i}.txt").write_text(text)
    (folder / "p20.png").rename(folder / "[bold]x[red].png")
    (folder / "[blue]y.png").write_bytes(b"")
    ended = command("train", TOY, "--data", folder, *QUICK, "--set", "judge.prompts=32", "--set", "data.heldout=0.5")
    assert ended.code == 0 and not ended.err
    for line in ("([red]swatches[bold])", "left out: [bold]x[red].png", "can't be used: [blue]y.png: empty file"):
        assert line.removeprefix("(") in ended.out


# The computer


def test_help_is_there_without_torch(tmp_path: Path):
    """A missing torch is one clear error, and `--help` does not even look for it."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['spinlite', {words}]; from spinlite.cli.app import main; main()"
    )
    ended = python(code.format(words="'--help'"), tmp_path)
    assert ended.code == 0 and "train" in ended.out and not ended.err
    problem, fix = python(code.format(words="'train', 'demo'"), tmp_path).error()
    assert "torch" in problem and "pip install" in fix


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch):
    path = Path(spinlite.__file__)
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))  # else an old Python would say "invalid syntax"
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    with pytest.raises(SystemExit) as caught:
        exec(compile(source, path, "exec"), {})
    ended = Ended(1 if isinstance(caught.value.code, str) else caught.value.code, "", str(caught.value.code))
    problem, fix = ended.error()
    assert problem == "spinlite needs Python 3.11 or newer, this is 3.10" and "install a newer Python" in fix


def test_this_python_is_new_enough():
    assert sys.version_info >= (3, 11) and spinlite.__version__


def test_a_comment_that_windows_hands_over_is_no_argument(command: Command):
    assert command("presets", "show", "demo", "#", "every", "setting") == command("presets", "show", "demo")
