"""One command at a time in a folder: a run's, or a store's while it is written to.

filelock locks through the operating system (flock, LockFileEx), which frees the lock when its holder ends in whatever way, and
which network drives pass on (SMB, NFS 4). Where a drive can't lock, a file that names process and host takes its place; one
whose process is gone is taken over on the same computer.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from spinlite.errors import SpinliteError
from spinlite.runs.names import LOG, NOW, STOP

LOCK, OWNER = ".lock", ".lock.json"  # in the folder: the lock, and who holds it
_CANNOT_LOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def hold(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder, made if need be, while the block runs. A folder that the block left empty is removed.

    Raises SpinliteError, naming the holder, if another command holds it and goes on to for `wait` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        try:
            lock.acquire(timeout=wait)
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in _CANNOT_LOCK:
                raise
            lock = SoftFileLock(folder / LOCK, thread_local=False)
            lock.acquire(timeout=wait)
    except Timeout:
        problem = f"another command is at work in {folder}: {holder(folder)}"
        raise SpinliteError(problem, fix="wait until it has ended, or stop it with Ctrl-C, then type this again") from None
    owner = folder / OWNER
    try:
        with contextlib.suppress(OSError):  # it is for messages alone: a full disk shows elsewhere
            made_by = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            owner.write_text(json.dumps(made_by), encoding="utf-8")
        yield
    finally:
        try:
            owner.unlink(missing_ok=True)
        finally:
            lock.release()
        if {path.name for path in folder.iterdir()} <= {LOCK, NOW, LOG, STOP}:
            with contextlib.suppress(OSError):  # another command may have come meanwhile
                for name in (NOW, LOG, STOP, LOCK):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a command holds a folder now. Writes nothing into a folder that was never held."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:  # it can't be locked or written: nobody can be at work there
        return False


def holder(folder: Path) -> str:
    """Who holds a folder, in words."""
    try:
        known = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(known["since"]))
        host = str(known["host"])
        shown = "".join(c for c in host if c.isprintable())
        return f"process {int(known['process'])} on {shown}, since {since}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return "a process that is just beginning or ending"
