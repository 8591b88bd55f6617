"""How a run reports its progress, and how durations and sizes are written for people."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Progress = Callable[[int, int], None]  # called with (done, of)
GIB = 2**30  # bytes: 1 GB as graphics cards and Windows count it


class Stopped(KeyboardInterrupt):
    """Raised by progress where a step has ended, when someone has asked the program to stop: what is done can be saved."""


class Watch(Protocol):
    """Whoever a run reports to: the console, or a stand-in in a test."""

    def say(self, text: str) -> None: ...
    def show_facts(self, facts: dict[str, str]) -> None: ...
    def phase(self, title: str, total: int) -> contextlib.AbstractContextManager[Callable[..., None]]: ...
    def show_round(self, round_: int, rounds: int, figures: dict[str, Any], /) -> None: ...


class Silent:
    """A watch that says nothing: of all but one of several processes."""

    def say(self, text: str) -> None: ...
    def show_facts(self, facts: dict[str, str]) -> None: ...
    def show_round(self, round_: int, rounds: int, figures: dict[str, Any]) -> None: ...

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        yield lambda done, of, **found: None


class Pace:
    """How fast something goes on, from what was reported of it, and how long it will still take."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._reports: list[tuple[int, float]] = []  # (done, when): the first and the last
        self._of = 0

    def report(self, done: int, of: int) -> None:
        """So much of it is done now."""
        self._of = of
        self._reports = [*self._reports[:1], (done, time.monotonic())]

    def left(self) -> float | None:
        """The seconds that are left now; None as long as nobody can tell.

        Counted from the first report on, once there is another: a run that goes on starts with much done.
        """
        if not self._reports:
            return None
        done, now = self._reports[-1]
        first, start = self._reports[0] if len(self._reports) > 1 else (0, self._start)
        if done <= first:
            return None
        return max(0.0, (now - start) / (done - first) * (self._of - done) - (time.monotonic() - now))


def describe_duration(seconds: float) -> str:
    """Seconds for people: "45 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe_size(count: float) -> str:
    """Bytes for people: "7.6 GB", "38.2 MB". Here 1 GB is 2^30 bytes, as for the VRAM of a card, and 1 MB is 2^20."""
    if count >= GIB:
        return f"{count / GIB:.1f} GB"
    megabytes = count / 2**20
    return f"{megabytes:.0f} MB" if megabytes >= 100 else f"{megabytes:.1f} MB"
