"""The long versions of the fault tests, by hand: `python -m tests.runs.endurance WHAT COUNT`. Prints figures as it goes.

kills    a run is killed (SIGKILL, SIGTERM or SIGINT) at COUNT random instants, over several methods; not on Windows (fork)
changes  killed, and failing with ENOSPC, EIO and EACCES, at every COUNT-th change of the disk
damage   every file of a run and its caches flipped, halved, emptied, zeroed, deleted, replaced by an older one
soak     COUNT rounds: seconds of CPU a round, memory and open files, as they go
"""

import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.selfplay import train
from tests.runs import faults
from tests.runs.faults import Lora, files_of, flip, lora_of, outcome_of
from tests.toy import Quiet

METHODS = [(), ("method.reference=random",), ("method.name=spin", "play.points=2"), ("method.name=sft",)]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def kills(count: int, root: Path, data: Path) -> str:
    chance, found = random.Random(0), Counter[str]()
    for number in range(count):
        settings = _settings(data, METHODS[number % len(METHODS)])
        whole = root / f"whole{number % len(METHODS)}"
        if not whole.exists():
            began = time.monotonic()
            train(settings, whole / "r", Quiet())
            (whole / "seconds").write_text(str(time.monotonic() - began), encoding="utf-8")
        seconds = float((whole / "seconds").read_text(encoding="utf-8"))
        _start_and_kill(settings, root / "r", chance.uniform(0, seconds), chance.choice(SIGNALS))
        if chance.random() < 0.5:  # half of them are killed once more as they go on
            _start_and_kill(settings, root / "r", chance.uniform(0, seconds / 2), chance.choice(SIGNALS))
        found[_finish(settings, root, lora_of(whole / "r"))] += 1
        print(number + 1, dict(found), flush=True)
    return f"{count} runs killed: {dict(found)}"


def changes(step: int, root: Path, data: Path) -> str:
    settings, found = _settings(data, ()), Counter[str]()
    total = faults.count_changes(settings, root / "whole")
    wanted = lora_of(root / "whole" / "r")
    for number in range(1, total + 1, step):
        faults.killed_at(number, settings, root)
        found["killed: " + _finish(settings, root, wanted)] += 1
        for error in (errno.ENOSPC, errno.EIO, errno.EACCES):
            faults.failing_at(number, error, settings, root)
            found[f"{errno.errorcode[error]}: {_finish(settings, root, wanted)}"] += 1
        print(number, dict(found), flush=True)
    return f"{total} changes of the disk, each {step}th tried: {dict(found)}"


def damage(_: int, root: Path, data: Path) -> str:
    settings, found = _settings(data, ()), Counter[str]()
    train(settings, root / "whole" / "r", Quiet())
    faults.cut_off(settings, root / "old" / "r", ("round 2/2 · learn", 2))
    faults.cut_off(settings, root / "cut" / "r")
    wanted = lora_of(root / "whole" / "r")
    for state in ("cut", "whole"):
        for file in files_of(root / state):
            place, size = file.relative_to(root / state), file.stat().st_size
            ways = {
                **{f"flipped at {share}": lambda path, share=share: flip(path, share) for share in (0.02, 0.3, 0.6, 0.98)},
                "halved": lambda path, size=size: path.write_bytes(path.read_bytes()[: size // 2]),
                "emptied": lambda path: path.write_bytes(b""),
                "zeroed": lambda path, size=size: path.write_bytes(bytes(size)),
                "deleted": lambda path: path.unlink(),
            }
            if (root / "old" / place).exists():
                ways["replaced by an older one"] = lambda path, place=place: shutil.copy(root / "old" / place, path)
            for name, way in ways.items():
                end = outcome_of(settings, root / state, root / "work", lambda work, way=way, place=place: way(work / place))
                kind = "a clear error" if isinstance(end, str) else "the same LoRA" if end == wanted else "ANOTHER LORA"
                if kind == "ANOTHER LORA":
                    print(state, place, name, kind, flush=True)
                found[kind] += 1
    return f"{found.total()} damages: {dict(found)}"


def soak(rounds: int, root: Path, data: Path) -> str:
    few = ["learn.updates=1", "learn.batch=2", "learn.snapshot_every=0", "judge.stop=false", "method.name=spin"]
    settings = _settings(data, (*few, f"run.rounds={rounds}", "memory.cache_opponent=false"))
    process, marks, began = psutil.Process(), [], time.process_time()

    class Marks(Quiet):
        def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
            nonlocal began
            self.said, self.phases = [], []
            if round_ % max(1, rounds // 10) == 0:
                spent = (time.process_time() - began) / max(1, rounds // 10)
                marks.append(f"{round_}: {spent:.3f} s, {process.memory_info().rss >> 20} MB, {process.num_fds()} files")
                print(marks[-1], flush=True)
                began = time.process_time()

    train(settings, root / "r", Marks())
    began = time.process_time()
    assert train(settings, root / "r", Quiet()).already
    return f"{rounds} rounds; opened again in {time.process_time() - began:.2f} s"


def _settings(data: Path, more: tuple[str, ...]) -> Settings:
    seppo = [value for value in faults.VALUES if not value.startswith("method.") or not any("method.name" in m for m in more)]
    return faults.load_settings(faults.TOY, [*seppo, *more], data__folder=str(data))


def _start_and_kill(settings: Settings, folder: Path, after: float, how: signal.Signals) -> None:
    child = os.fork()
    if not child:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        train(settings, folder, Quiet())
        os._exit(0)
    time.sleep(after)
    os.kill(child, how)
    os.waitpid(child, 0)


def _finish(settings: Settings, root: Path, wanted: Lora) -> str:
    """How the run ends when it goes on; its folder is removed."""
    try:
        train(settings, root / "r", Quiet())
        end = "the same LoRA" if lora_of(root / "r") == wanted else "ANOTHER LORA"
    except SpinliteError as error:
        end = f"NO LORA: {error}"
    shutil.rmtree(root / "r", ignore_errors=True)
    shutil.rmtree(root / "cache", ignore_errors=True)
    return end


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        faults.save_at_every_step(patch)
        print({"kills": kills, "changes": changes, "damage": damage, "soak": soak}[sys.argv[1]](
            int(sys.argv[2]), place, faults.pictures(place / "pictures")
        ))  # fmt: skip
    shutil.rmtree(place)
