"""What [report] on_end asks for when a run has ended: a notification on the desktop, or a command of the user's.

A preset may have come with a download, and its command with it. So a command runs only if it was typed here, or allowed here
once; the commands that were are kept, as hashes, in the user's cache.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from spinlite.cli.options import command_line
from spinlite.errors import SpinliteError
from spinlite.plan.plan import cache_folder

SETTING = "report.on_end"
NOTIFY = "notify"
PATIENCE = 60.0  # seconds that are waited for the command; then it goes on alone
MAC = ["on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run"]
WINDOWS = (  # a balloon in the notification area; what it says comes by the environment, so that none of it is a command
    "Add-Type -AssemblyName System.Windows.Forms, System.Drawing; $n = New-Object System.Windows.Forms.NotifyIcon; "
    "$n.Icon = [System.Drawing.SystemIcons]::Information; $n.Visible = $true; "
    "$n.ShowBalloonTip(10000, $env:SPINLITE_TITLE, $env:SPINLITE_STATE, 'Info'); Start-Sleep 10; $n.Dispose()"
)


@contextlib.contextmanager
def at_end(wish: str, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Do what `wish` says when the block has called `ended(how)`, or has ended with an error. Ctrl-C is no end of a run."""
    told: list[str] = []
    try:
        yield told.append
    except SpinliteError as error:
        told.append(f"stopped with an error: {error.problem}")
        raise
    finally:
        if wish and told and (problem := _do(wish, folder, told[0])):
            say(f"report.on_end: {problem}")


def allowed(wish: str, overrides: Sequence[str], say: Callable[[str], None]) -> str:
    """`wish` if it may be done, else "". Whether it may is asked where there is someone to ask, and otherwise said."""
    wish = wish.strip()
    if wish in ("", NOTIFY) or _is_known(wish):
        return wish
    typed = any(word.partition("=")[0].strip() == SETTING for word in overrides)
    if not typed and sys.stdin and sys.stdin.isatty():
        say(f"The preset asks to run this command on your computer when the run ends:\n  {wish!r}")
        typed = typer.confirm("run it, for this and for later runs? If you did not write it, say no")
    elif not typed:
        fix = command_line(["--set", f"{SETTING}={wish}"])
        say(f"report.on_end came with the preset, so its command is not run. If it is yours, add: {fix}")
    if typed:
        _remember(wish)
    return wish if typed else ""


def _do(wish: str, folder: Path, how: str) -> str:
    """Run the command, or notify; returns what went wrong, if anything did. What it needs to know is in its environment."""
    names = {"SPINLITE_RUN": folder.name, "SPINLITE_FOLDER": str(folder.absolute()), "SPINLITE_STATE": how.replace("\0", " ")}
    title = f"spinlite: {folder.name}"
    command = _notification(title, names["SPINLITE_STATE"]) if wish == NOTIFY else wish
    env = os.environ | names | {"SPINLITE_TITLE": title}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        code = subprocess.Popen(command, shell=wish != NOTIFY, env=env, **quiet).wait(PATIENCE)
    except FileNotFoundError:
        return (
            f"this computer has no {command[0]}, which shows notifications" if wish == NOTIFY else "the command was not found"
        )
    except OSError as error:
        return f"the command could not be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return ""
    return f"the command ended with code {code}" if code else ""


def _notification(title: str, text: str) -> list[str]:
    """The command that shows a notification on this computer's desktop."""
    if os.name == "nt":
        return ["powershell", "-NoProfile", "-WindowStyle", "Hidden", "-Command", WINDOWS]
    if sys.platform == "darwin":
        return ["osascript", *(word for line in MAC for word in ("-e", line)), title, text]
    return ["notify-send", "--app-name=spinlite", "--", title, text]


def _is_known(wish: str) -> bool:
    try:
        return _hash(wish) in _list().read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False


def _remember(wish: str) -> None:
    with contextlib.suppress(OSError):  # then it is asked again
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a", encoding="ascii") as file:
            file.write(f"{_hash(wish)}\n")


def _list() -> Path:
    return cache_folder().parent / "allowed-commands.txt"


def _hash(wish: str) -> str:
    return hashlib.sha256(wish.encode(errors="surrogatepass")).hexdigest()
