"""What is done when a run has ended; and that no command runs which came with a preset."""

import sys
from pathlib import Path

import pytest
import typer

from spinlite.cli.at_end import allowed, at_end
from spinlite.errors import SpinliteError
from tests.conftest import Command
from tests.toy import TOY

QUICK = ("--set", "learn.updates=2", "--set", "judge.draws=1", "--rounds", "1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


@pytest.fixture
def wish(tmp_path: Path) -> str:
    """A command that adds a line to told.txt about the run."""
    script = tmp_path / "tell.py"
    told = "{e['SPINLITE_RUN']}, {e['SPINLITE_STATE']}, {e['SPINLITE_FOLDER'].endswith(e['SPINLITE_RUN'])}"
    script.write_text(
        f'import os\ne = os.environ\nopen(r"{tmp_path / "told.txt"}", "a", encoding="utf-8").write(f"{told}\\n")\n',
        encoding="utf-8",
    )
    return f'"{sys.executable}" "{script}"'


def said(tmp_path: Path) -> list[str]:
    path = tmp_path / "told.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_a_command_of_a_preset_runs_only_after_it_was_typed(command: Command, wish: str, swatches: Path, tmp_path: Path):
    preset = tmp_path / "mine.toml"
    preset.write_text(f"extends = '{TOY}'\n[report]\non_end = '''{wish}'''\n", encoding="utf-8")
    words = ("train", preset, "--data", swatches, *QUICK)
    ended = command(*words)
    assert ended.code == 0 and "so its command is not run" in ended.out and not said(tmp_path)
    command(*words, "--name", "typed", "--set", f"report.on_end={wish}")
    assert said(tmp_path) == ["typed, done: 1 round, round 1 is the best, True"]
    assert command(*words, "--name", "later").code == 0 and len(said(tmp_path)) == 2
    assert "is complete" in command(*words, "--name", "later").out and len(said(tmp_path)) == 2


class Terminal:
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_it_is_asked_once_with_the_whole_command(monkeypatch: pytest.MonkeyPatch):
    shown, answers, wish = [], iter([False, True]), f"{'a' * 200}\u202e; rm"
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", lambda question: next(answers))
    assert [allowed(wish, (), shown.append) for _ in range(3)] == ["", wish, wish]
    assert len(shown) == 2 and f"{'a' * 200}\\u202e; rm" in shown[0]


@pytest.mark.parametrize("wish", ["", " ", "notify"])
def test_a_notification_needs_no_leave(wish: str):
    assert allowed(wish, (), print) == wish.strip()


def test_an_error_is_told_and_ctrl_c_is_not(wish: str, tmp_path: Path):
    for error in (SpinliteError("no room; $(x) `y`", fix="z"), KeyboardInterrupt()):
        with pytest.raises(type(error)), at_end(wish, tmp_path / "my run", print):
            raise error
    assert said(tmp_path) == ["my run, stopped with an error: no room; $(x) `y`, True"]


def test_a_command_that_fails_is_said(tmp_path: Path):
    heard: list[str] = []
    with at_end(f'"{sys.executable}" -c "exit(3)"', tmp_path, heard.append) as ended:
        ended("done")
    assert heard == ["report.on_end: the command ended with code 3"]
