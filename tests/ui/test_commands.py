"""What the page needs of the computer, and what it says if it is not there."""

import importlib.util
import socket
import time
from pathlib import Path

import pytest

from spinlite.errors import SpinliteError
from spinlite.ui import commands
from tests.conftest import Command


def test_without_its_library_the_page_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command("ui", "--no-browser").error() == ("the page needs the package nicegui", "type: pip install nicegui")


def test_a_port_that_is_taken_is_said_and_without_one_the_next_is_taken():
    pytest.importorskip("nicegui")
    from spinlite.ui import server

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SpinliteError, match=f"port {port} is taken"):
            server.free_port(port)
    assert server.free_port(port) == port and server.free_port(None) >= server.PORT


def test_a_run_that_ends_with_an_error_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(commands.__file__).parents[2]))
    folder = tmp_path / "runs" / "mine"
    commands.start_training(["nowhere.toml"], "mine", folder.parent)
    assert commands.is_starting(folder) and not commands.failure(folder)
    while commands.is_starting(folder):
        time.sleep(0.05)
    problem, fix = commands.failure(folder).splitlines()
    assert problem.startswith("error: no preset 'nowhere.toml'") and fix.startswith("fix: ")


@pytest.mark.parametrize("name", ["../other", "a/b", "", "con", "x\n"])
def test_a_run_is_only_started_in_the_folder_of_runs(name: str, tmp_path: Path):
    with pytest.raises(SpinliteError, match="can't be a run's name"):
        commands.start_training(["demo"], name, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path):
    assert commands.free_name(tmp_path, "mine") == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine-2").mkdir()
    assert commands.free_name(tmp_path, "mine") == "mine-3"
