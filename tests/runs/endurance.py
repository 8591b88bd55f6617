"""The long versions of the fault tests, by hand: `python -m tests.runs.endurance WHAT COUNT`. Prints figures as it goes.

kills    a run is killed (SIGKILL, SIGTERM or SIGINT) at COUNT random instants, over all methods; not on Windows (fork)
changes  killed, and failing with ENOSPC, EIO and EACCES, at every COUNT-th change of the disk; not on Windows (fork)
damage   every file of a run and its caches flipped, halved, emptied, zeroed, deleted, replaced by an older one
soak     COUNT rounds: seconds of CPU a round, memory and open files, as they go
"""

import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from spinlite.config.settings import Settings
from spinlite.data import looks
from spinlite.errors import SpinliteError
from spinlite.runs.lock import LOCK
from spinlite.selfplay import train
from tests.runs import faults
from tests.runs.faults import Lora, files_of, flip, lora_of, outcome_of
from tests.toy import TOY, Quiet

METHODS = [
    ("method.name=seppo", "method.reference=each"), ("method.name=seppo", "method.reference=random"),
    ("method.name=spin", "play.points=2"), *((f"method.name={name}",) for name in ("spin", "sft", "dro", "ddo", "kto", "sudo")),
    ("method.name=dpo",),
]  # fmt: skip
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
ENDS = ["the same LoRA", "ANOTHER LORA", "NO LORA"]


class AtOnce(Executor):
    """Does everything at once: a copy of this process (fork) would wait for threads that it does not have."""

    def __init__(self, workers: int) -> None: ...

    def submit(self, call: Any, *words: Any) -> Future[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        done = Future[Any]()
        try:
            done.set_result(call(*words))
        except Exception as error:
            done.set_exception(error)
        return done


def kills(count: int, root: Path, data: Path) -> str:
    chance, found, ended = random.Random(0), Counter[str](), Counter[str]()
    for number in range(count):
        method = METHODS[number % len(METHODS)]
        words = _words(_pairs(data) if "dpo" in method[0] else data, method)
        settings = faults.load_settings(TOY, words[1::2])
        whole = root / f"whole{number % len(METHODS)}"
        if not whole.exists():
            began = time.process_time()
            train(settings, whole / "r", Quiet())
            (whole / "seconds").write_text(str(time.process_time() - began), encoding="utf-8")
        seconds = float((whole / "seconds").read_text(encoding="utf-8"))
        for _ in range(chance.choice([1, 2])):  # half of them are killed once more as they go on
            ended[_start_and_kill(words, root, chance.uniform(0, seconds), chance.choice(SIGNALS))] += 1
        found[_finish(settings, root, lora_of(whole / "r"))] += 1
        print(number + 1, dict(found), dict(ended), flush=True)
    return f"{count} runs killed: {dict(found)}; they ended: {dict(ended)}"


def changes(step: int, root: Path, data: Path) -> str:
    """One run goes on to its end. At each change a child of its process meets the fault, goes on after it, and is compared."""
    settings, found, known, number = faults.settings_for(data), Counter[str](), dict[str, str](), 0
    looks.ThreadPoolExecutor = AtOnce  # pyright: ignore[reportAttributeAccessIssue]
    train(settings, root / "whole" / "r", Quiet())
    wanted, place, failing = lora_of(root / "whole" / "r"), root / "place", 0

    def at_change(what: str, path: Any) -> None:
        nonlocal number, failing
        if failing:
            return faults.fail(failing, what, path)
        number += 1
        lock = Path(str(path)).name == LOCK  # filelock can't be forked within; tests/runs/test_lock.py is about it
        for error in (-1, errno.ENOSPC, errno.EIO, errno.EACCES) if number % step == 0 and not lock else ():
            shutil.copytree(place, root / "kept")
            child = os.fork()
            if not child:
                failing = error
                return faults.fail(failing, what, path, at_once=True)
            os.waitpid(child, 0)
            shutil.rmtree(place)
            (root / "kept").rename(place)
            state, end = (root / "end").read_text(encoding="utf-8").split("\n", 1)
            (root / "end").unlink()
            fault, known[state] = errno.errorcode.get(error, "killed"), end
            found[f"{fault}: {end}"] += 1
            if end != ENDS[0]:
                print(number, what, path, fault, end, flush=True)
        if number % (20 * step) == 0:
            print(number, dict(found), flush=True)

    place.mkdir()
    with faults.at_each_change(place, at_change):
        try:
            train(settings, place / "r", Quiet())
        except BaseException:  # also RuntimeError: a child may not release the locks of its parent
            if not failing:
                raise
    if not failing:
        return f"{number} changes of the disk, each {step}th tried: {dict(found)}; {len(known)} states of the disk"
    state = _state_of(place)
    if state not in known:
        shutil.copytree(place, root / "work")  # the parent's locks are on the files, not on their copies
    end = known.get(state) or _finish(settings, root / "work", wanted)
    shutil.rmtree(root / "work", ignore_errors=True)
    (root / "end").write_text(f"{state}\n{end}", encoding="utf-8")
    os._exit(0)


def damage(_: int, root: Path, data: Path) -> str:
    settings, found = faults.settings_for(data), Counter[str]()
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
            print(state, place, dict(found), flush=True)
    return f"{found.total()} damages: {dict(found)}"


def soak(rounds: int, root: Path, data: Path) -> str:
    few = ["learn.updates=1", "learn.batch=2", "learn.snapshot_every=0", "judge.stop=false", "method.name=spin"]
    settings = faults.load_settings(TOY, _words(data, (*few, f"run.rounds={rounds}", "memory.cache_opponent=false"))[1::2])
    process, marks, began = psutil.Process(), [], time.process_time()

    class Marks(Quiet):
        def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
            nonlocal began
            self.said, self.phases = [], []
            if round_ % max(1, rounds // 20) == 0:
                spent = (time.process_time() - began) / max(1, rounds // 20)
                marks.append(f"{round_}: {spent:.3f} s, {process.memory_info().rss >> 20} MB, {process.num_fds()} files")
                print(marks[-1], flush=True)
                began = time.process_time()

    train(settings, root / "r", Marks())
    began = time.process_time()
    assert train(settings, root / "r", Quiet()).already
    return f"{rounds} rounds; opened again in {time.process_time() - began:.2f} s"


def _words(data: Path, more: tuple[str, ...]) -> list[str]:
    """["--set", "name=value", …] of the small run with other values."""
    given = {value.partition("=")[0] for value in more}
    kept = [v for v in faults.VALUES if v.partition("=")[0] not in given and not v.startswith("method.")]
    return [word for value in (*kept, *more, f"data.folder={data}") for word in ("--set", value)]


def _pairs(data: Path) -> Path:
    """The same pictures, each preferred to a black one."""
    pairs = data.with_name("pairs")
    if not pairs.exists():
        shutil.copytree(data, pairs / "win")
        shutil.copytree(data, pairs / "lose")
        for path in (pairs / "lose").glob("*.png"):
            Image.new("RGB", (16, 16)).save(path)
    return pairs


def _start_and_kill(words: list[str], root: Path, after: float, how: signal.Signals) -> str:
    """`spinlite train`, killed after so many seconds of CPU; returns how it ended, in words."""

    def wind_up() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL if how == signal.SIGKILL else lambda *_: os.kill(os.getpid(), how))
        signal.setitimer(signal.ITIMER_PROF, after)

    said = root / "said"
    child = faults.start(["train", TOY, *words, "--name", "r", "--runs", str(root)], said, wind_up)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in text and code in (0, 130, -signal.SIGPROF, -signal.SIGTERM), (how, code, text)
    return {0: "done", 130: "stopped and saved"}.get(code, "killed")


def _finish(settings: Settings, root: Path, wanted: Lora) -> str:
    """How the run ends when it goes on; its folder is removed."""
    try:
        train(settings, root / "r", Quiet())
        end = ENDS[0] if lora_of(root / "r") == wanted else ENDS[1]
    except SpinliteError as error:
        end = f"{ENDS[2]}: {error}"
    shutil.rmtree(root / "r", ignore_errors=True)
    shutil.rmtree(root / "cache", ignore_errors=True)
    return end


def _state_of(folder: Path) -> str:
    """A hash of all files: a state of the disk from which a run has gone on before need not be tried again."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        faults.save_at_every_step(patch)
        print({"kills": kills, "changes": changes, "damage": damage, "soak": soak}[sys.argv[1]](
            int(sys.argv[2]), place, faults.pictures(place / "pictures")
        ))  # fmt: skip
    shutil.rmtree(place)
