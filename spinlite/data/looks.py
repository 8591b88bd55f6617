"""What is seen in picture files: read by several threads, and remembered for as long as a file is as it was."""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import PIL

from spinlite.data.alike import fingerprint_look
from spinlite.data.pictures import decode, read_bytes, read_size, silence_pillow
from spinlite.errors import SpinliteError
from spinlite.runs.store import fingerprint, fingerprint_bytes, fingerprint_files, write_bytes

WORKERS = min(8, os.cpu_count() or 1)
SETTLED = 2.0  # s since a file's last change, before its time stamp tells it from the next change (FAT counts by 2 s)
SAVE_SECONDS = 10.0  # of looking that a cut-off run may lose
A = TypeVar("A")
B = TypeVar("B")
Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen in a picture's file. `key` is a hash of its bytes, `size` upright in px, `fault` why it can't be used,
    `mark` what `likeness` says of a picture that was decoded."""

    key: str
    size: tuple[int, int]
    seen: tuple[str, ...] = ()
    fault: str = ""
    mark: str = ""


class LookCache:
    """Looks of earlier runs, in a file; a look counts as long as its file has the size, times and place that it had."""

    def __init__(self, path: Path, background: str) -> None:
        self._path, self._saved = path, time.monotonic()
        self._rules = fingerprint("looks", 2, PIL.__version__, background)
        self._looks: dict[str, tuple[list[int], Look]] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # damaged: looked at again
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["rules"] == self._rules:
                for name, stamp, key, size, seen, fault, mark in kept["looks"]:
                    self._looks[name] = stamp, Look(key, (size[0], size[1]), tuple(seen), fault, mark)

    def get(self, path: Path) -> Look | None:
        stamp, look = self._looks.get(os.path.abspath(path), (None, None))
        return look if look and stamp == _stamp(path) else None

    def put(self, path: Path, stamp: list[int], look: Look, began: float) -> None:
        """Remember a look that `began` (unix time) at a file with a stamp, if it was settled by then."""
        if stamp and began - max(stamp[1:3]) / 1e9 > SETTLED:
            self._looks[os.path.abspath(path)] = stamp, look
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is remembered, whole or not at all."""
        looks = [[name, stamp, *astuple(look)] for name, (stamp, look) in self._looks.items()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, json.dumps({"rules": self._rules, "looks": looks}).encode())
        self._saved = time.monotonic()


def decode_all(
    paths: Iterable[Path], background: str, memo: LookCache | None = None, progress: Progress = lambda done, of: None
) -> dict[Path, Look]:
    """Every file decoded once, by several threads; what `memo` knows is not read again."""
    looks = {path: memo.get(path) if memo else None for path in paths}
    unknown = [path for path, look in looks.items() if look is None]

    def look(path: Path) -> tuple[Path, list[int], float, Look]:
        began, stamp = time.time(), _stamp(path)
        return path, stamp, began, _decoded(path, background)

    try:
        with silence_pillow():
            for done, (path, stamp, began, found) in enumerate(in_order(look, unknown), 1):
                looks[path] = found
                if memo:
                    memo.put(path, stamp, found, began)
                progress(done, len(unknown))
    finally:
        if memo and unknown:
            memo.save()
    return {path: look for path, look in looks.items() if look}


def read_headers(paths: Iterable[Path], progress: Progress = lambda done, of: None) -> dict[Path, Look]:
    """Every file's header read. Only files of the same length as another are hashed: no others can be the same."""
    every = list(paths)
    lengths = {path: stamp[0] if (stamp := _stamp(path)) else -1 for path in every}
    alone: dict[int, int] = {}
    for length in lengths.values():
        alone[length] = alone.get(length, 0) + 1

    def glance(path: Path) -> Look:
        try:
            size, seen = read_size(path)
            key = fingerprint_files([path]) if alone[lengths[path]] > 1 else f"length {lengths[path]}"
        except SpinliteError as error:
            return Look("", (0, 0), (), _reason(error, path))
        return Look(key, size, tuple(seen))

    found = {}
    with silence_pillow():
        for path, look in zip(every, in_order(glance, every), strict=True):
            found[path] = look
            progress(len(found), len(every))
    return found


def in_order(call: Callable[[A], B], items: Iterable[A], workers: int = WORKERS) -> Iterator[B]:
    """call(item) of each item in order, a few ahead of what is asked for, in threads: Pillow decodes without Python's lock."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(path: Path, background: str) -> Look:
    try:
        content = read_bytes(path)
        image, seen = decode(content, path, background=background)
    except SpinliteError as error:
        return Look("", (0, 0), (), _reason(error, path))
    return Look(fingerprint_bytes(content), image.size, tuple(seen), "", fingerprint_look(image))


def _reason(error: SpinliteError, path: Path) -> str:
    return error.problem.removeprefix(f"{path.name}: ")


def _stamp(path: Path) -> list[int]:
    """[bytes, modified, changed, place] of a file; [] where there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
