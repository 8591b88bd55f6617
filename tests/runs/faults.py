"""A small run in which every kind of file occurs, to damage, to cut off and to compare."""

import contextlib
import json
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spinlite.__main__ import main
from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.data import looks
from spinlite.errors import SpinliteError
from spinlite.runs import disk, journal, store
from spinlite.runs.checksum import read_header
from spinlite.runs.names import JOURNAL
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training import learn, opponent_errors
from tests.toy import TOY, Quiet

VALUES = [
    "learn.updates=7", "learn.batch=64", "learn.snapshot_every=3", "run.rounds=2", "judge.draws=1", "judge.prompts=1",
    "play.steps=2", "data.heldout=0.3", "method.name=seppo", "method.reference=each", "memory.cache_opponent=true",
    "memory.play_batch=32",
]  # fmt: skip
Lora = dict[str, list[float]]  # weights by name
MID = ("round 2/2 · learn", 6)  # here a run is cut off: in mid-round, with a snapshot within it and a policy for the guards


def pictures(folder: Path, count: int = 10) -> Path:
    """A few pictures of one colour each, with captions."""
    folder.mkdir(parents=True)
    for i in range(count):
        x, y = math.cos(i * math.tau / count), math.sin(i * math.tau / count)
        Image.new("RGB", (16, 16), (round(127.5 + 100 * x), 0, round(127.5 + 100 * y))).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"{'red' if x > 0 else 'dark'} number {i % 5}", encoding="utf-8")
    return folder


def settings_for(data: Path, *more: str) -> Settings:
    return load_settings(TOY, [*VALUES, *more], data__folder=str(data))


def save_at_every_step(patch: pytest.MonkeyPatch) -> None:
    for module in (learn, opponent_errors, store, looks):
        patch.setattr(module, "SAVE_SECONDS", 0.0)


def cut_off(settings: Settings, folder: Path, place: tuple[str, int] = MID) -> None:
    """A run that was killed in the middle of its second round."""
    with pytest.raises(KeyboardInterrupt):
        train(settings, folder, Quiet(lambda title, done: (title, done) == place))


def lora_of(folder: Path) -> Lora:
    """The weights that were exported: of the best round, of the last, or of both."""
    files = sorted((folder / "export").glob("*.safetensors"))
    assert files
    return {f"{path.stem} {key}": value.tolist() for path in files for key, value in read_tensors(path)[0].items()}


class Killed(BaseException):
    """The process is gone: nothing that comes after may touch the disk."""


Fault = Callable[[Any], None]  # called with the file or folder that is touched
CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "shutil.rmtree": 0}
_watching: list[Callable[[str, Any], None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _watching[0]("open", arguments[0])
    elif event in CHANGES:
        _watching[0](event, arguments[CHANGES[event]])


sys.addaudithook(_hook)


@contextlib.contextmanager
def at_each_change(root: Path, call: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `call(what, path)` before each change below `root`: opening for writing, renaming, removing, and waiting for the
    disk ("sync", with the open file and how much of it is on the disk)."""

    calling = False
    journals = sum(path.stat().st_size for path in root.rglob(JOURNAL))  # the only file that is synced more than once

    def seen(what: str, path: Any) -> None:
        nonlocal calling
        if not calling and (what == "sync" or str(path).startswith(str(root))):
            calling = True  # what `call` changes does not count
            try:
                call(what, path)
            finally:
                calling = False

    def sync(handle: int) -> None:
        seen("sync", (handle, 0))
        os.fsync(handle)

    def sync_journal(handle: int) -> None:
        nonlocal journals
        size = os.fstat(handle).st_size  # before `call`, which may tear the file for a copy of this process
        seen("sync", (handle, journals))
        os.fsync(handle)
        journals = size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "sync", sync)
        patch.setattr(journal, "sync", sync_journal)
        _watching.append(seen)
        try:
            yield
        finally:
            _watching.clear()


def fail(error: int, what: str, path: Any, at_once: bool = False) -> None:
    """What happens at a change of the disk from the fault on: -1: the process is gone; else writing fails with this error.

    `at_once`: this is the fault. A process that is gone then leaves half of what it has written since the last sync.
    """
    if error < 0:
        if at_once and what == "sync":
            handle, on_disk = path
            os.ftruncate(handle, min(os.fstat(handle).st_size, (on_disk + os.fstat(handle).st_size) // 2))
        raise Killed
    if what in ("open", "sync", "os.mkdir", "os.rename"):
        raise OSError(error, os.strerror(error), str(path))


def with_fault_at(number: int, error: int, settings: Settings, root: Path) -> str:
    """A run that meets a fault (see `fail`) at its change of this number; returns how it ended."""
    left = number

    def count(what: str, path: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            fail(error, what, path, left == 0)

    with at_each_change(root, count):
        try:
            train(settings, root / "r", Quiet())
        except (Killed, SpinliteError, OSError) as caught:
            return str(caught)
    return ""


def start(words: list[str], said: Path, first: Callable[[], Any]) -> int:
    """`spinlite WORDS` in a copy of this process, after `first()`; returns its number. What it says goes into a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    with said.open("w", encoding="utf-8") as out, contextlib.suppress(BaseException):
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        first()
        sys.argv, code = ["spinlite", *words], 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def flip(path: Path, place: float) -> None:
    """Flip one bit, at this share of the file."""
    content = bytearray(path.read_bytes())
    if content:
        content[int(place * (len(content) - 1))] ^= 1 << int(place * 7)
        path.write_bytes(content)


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".lock"))


def outcome_of(settings: Settings, source: Path, work: Path, damage: Callable[[Path], None]) -> Lora | str:
    """The LoRA of the run that goes on in a damaged copy of `source`, or the error that it ends with."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
    damage(work)
    try:
        train(settings, work / "r", Quiet())
    except SpinliteError as error:
        return f"{error.problem} / {error.fix}"
    return lora_of(work / "r")


def journal_size(state: Path) -> int:
    """How much of the journal a save names."""
    return json.loads(read_header(state)["state"])["journal"]
