"""Commands that the page types. Each is a process of its own: one that trains goes on when the page and its server end."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinlite.runs.names import check_name

TAIL = 4000  # characters of a command's last words that are shown
_started: dict[Path, subprocess.Popen[Any]] = {}  # runs that this server started, by their folder


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code: 0 if all went well."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """What went wrong, in the command's own words."""
        return self.err.strip() or self.out.strip()[-TAIL:] or f"ended with code {self.code}"


def typed(words: Sequence[str]) -> str:
    """A command as it is typed, to show."""
    return subprocess.list2cmdline(["spinlite", *words]) if os.name == "nt" else _quoted(words)


def _quoted(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["spinlite", *words])


async def run(*words: str) -> Ended:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spinlite", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=_environment(), **_window(),
    )  # fmt: skip
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:  # whoever asked has left
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return Ended(process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def start_training(words: Sequence[str], name: str, runs: Path) -> None:
    """Start `spinlite train WORDS --name NAME --runs RUNS`, which outlives this server. What it prints goes to a file."""
    check_name(name)
    output = output_of(runs / name)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "spinlite", "train", *words, "--name", name, "--runs", str(runs)]
    detached: dict[str, Any] = {"start_new_session": True}  # no signal of this terminal reaches it
    if os.name == "nt":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # pyright: ignore
    with output.open("wb") as file:
        _started[runs / name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=_environment(), **detached
        )


def free_name(runs: Path, name: str) -> str:
    """A name for a run that is not taken: `name`, or with a number."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if not (runs / free).exists())


def is_starting(folder: Path) -> bool:
    """Whether a process that this server started for a run is still there."""
    process = _started.get(folder)
    return process is not None and process.poll() is None


def failure(folder: Path) -> str:
    """The last words of a run's process that this server started, if it ended with an error; else ""."""
    process = _started.get(folder)
    if process is None or process.poll() in (None, 0, 130):
        return ""
    try:
        text = output_of(folder).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    at = text.rfind("error: ")
    return text[max(at, 0) :].strip()[-TAIL:]


def output_of(folder: Path) -> Path:
    """The file with what a run's process printed, if the page started it."""
    return folder.parent / "cache" / "ui" / f"{folder.name}.txt"


def open_folder(folder: Path) -> None:
    """Show a folder in the computer's own file manager. Raises OSError if there is none."""
    if os.name == "nt":
        os.startfile(folder)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        subprocess.Popen([opener, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def _window() -> dict[str, Any]:
    return {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}  # pyright: ignore
