"""Reads clips: video files, animated pictures, and folders of frames. Frames are taken at the rate of the base model.

A clip is played, not counted: each frame is the one that is on the screen at its time. So clips of other rates keep their
speed; of a slower one, frames are repeated.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from PIL import Image

from spinlite.data.pictures import ENDINGS, decode, formats, read_bytes, to_rgb
from spinlite.errors import SpinliteError
from spinlite.families.picture import ClipRule
from spinlite.runs.files import fingerprint, fingerprint_files

VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"}
ANIMATED = {".gif", ".webp", ".png", ".apng", ".avif"}  # of these, some have several frames
NUMBERS = re.compile(r"([0-9]+)")
TICK = 0.001  # s; times are rounded in files
BLINK = 0.1  # s that a frame without a time of its own lasts, as in browsers
MISSING = SpinliteError("clips in video files need PyAV, which is not installed", fix="pip install av")


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a file: from frame `start` on, at `fps` frames a second. `file` is a hash of the whole file.

    How many frames it has is the third number of its record's bucket.
    """

    file: str
    start: int
    fps: float

    @property
    def key(self) -> str:
        """It names the part as a picture is named by the hash of its file."""
        return fingerprint("clip", self.file, self.start, self.fps)


class Footage(Protocol):
    """An opened clip. `times` say when each of its frames begins, in s from the first; `seconds`, when the last one ends."""

    @property
    def times(self) -> Sequence[float]: ...

    @property
    def seconds(self) -> float: ...

    def frames(self, times: Sequence[float]) -> Iterator[Image.Image]:
        """What is on the screen at these times, in order: upright, in RGB."""
        ...


def is_moving(path: Path) -> bool:
    """Whether it is a clip: a video file, a folder of frames, or a picture with several frames."""
    if path.is_dir() or path.suffix.lower() in VIDEOS:
        return True
    if path.suffix.lower() not in ANIMATED:
        return False
    with (
        contextlib.suppress(Exception),
        Image.open(path, formats=formats()) as image,
    ):  # what is broken is said where it is decoded
        return getattr(image, "n_frames", 1) > 1
    return False


def frame_files(folder: Path) -> list[Path]:
    """The frames in a folder, by the numbers in their names."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
    return sorted(files, key=lambda path: [int(part) if i % 2 else part for i, part in enumerate(NUMBERS.split(path.name))])


def fingerprint_clip(path: Path) -> str:
    """The hash of a file's bytes; of a folder of frames, that of all its frames. Raises SpinliteError if it can't be read."""
    try:
        return fingerprint_files(frame_files(path) if path.is_dir() else [path])
    except OSError as error:
        raise _broken(path, error) from None


def require_decoder(paths: Sequence[Path]) -> None:
    """Raises SpinliteError if there are video files, and nothing to read them with."""
    if any(path.suffix.lower() in VIDEOS for path in paths) and not importlib.util.find_spec("av"):
        raise MISSING


def open_clip(path: Path, rule: ClipRule, background: str = "white") -> Footage:
    """Open a clip. Raises SpinliteError if it can't be read, here or later."""
    if path.is_dir():
        return _Folder(path, rule.fps, background)
    return _Video(path) if path.suffix.lower() in VIDEOS else _Animation(path, background)


def count_frames(footage: Footage, fps: float) -> int:
    """How many frames a clip has at this rate; at least 1."""
    return max(1, ceil((footage.seconds - TICK) * fps))


def own_rate(footage: Footage) -> float:
    """A clip's own frames a second."""
    return len(footage.times) / footage.seconds


def strip_of(path: Path) -> Image.Image:
    """First, middle and last frame of a file side by side, to look at."""
    footage = open_clip(path, ClipRule(1.0, 1, 1))
    last = footage.times[-1]
    frames = [next(footage.frames([time])) for time in (0.0, last / 2, last)]
    strip = Image.new("RGB", (sum(frame.width for frame in frames), frames[0].height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * frames[0].width, 0))
    return strip


def clip_size(path: Path) -> tuple[int, int]:
    """The (width, height) of a clip's frames, in px."""
    return next(open_clip(path, ClipRule(1.0, 1, 1)).frames([0.0])).size


def times_of(start: int, count: int, fps: float) -> list[float]:
    """When frames `start`, `start` + 1, … are shown, in s."""
    return [n / fps for n in range(start, start + count)]


class _Folder:
    """Frames are shown at the model's own rate, because a folder names none."""

    def __init__(self, path: Path, fps: float, background: str) -> None:
        self._files, self._background = frame_files(path), background
        if not self._files:
            raise SpinliteError(f"{path.name}: no frames in this folder", fix="replace or remove it")
        self.times, self.seconds = times_of(0, len(self._files), fps), len(self._files) / fps

    def frames(self, times: Sequence[float]) -> Iterator[Image.Image]:
        for place in _places(self.times, times):
            path = self._files[place]
            yield decode(read_bytes(path), path, background=self._background)[0]


class _Animation:
    """A GIF, WebP, PNG or AVIF with several frames."""

    def __init__(self, path: Path, background: str) -> None:
        self._path, self._background = path, background
        lasting: list[float] = []
        try:
            with Image.open(path, formats=formats()) as image:
                for n in range(getattr(image, "n_frames", 1)):
                    image.seek(n)
                    image.load()
                    lasting.append(image.info.get("duration", 0) / 1000 or BLINK)
        except Exception as error:
            raise _broken(path, error) from None
        self.times = [sum(lasting[:n], 0.0) for n in range(len(lasting))]
        self.seconds = sum(lasting, 0.0)

    def frames(self, times: Sequence[float]) -> Iterator[Image.Image]:
        with Image.open(self._path, formats=formats()) as image:
            for place in _places(self.times, times):
                image.seek(place)
                yield to_rgb(image.copy(), self._background, [])


class _Video:
    """A video file, by PyAV (FFmpeg)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._stream() as (container, stream):
            stamps = [packet.pts if packet.pts is not None else packet.dts for packet in container.demux(stream)]
            stamps = sorted({stamp for stamp in stamps if stamp is not None})
            if not stamps:
                raise SpinliteError(f"{path.name}: no frames in this video", fix="replace or remove it")
            self._first, tick = stamps[0], float(stream.time_base)
            self.times = [(stamp - self._first) * tick for stamp in stamps]
            rate = float(stream.average_rate or 0)
        last = median(b - a for a, b in pairwise(self.times)) if len(self.times) > 1 else 1 / rate if rate else BLINK
        self.seconds = self.times[-1] + last

    def frames(self, times: Sequence[float]) -> Iterator[Image.Image]:
        with self._stream() as (container, stream):
            stream.thread_type = "AUTO"
            tick, shown, waiting = float(stream.time_base), None, list(times)
            if times[0] > 0:
                container.seek(self._first + int(times[0] / tick), stream=stream)  # to the key frame before it
            for frame in container.decode(stream):
                now = 0.0 if frame.pts is None else (frame.pts - self._first) * tick
                while waiting and shown is not None and now > waiting[0] + TICK:
                    waiting.pop(0)
                    yield _upright(shown, stream.sample_aspect_ratio)
                shown = frame
                if not waiting:
                    return
            if shown is None:
                raise SpinliteError(f"{self._path.name}: no frame of this video can be decoded", fix="replace or remove it")
            for _ in waiting:
                yield _upright(shown, stream.sample_aspect_ratio)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        try:
            import av
        except ImportError:
            raise MISSING from None
        try:
            with av.open(str(self._path)) as container:
                if not container.streams.video:
                    raise SpinliteError(f"{self._path.name}: no pictures in this file", fix="replace or remove it")
                yield container, container.streams.video[0]
        except av.FFmpegError as error:
            raise _broken(self._path, error) from None


def _upright(frame: Any, ratio: Fraction | None) -> Image.Image:
    """A decoded frame as an RGB picture, turned as its file says; `ratio` is that of a pixel's sides."""
    image = frame.to_image()
    if ratio and ratio != 1:
        image = image.resize((round(image.width * float(ratio)), image.height))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _places(have: Sequence[float], times: Sequence[float]) -> Iterator[int]:
    """The frame that is on the screen at each of these times."""
    place = 0
    for time in times:
        while place + 1 < len(have) and have[place + 1] <= time + TICK:
            place += 1
        yield place


def _broken(path: Path, error: Exception) -> SpinliteError:
    reason = getattr(error, "strerror", "") or str(error) or type(error).__name__
    return SpinliteError(f"{path.name}: not a clip that can be read ({reason})", fix="replace or remove it")
