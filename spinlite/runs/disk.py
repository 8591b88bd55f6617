"""Files written whole or not at all, even if the power fails."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from spinlite.errors import SpinliteError
from spinlite.progress import describe_size
from spinlite.runs.checksum import find_damage

DRAFT = ".part"  # the ending of a file that is being written
AGAIN = "free some space (`spinlite runs` shows what runs take), then type the same command again: it goes on from here"


def write_bytes(path: Path, content: bytes, before: Path | None = None) -> None:
    """Write a file under another name, then rename it: a reader sees the old file or the new one, never half of one.

    With `before` the old file is kept under that name. Raises SpinliteError if the disk is full.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}{DRAFT}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        if before:
            if damage := find_damage(draft):  # the old file stays until the new one was read back
                raise OSError(errno.EIO, f"what was written reads back differently ({damage})", str(path))
            if path.exists():
                os.replace(path, before)
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise_if_full(error, path, len(content))
        raise
    sync_folder(path.parent)


def raise_if_full(error: OSError, path: Path, wanted: int) -> None:
    """Raises SpinliteError, with how much room is missing, if a file could not be written because the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    free = shutil.disk_usage(path.parent).free
    raise SpinliteError(
        f"the disk is full: {path} needs {describe_size(wanted)}, and {describe_size(free)} are free",
        fix=AGAIN,
    ) from None


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raises SpinliteError if the disk of a folder has less than `needed` bytes free for something, said in words."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        problem = f"the disk has no room for {what} in {folder}: {describe_size(needed)}, and {describe_size(free)} are free"
        raise SpinliteError(problem, fix=AGAIN)


def sync(handle: int) -> None:
    """Wait until what was written to an open file is on the disk."""
    os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows does that by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives can't
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_drafts(folder: Path) -> None:
    """Remove what commands that were killed left half written in a folder. Only its holder may."""
    for draft in folder.rglob(f"*{DRAFT}"):
        draft.unlink(missing_ok=True)


def read_lines(path: Path) -> set[str]:
    """The lines of a text file; none if there is no such file."""
    return set(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else set()
