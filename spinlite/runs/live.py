"""What a run leaves in its folder for those who watch it from outside, and how they ask it to stop.

now.json   where it is: phase, how far, time left, memory, what it said about itself; at most once a second
log.txt    what it said, a line each
stop       whoever makes this file asks the run to finish its step, save and end, as Ctrl-C does
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spinlite.progress import Pace, Stopped, Watch, describe_duration
from spinlite.runs.names import LOG, NOW, STOP

SECONDS = 1.0  # between two looks at the folder
KEPT = 200_000  # bytes of log.txt that are read


class LiveWatch:
    """A watch that also writes into the run folder. Only the folder's holder may use it. `memory` returns the bytes in use."""

    def __init__(self, watch: Watch, folder: Path, memory: Callable[[], int]) -> None:
        self._watch, self._folder, self._memory = watch, folder, memory
        self._facts: dict[str, str] = {}
        self._looked, self._peak = 0.0, 0
        (folder / STOP).unlink(missing_ok=True)  # meant for a process that has ended

    def say(self, text: str) -> None:
        self._watch.say(text)
        self._write(text)

    def show_facts(self, facts: dict[str, str]) -> None:
        self._watch.show_facts(facts)
        self._facts |= facts

    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
        self._watch.show_round(round_, rounds, found)

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        began, pace = time.monotonic(), Pace()
        self._look(title, 0, total, pace)
        with self._watch.phase(title, total) as progress:

            def report(done: int, of: int, **found: float) -> None:
                pace.report(done, of)
                progress(done, of, **found)
                if time.monotonic() - self._looked >= SECONDS:
                    self._look(title, done, of, pace)

            yield report
        self._write(f"{title}: took {describe_duration(time.monotonic() - began)}")

    def _look(self, title: str, done: int, of: int, pace: Pace) -> None:
        """Say where the run is, and raise Stopped if someone asked for it."""
        self._looked = time.monotonic()
        used = self._memory()
        self._peak = max(self._peak, used)
        where = {
            "phase": title, "done": done, "of": of, "left": pace.left(), "time": time.time(), "facts": self._facts,
            "memory": {"now": used, "peak": self._peak},
        }  # fmt: skip
        draft = self._folder / f"{NOW}.part"
        with contextlib.suppress(OSError):  # a full disk, or a reader that has it open on Windows: the next look writes it
            draft.write_text(json.dumps(where), encoding="utf-8")
            os.replace(draft, self._folder / NOW)  # without waiting for the disk: a power cut may cost this file
        if (self._folder / STOP).exists():
            (self._folder / STOP).unlink(missing_ok=True)
            raise Stopped

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError), (self._folder / LOG).open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(text.split())}\n")


def read_now(folder: Path) -> dict[str, Any]:
    """What `now.json` says; {} if there is none that can be read."""
    try:
        found = json.loads((folder / NOW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_log(folder: Path) -> list[str]:
    """The last lines of `log.txt`, oldest first."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - KEPT))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > KEPT else lines


def ask_to_stop(folder: Path) -> None:
    """Ask the run in this folder to finish its step, save and end."""
    (folder / STOP).touch()
