"""How commands end where nobody expected it, what reaches the terminal, and how long things will still take."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spinlite
from spinlite.__main__ import main
from spinlite.cli.console import Console
from spinlite.cli.terminal import Screen, visible
from spinlite.progress import Pace
from tests.conftest import Command
from tests.toy import TOY

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a shell")

# Errors that nobody expected

UNEXPECTED = [
    ValueError("broken \x1b[31m value"), ZeroDivisionError("division by zero"), KeyError("lr"), OSError("nobody knows"),
    RuntimeError("a\nb\nc"), RecursionError(), MemoryError(), AssertionError("x" * 5000), 
    UnicodeDecodeError("utf-8", b"", 0, 1, "y"),
]  # fmt: skip


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("begun", [False, True])
def test_what_nobody_expected_is_one_line_and_a_file_with_the_trace(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, begun: bool
):
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("spinlite.selfplay.train", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if begun:
        Path("runs/toy").mkdir(parents=True)
    problem, fix = command("train", TOY).error()
    assert type(error).__name__ in problem and len(problem) < 200 and "\x1b" not in problem
    trace = Path("runs/toy/trace.txt") if begun else tmp_path / f"spinlite-{os.getpid()}-trace.txt"
    assert str(trace) in fix
    text = trace.read_text(encoding="utf-8")
    assert text.startswith(f"spinlite train {TOY}\n") and "Traceback" in text and "in fails" in text


def test_a_file_that_can_not_be_read_is_named_without_a_trace(command: Command, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "pics/a.png")

    monkeypatch.setattr("spinlite.selfplay.train", fails)
    problem, fix = command("train", TOY).error()
    assert problem == "Permission denied: pics/a.png" and "can be read and written" in fix and "trace" not in fix


@pytest.mark.parametrize("words", [["check", "pics", "--html"], ["report", "runs/x", "-o"]], ids=["check", "report"])
@pytest.mark.parametrize("place", ["pics", "pics/", ""])
def test_a_folder_in_place_of_a_page_is_named_before_anything_is_done(command: Command, words: list[str], place: str):
    Path("pics").mkdir()
    problem, fix = command(*words, place).error()
    assert problem == f"{Path(place)} is a folder" and fix == f"name a file: {words[-1]} {Path(place) / 'page.html'}"


@linux
@pytest.mark.parametrize("words", ["presets", "settings"])
@pytest.mark.parametrize("end", ["| head -c 10", ">&-", "2>&- >&-"])
def test_an_output_that_nobody_reads_is_no_traceback(tmp_path: Path, words: str, end: str):
    line = f"{sys.executable} -m spinlite {words} {end}"
    env = os.environ | {"PYTHONPATH": str(Path(spinlite.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)
    assert done.returncode == 0 and not done.stderr


def test_ctrl_c_while_the_program_is_being_loaded_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Interrupted:
        def find_spec(self, *_: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "spinlite.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and "Nothing is lost" in capsys.readouterr().out


# What reaches the terminal

STEERING = ["\x1b[31m", "\x1b]0;title\x07", "\u202e", "\x9b31m", "\u2066", "\u200f", "a\u2028b", "\x7f"]


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(Screen(file=file, force_terminal=True, color_system=None, width=width)), file


def piped() -> tuple[Console, io.StringIO]:
    return Console(Screen(file=(file := io.StringIO()))), file


@pytest.mark.parametrize("text", STEERING)
@pytest.mark.parametrize("live", [False, True])
def test_what_steers_a_terminal_is_spelt_out(text: str, live: bool):
    console, file = terminal() if live else piped()
    console.say(f"a {text} b")
    console.show_facts({text: text})
    console.show_presets([(text, text, text, text, text, text)])
    with console.phase(text, 2) as progress:
        progress(1, 2)
    ours = file.getvalue()
    for sequence in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A"):  # of the progress bar
        ours = ours.replace(sequence, "")
    assert text not in ours and visible(text)[:4] in ours


@pytest.mark.parametrize("text", ["a\tb\nc", "Müller, 東京, 👩‍🎨, ﷽", "{x} [b] \\", ""])
def test_other_text_stays_as_it_is(text: str):
    assert visible(text) == text


def test_a_presets_words_reach_no_terminal_raw(command: Command):
    Path("mine.toml").write_text(
        'about = "\\u001b[31m\\u202e"\n# \x1b[31mred\n[learn]\n# \u202e\nupdates = 3\n', encoding="utf-8"
    )
    ended = command("presets", "show", "mine.toml")
    assert ended.code == 1 and "not valid TOML" in ended.err  # TOML itself refuses an escape in a comment
    Path("mine.toml").write_text('about = "\\u001b[31m\\u202e"\n[learn]\n# \u202e\nupdates = 3\n', encoding="utf-8")
    ended = command("presets", "show", "mine.toml")
    assert ended.code == 0 and not {"\x1b", "\u202e"} & set(ended.out)
    for words in (["\x1b[31m"], ["demo", "--set", "\x1b[31m=3"], ["demo", "--set", "learn.lr=\x1b[31m"], ["demo", "--\x1b[3m"]):
        assert "\x1b" not in "".join(command("plan", *words).error())


LONG = "the held-out error grew in round 1, so the run went back to the start; " * 3
PATH = "/home/somebody/" + "a-long-folder/" * 8 + "mystyle.safetensors"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_text_breaks_between_words_and_goes_on_below_its_beginning(width: int):
    console, file = terminal(width)
    console.say(LONG)
    console.show_facts({"captions": LONG, "LoRA": PATH})
    console.error(LONG, LONG)
    lines = file.getvalue().splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(f"{LONG} captions {LONG} LoRA {PATH}".split())
    assert all(len(line) <= width or PATH in line for line in lines)
    second = lines.index(next(line for line in lines if "captions" in line)) + 1
    assert lines[second].startswith(" " * 13) and lines[second][13] != " "


def test_a_command_stays_on_one_line_so_that_it_can_be_copied():
    console, file = terminal(40)
    line = "spinlite train sdxl-12gb --data my-pictures --base illustrious.safetensors"
    console.say(line)
    console.show_facts({"next": line})
    assert [text.strip() for text in file.getvalue().splitlines()] == [line, f"next       {line}"]


def test_a_preset_stays_on_its_line():
    console, file = terminal()
    console.show_presets([("sdxl-12gb", "a-model-with-a-name-of-many-words-" * 3, "12 GB", "10.8 GB", "spin", "about it")])
    heading, row, about = file.getvalue().splitlines()
    assert len(row) <= 80 and row.split() == ["sdxl-12gb", row.split()[1], "12", "GB", "10.8", "GB", "spin"] and "…" in row
    assert heading.startswith("preset") and about.strip() == "about it"


def test_outside_a_terminal_a_line_is_a_line():
    console, file = piped()
    console.show_facts({"captions": LONG, "x": PATH})
    assert len(file.getvalue().splitlines()) == 2


# How long it will still take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_the_time_that_is_left_is_known_after_one_step_and_runs_down_within_the_next(clock: Callable[[float], None]):
    pace = Pace()
    assert pace.left() is None
    clock(300)
    pace.report(1, 10)
    assert pace.left() == 2700
    clock(200)
    assert pace.left() == 2500
    clock(100)
    pace.report(2, 10)
    assert pace.left() == 2400
    pace.report(10, 10)
    assert pace.left() == 0


def test_what_was_done_before_a_run_went_on_does_not_count_as_fast(clock: Callable[[float], None]):
    pace = Pace()
    clock(1)
    pace.report(50, 100)
    for done in (51, 52):
        clock(10)
        pace.report(done, 100)
    assert pace.left() == 480


@pytest.mark.parametrize("title", ["round 10/10 · learn", "encode pictures and captions", "plan what fits the card"])
def test_a_bar_says_how_long_it_will_take_and_fits_80_columns(title: str):
    console, file = terminal()
    with console.phase(title, 1000) as progress:
        progress(123, 1000, margin=0.001, accuracy=0.94)
    shown = [line for line in file.getvalue().replace("\r", "\n").splitlines() if " left" in line]
    assert (
        shown and all(len(line.replace("\x1b[2K", "").rstrip()) <= 80 for line in shown) and "prefers yours 94 %" in shown[-1]
    )


def test_a_round_says_how_long_the_run_will_still_take(clock: Callable[[float], None]):
    console, file = terminal(200)
    figures = {"policy_real": 0.0198, "base_real": 0.0201, "accuracy": 0.94}
    for k in (1, 2, 3):
        clock(999)
        with console.phase(f"round {k}/3 · learn", 1):
            clock(3600)
        console.show_round(k, 3, figures)
    first, second, last = (line for line in file.getvalue().splitlines() if "error on" in line)
    assert "prefers your picture to its own in 94 % of pairs; about 2.0 h left for the run" in first
    assert "about 60 min left" in second and last.endswith("94 % of pairs")
