"""Two commands in one folder, as two processes and as two holders in one."""

import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch

import spinlite
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.runs import lock, store
from spinlite.runs.lock import hold, holder, is_held
from spinlite.runs.store import Store
from spinlite.selfplay import train
from tests.toy import Quiet

HOLD = """
import sys, time
from pathlib import Path
from spinlite.runs.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds tmp_path / "r"."""
    paths = os.pathsep.join([str(Path(spinlite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_command_is_refused_by_the_firsts_name_and_a_crash_frees_the_folder(
    other: subprocess.Popen[str], toy: Settings, tmp_path: Path
):
    said = rf"another command is at work in .*r: process {other.pid} on .+, since 20"
    with pytest.raises(SpinliteError, match=said) as caught:
        train(toy, tmp_path / "r", Quiet())
    assert "wait until it has ended" in caught.value.fix and is_held(tmp_path / "r")
    other.kill()
    other.wait()
    assert not is_held(tmp_path / "r")
    with hold(tmp_path / "r"):
        assert f"process {os.getpid()} " in holder(tmp_path / "r")


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path):
    with hold(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a").exists() and not is_held(tmp_path / "a")


def test_a_drive_that_cannot_lock_gets_a_file_that_names_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Unable(filelock.FileLock):
        def acquire(self, *_: object, **__: object):
            raise OSError(next(iter(lock._CANNOT_LOCK)), "No locks available")

    monkeypatch.setattr(lock, "FileLock", Unable)
    with hold(tmp_path / "r"):
        (tmp_path / "r" / "kept").touch()
        with pytest.raises(SpinliteError, match=f"process {os.getpid()} on"), hold(tmp_path / "r"):
            pass
    with hold(tmp_path / "r"):
        pass


def test_a_store_is_written_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "WAIT", 0.0)
    first, second = Store(tmp_path / "s"), Store(tmp_path / "s")
    with first:
        first.add(["a"], {"x0": torch.zeros(1, 2)})
        with pytest.raises(SpinliteError, match=r"another command is at work in .*s: process"):
            second.add(["a"], {"x0": torch.ones(1, 2)})
    second.add(["a", "b"], {"x0": torch.ones(2, 2)})
    for each in (second, Store(tmp_path / "s")):
        assert each.get(["a", "b"])["x0"].tolist() == [[0, 0], [1, 1]], "what the first wrote stays"
