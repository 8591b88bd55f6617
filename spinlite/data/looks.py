"""Looks at picture files in several threads, and remembers each look until its file changes."""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from stat import S_ISDIR as stat_is_folder
from typing import TypeVar

import PIL

from spinlite.data.alike import NO_MARK, fingerprint_look
from spinlite.data.clips import count_frames, fingerprint_clip, frame_files, is_moving, open_clip, own_rate
from spinlite.data.pictures import decode, read_bytes, read_size, silence_pillow
from spinlite.errors import SpinliteError
from spinlite.families.picture import ClipRule
from spinlite.runs.disk import write_bytes
from spinlite.runs.files import fingerprint, fingerprint_bytes, fingerprint_files

WORKERS = min(8, os.cpu_count() or 1)
SETTLED = 2.0  # s after a change before a time stamp can show the next one (FAT counts in steps of 2 s)
SLOWEST = 0.95  # of the model's frames a second: a clip that has fewer of its own repeats some
SHORT = "clips too short for one step of this model's frames, used as a picture: their first frame"
SLOW = "clips with fewer frames a second than the model's: frames are repeated, to keep the speed"
SAVE_SECONDS = 10.0  # of looking that an interrupted run may lose
A = TypeVar("A")
B = TypeVar("B")
Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a picture's file: `key` is a hash of its bytes, `size` is upright (width, height) in px, `seen` what is worth a
    note, `fault` why it can't be used, `mark` the result of `fingerprint_look` if it was decoded.

    A clip has so many `frames` at the model's rate, and its own `rate`, in frames a second; `mark` joins those of its first,
    middle and last frame.
    """

    key: str
    size: tuple[int, int]
    seen: tuple[str, ...] = ()
    fault: str = ""
    mark: str = ""
    frames: int = 1
    rate: float = 0.0


class LookCache:
    """Looks of earlier runs, kept in a file. A look is valid while its file has the same size, times and inode."""

    def __init__(self, path: Path, background: str, rule: ClipRule | None = None) -> None:
        self._path, self._saved = path, time.monotonic()
        self._rules = fingerprint("looks", 3, PIL.__version__, background, *(astuple(rule) if rule else ()))
        self._looks: dict[str, tuple[list[int], Look]] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # damaged: look at the files again
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["rules"] == self._rules and kept.get("made_of", made := fingerprint(kept["looks"])) == made:
                for name, stamp, key, size, seen, *others in kept["looks"]:
                    self._looks[name] = stamp, Look(key, (size[0], size[1]), tuple(seen), *others)

    def get(self, path: Path) -> Look | None:
        stamp, look = self._looks.get(os.path.abspath(path), (None, None))
        return look if look and stamp == _stamp(path) else None

    def put(self, path: Path, stamp: list[int], look: Look, began: float) -> None:
        """Remember a look that `began` at that unix time, unless the file had changed only just before."""
        if stamp and began - max(stamp[1:3]) / 1e9 > SETTLED:
            self._looks[os.path.abspath(path)] = stamp, look
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write all looks to the file, in one step."""
        looks = [[name, stamp, *astuple(look)] for name, (stamp, look) in self._looks.items()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, json.dumps({"rules": self._rules, "made_of": fingerprint(looks), "looks": looks}).encode())
        self._saved = time.monotonic()


def decode_all(
    paths: Iterable[Path], background: str, memo: LookCache | None = None, progress: Progress = lambda done, of: None,
    rule: ClipRule | None = None,
) -> dict[Path, Look]:  # fmt: skip
    """Decode every file once, in several threads; files that `memo` knows are not read again.

    With a `rule` files with several frames are clips; of one, what it takes at first is decoded.
    """
    looks = {path: memo.get(path) if memo else None for path in paths}
    unknown = [path for path, look in looks.items() if look is None]

    def look(path: Path) -> tuple[Path, list[int], float, Look]:
        began, stamp = time.time(), _stamp(path)
        return path, stamp, began, _decode(path, background, rule)

    try:
        with silence_pillow():
            for done, (path, stamp, began, fresh) in enumerate(in_order(look, unknown), 1):
                looks[path] = fresh
                if memo:
                    memo.put(path, stamp, fresh, began)
                progress(done, len(unknown))
    finally:
        if memo and unknown:
            memo.save()
    return {path: look for path, look in looks.items() if look}


def read_headers(
    paths: Iterable[Path], progress: Progress = lambda done, of: None, rule: ClipRule | None = None
) -> dict[Path, Look]:
    """Read every file's header, and of clips (see `decode_all`) a frame. Only files of equal length are hashed: no others can
    be duplicates.
    """
    every = list(paths)
    lengths = {path: stamp[0] if (stamp := _stamp(path)) else -1 for path in every}
    counts: dict[int, int] = {}
    for length in lengths.values():
        counts[length] = counts.get(length, 0) + 1

    def glance(path: Path) -> Look:
        try:
            many = counts[lengths[path]] > 1
            if rule and is_moving(path):
                return _look_at_clip(path, rule, "white", decoded=False, hashed=many)
            size, seen = read_size(path)
            key = fingerprint_files([path]) if many else f"length {lengths[path]}"
        except SpinliteError as error:
            return Look("", (0, 0), (), _reason(error, path))
        return Look(key, size, tuple(seen))

    looks = {}
    with silence_pillow():
        for path, look in zip(every, in_order(glance, every), strict=True):
            looks[path] = look
            progress(len(looks), len(every))
    return looks


def in_order(call: Callable[[A], B], items: Iterable[A], workers: int = WORKERS) -> Iterator[B]:
    """call(item) for each item, in order, computed a little ahead in threads: Pillow decodes without holding Python's lock."""
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


def _decode(path: Path, background: str, rule: ClipRule | None) -> Look:
    try:
        if rule and is_moving(path):
            return _look_at_clip(path, rule, background, decoded=True, hashed=True)
        content = read_bytes(path)
        image, seen = decode(content, path, background=background)
    except SpinliteError as error:
        return Look("", (0, 0), (), _reason(error, path))
    return Look(fingerprint_bytes(content), image.size, tuple(seen), "", fingerprint_look(image))


def _look_at_clip(path: Path, rule: ClipRule, background: str, decoded: bool, hashed: bool) -> Look:
    footage = open_clip(path, rule, background)
    frames = count_frames(footage, rule.fps)
    length, rate = rule.length(frames), own_rate(footage)
    shown = sorted({0, length // 2, length - 1}) if decoded else [0]
    images = list(footage.frames([n / rule.fps for n in shown]))
    marks = [fingerprint_look(image) or NO_MARK for image in images] if decoded else []
    key = fingerprint_clip(path) if hashed else f"length {(_stamp(path) or [-1])[0]}"
    seen = [SHORT] * (length == 1) + [SLOW] * (length > 1 and rate < SLOWEST * rule.fps)
    return Look(key, images[0].size, tuple(seen), "", "".join(marks), frames, rate)


def _reason(error: SpinliteError, path: Path) -> str:
    return error.problem.removeprefix(f"{path.name}: ")


def _stamp(path: Path) -> list[int]:
    """[bytes, modified, changed, inode] of a file; [] if it does not exist."""
    try:
        stat = path.stat()
        if stat_is_folder(stat.st_mode):  # of frames: it changes when any of them does
            stats = [each.stat() for each in frame_files(path)]
            newest = [max((getattr(each, name) for each in stats), default=0) for name in ("st_mtime_ns", "st_ctime_ns")]
            return [sum(each.st_size for each in stats), *newest, len(stats)]
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
