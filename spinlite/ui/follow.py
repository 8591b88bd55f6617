"""A run folder as it grows: the journal is read once, then only what is new. Figures are kept as columns of numbers."""

import json
import math
from array import array
from pathlib import Path
from threading import Lock

from spinlite.report.curves import CURVES, POINTS, Curve, Point, Rate, curves, is_figure
from spinlite.runs.best import best_round
from spinlite.runs.journal import OF_A_ROUND, Event
from spinlite.runs.names import JOURNAL

KEYS = [key for event, key in CURVES if event == "update"]


class Follower:
    """What the journal of a run says. `refresh` reads on; several threads may call it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 0  # grows when there is something new
        self._path, self._lock = folder / JOURNAL, Lock()
        self._begin_again()

    def _begin_again(self) -> None:
        self._size, self._last = 0, b""  # what was read, and its last line
        self._events: list[Event] = []  # all but the updates
        self._rounds, self._updates = array("l"), array("l")  # of the updates: where they are ..
        self._rate = Rate()
        self._columns = {key: array("d") for key in KEYS}  # .. and their figures, nan where there is none

    def refresh(self) -> bool:
        """Read what is new; returns whether there was anything."""
        with self._lock:
            before = self.version
            try:
                with self._path.open("rb") as file:
                    file.seek(max(0, self._size - len(self._last)))
                    if file.read(len(self._last)) != self._last:  # the run went back to its last save, and wrote other lines
                        self._begin_again()
                        self.version += 1
                        file.seek(0)
                    fresh = file.read()
            except OSError:
                return False
            lines = fresh[: fresh.rfind(b"\n") + 1].splitlines(keepends=True)
            for line in lines:
                self._take(line)
            if lines:
                self._size, self._last = self._size + sum(map(len, lines)), lines[-1]
                self.version += 1
            return self.version > before

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "update":
                self._rounds.append(event["round"])
                self._updates.append(event["update"])
                event["lr"] = self._rate.at(event["update"])
                for key, column in self._columns.items():
                    value = event.get(key)
                    column.append(value if is_figure(value) else math.nan)
                return
        except (ValueError, LookupError, TypeError):
            return
        if kind == "guard" and "back" in event:
            self._discard(event["round"], event["back"])
        self._rate.hear(event)
        self._events.append(event)

    def _discard(self, k: int, back: int) -> None:
        """Forget what round k did after the update `back`: a guard undid it."""
        while self._rounds and self._rounds[-1] == k and self._updates[-1] > back:
            for column in (self._rounds, self._updates, *self._columns.values()):
                column.pop()
        self._events = [
            e for e in self._events
            if not (e["event"] in OF_A_ROUND and e.get("round") == k and e.get("update", 1) > back)
        ]  # fmt: skip

    def events(self, kind: str) -> list[Event]:
        """The events of one kind, in order; not the updates."""
        return [event for event in self._events if event["event"] == kind]

    @property
    def updates(self) -> int:
        """How many updates there were."""
        return len(self._rounds)

    @property
    def best(self) -> int:
        """The best round so far; 0 is the start."""
        return best_round(self.events("judge"))

    def curves(self) -> list[Curve]:
        """What is drawn, thinned."""
        with self._lock:
            judged = self.events("judge")
            points: dict[tuple[str, str], list[Point]] = {
                (event, key): self._thinned(key) if event == "update"
                else [(float(e["round"]), float(e[key])) for e in judged if is_figure(e.get(key))]
                for event, key in CURVES
            }  # fmt: skip
        return curves(points, judged)

    def _thinned(self, key: str) -> list[Point]:
        """At most POINTS points of an update's figure, means of neighbours. Whole columns are added up, not their numbers."""
        size, longest = max(1, -(-self.updates // POINTS)), max(self._updates, default=1)
        found = []
        for i in range(0, self.updates, size):
            part = slice(i, i + size)
            count = len(self._rounds[part])
            x = sum(self._rounds[part]) / count - 1 + sum(self._updates[part]) / count / longest
            if math.isfinite(y := sum(self._columns[key][part]) / count):
                found.append((x, y))
        return found
