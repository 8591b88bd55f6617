"""Names: those that a run may have, and those of the files in its folder that several modules know.

A run's folder and its LoRA are called as the run is, on every computer that they may be copied to.
"""

from spinlite.errors import SpinliteError

LONGEST = 100  # characters, and twice as many bytes: what is added to it must fit into the 255 of a file's name
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # of Windows
FORBIDDEN = '<>:"/\\|?*'
NEWEST, BEFORE = "state.safetensors", "state-before.safetensors"  # the last save, and the one before
JOURNAL = "journal.jsonl"
CACHES = "caches.txt"  # the folders of the cache that a run uses, a line each
NOW, LOG, STOP = "now.json", "log.txt", "stop"  # what a run says to those who watch it, and what asks it to stop (`live.py`)
OURS = {"cache"}  # folders beside the runs


def check_name(name: str) -> None:
    """Raises SpinliteError if a run can't be called so."""
    shown = ascii(name) if not name.isprintable() else repr(name)
    fix = "give a plain --name, such as my-style"
    stem = name.partition(".")[0].strip().lower()
    if len(name) > LONGEST or len(name.encode(errors="replace")) > 2 * LONGEST:
        problem = f"{shown[:40]}… can't be a run's name: it has {len(name)} characters, and {LONGEST} are the most"
        raise SpinliteError(problem, fix=fix)
    if not name.isprintable() or any(sign in FORBIDDEN for sign in name):
        raise SpinliteError(f"{shown} can't be a run's name: it has a sign that file names can't hold", fix=fix)
    if name.lower() in OURS or stem in RESERVED:
        raise SpinliteError(f"{shown} can't be a run's name: it has another meaning for spinlite or Windows", fix=fix)
    if not name or name[0] in " .-" or name[-1] in " .":
        raise SpinliteError(f"{shown} can't be a run's name: it begins or ends with a dot, a dash or a space", fix=fix)
