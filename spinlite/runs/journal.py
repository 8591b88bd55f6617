"""The journal of a run: one event a line, in a file that only ever grows.

What a guard undoes stays in the file. The `guard` event says from which update on, and `Journal` gives those events other names
("discarded update"). So a journal that is cut back is the journal of an earlier time.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.runs.disk import raise_if_full, sync

OF_A_ROUND = ("probe", "fakes", "coarse", "update", "won")  # what a guard discards
_UPDATE = b'{"event": "update", '  # these lines are most of the file; they are parsed when they are asked for
Event = dict[str, Any]


class Journal:
    """Reads the file once; what is logged afterwards is added to what was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size, self.crc = 0, 0  # of the lines that count
        self._events: dict[str, list[Event]] = {}  # by kind, all but the updates
        self.listeners: list[Callable[[Event], None]] = []  # told of every event that is logged
        self._undone: list[tuple[int, int, int]] = []  # (where the guard's line begins, round, update gone back to)

    def read(self, size: int | None = None) -> None:
        """Read the first `size` bytes, or up to the last whole line.

        Raises SpinliteError if a line among the first `size` bytes is none.
        """
        self.size, self.crc, self._events, self._undone = 0, 0, {}, []
        for line in self._lines(size):
            if not self._take(line):
                break
        if size is not None and self.size < size:
            raise SpinliteError(
                f"{self.path} is damaged after its first {self.size} bytes",
                fix="put a copy of it back, or start a new run with another --name; this one's snapshots stay",
            )

    def crc_of(self, size: int) -> int | None:
        """The CRC-32 of the file's first `size` bytes; None if it has fewer."""
        crc = 0
        if not self.path.exists() or self.path.stat().st_size < size:
            return None
        with self.path.open("rb") as file:
            while size > 0 and (block := file.read(min(size, 2**20))):
                crc, size = zlib.crc32(block, crc), size - len(block)
        return crc

    def torn(self) -> bool:
        """Whether the file goes on, after the lines that were read, with something that is no line."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            file.seek(self.size)
            return any(_parse(line) is None for line in file)

    def cut(self) -> None:
        """Remove what follows the lines that were read."""
        if self.path.exists() and self.path.stat().st_size > self.size:
            with self.path.open("r+b") as file:
                file.truncate(self.size)
                sync(file.fileno())

    def log(self, event: str, **fields: Any) -> None:
        """Append an event, with the time. Raises SpinliteError if the disk is full."""
        text = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        line = f"{text}\n".encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise_if_full(error, self.path, len(line))
            raise
        self._take(line)
        for hear in self.listeners:
            hear({"event": event, **fields})

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        if self.path.exists():
            with self.path.open("ab") as file:
                sync(file.fileno())

    def events(self, event: str) -> list[Event]:
        """The events of one kind, in order."""
        found = list(self._events.get(event, ()))
        return [*found, *(each for each in self._updates() if each["event"] == event)] if event.endswith("update") else found

    def every(self) -> Iterator[Event]:
        """All events in order, read from the file."""
        return (event for _, event in self._placed())

    def start_of(self, k: int) -> int:
        """Where round k's lines begin, without those that a guard undid; the journal's size if it has none."""
        for place, event in self._placed():
            if event["event"] in (*OF_A_ROUND, "judge") and event.get("round", 0) >= k:
                return place
        return self.size

    def _updates(self) -> Iterator[Event]:
        return (event for _, event in self._placed(_UPDATE))

    def _placed(self, prefix: bytes = b"") -> Iterator[tuple[int, Event]]:
        """(place, event) of the lines that begin with `prefix`, read from the file."""
        place = 0
        for line in self._lines(self.size):
            if line.startswith(prefix):
                event = json.loads(line)
                if any(place < at and _undone(event, k, back) for at, k, back in self._undone):
                    event["event"] = "discarded " + event["event"]
                yield place, event
            place += len(line)

    def _lines(self, size: int | None) -> Iterator[bytes]:
        """The lines of the first `size` bytes of the file (None: of all of it); the last may be torn."""
        if not self.path.exists():
            return
        left = self.path.stat().st_size if size is None else size
        with self.path.open("rb") as file:
            while left > 0 and (line := file.readline(left)):
                left -= len(line)
                yield line

    def _take(self, line: bytes) -> bool:
        """Remember a line; returns whether it is one."""
        if line.startswith(_UPDATE) and line.endswith(b"}\n"):
            self._count(line)
            return True
        if (event := _parse(line)) is None:
            return False
        if event["event"] == "guard" and "back" in event:
            self._discard(event["round"], event["back"])
        self._events.setdefault(event["event"], []).append(event)
        self._count(line)
        return True

    def _count(self, line: bytes) -> None:
        self.size, self.crc = self.size + len(line), zlib.crc32(line, self.crc)

    def _discard(self, k: int, back: int) -> None:
        self._undone.append((self.size, k, back))
        for kind in OF_A_ROUND:
            events = self._events.get(kind, [])
            undone = [event for event in events if _undone(event, k, back)]
            for event in undone:
                event["event"] = f"discarded {kind}"
                events.remove(event)
            self._events.setdefault(f"discarded {kind}", []).extend(undone)


def _undone(event: Event, k: int, back: int) -> bool:
    """Whether an event belongs to what round k did after the update `back` (0: to all of the round)."""
    return event["event"] in OF_A_ROUND and event.get("round") == k and event.get("update", 1) > back


def _parse(line: bytes) -> Event | None:
    """The event of a whole line; None if it is torn or damaged."""
    try:
        event = json.loads(line.decode())
        numbers = all(isinstance(event.get(name, 0), int) for name in ("round", "update", "back"))
        whole = line.endswith(b"}\n") and isinstance(event["event"], str)
        return event if whole and numbers and ("round" in event or event["event"] not in ("judge", "guard")) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
