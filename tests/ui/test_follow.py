"""A journal that is followed says what it says when it is read from the start."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spinlite.runs.journal import Journal
from spinlite.ui.follow import Follower


def line(event: str, **fields: Any) -> bytes:
    return json.dumps({"event": event, "time": time.time(), **fields}).encode() + b"\n"


def update(k: int, u: int) -> bytes:
    return line("update", round=k, update=u, margin=k + u / 10, loss=1.0, grad_norm=float(u))


def judge(k: int) -> bytes:
    return line("judge", round=k, policy_real=0.5 - k / 10, base_real=0.5, previous_real=0.5, accuracy=0.5)


BEGUN = [line("begin"), update(1, 1), update(1, 2), judge(1), update(2, 1), update(2, 2)]
GROWN: dict[str, Callable[[bytes], bytes]] = {
    "more": lambda was: was + update(2, 3) + judge(2),
    "a torn line": lambda was: was + update(2, 3) + b'{"event": "upda',
    "a line that is none": lambda was: was + b"\0\0\n" + update(2, 3),
    "cut back to the last save": lambda was: was[: -len(BEGUN[-1])],
    "cut back, and other lines": lambda was: was[: -len(BEGUN[-1])] + update(2, 2) + update(2, 3),
    "cut back to nothing": lambda was: b"",
    "a guard's undoing": lambda was: was + line("guard", round=2, update=2, back=1, why="") + update(2, 2),
    "a whole round undone": lambda was: was + line("guard", round=2, update=2, back=0, why="") + update(2, 1),
    "a figure that is none": lambda was: was + line("update", round=2, update=3, margin=None, loss=float("nan")),
}


@pytest.mark.parametrize("name", GROWN)
def test_it_reads_on_as_if_it_read_everything(name: str, tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(BEGUN))
    follower, fresh = Follower(tmp_path), Follower(tmp_path)
    assert follower.refresh() and not follower.refresh() and follower.updates == 4
    path.write_bytes(GROWN[name](path.read_bytes()))
    assert follower.refresh()
    fresh.refresh()
    assert (follower.updates, follower.curves()) == (fresh.updates, fresh.curves())
    if name != "a line that is none":  # where the journal itself ends
        journal = Journal(path)
        journal.read()
        assert follower.updates == len(journal.events("update"))
        assert follower.events("judge") == journal.events("judge")


def test_there_may_be_no_journal_yet(tmp_path: Path):
    follower = Follower(tmp_path)
    assert not follower.refresh() and follower.curves() == [] and follower.best == 0


def test_100_000_updates_open_within_two_seconds_and_then_cost_nothing(tmp_path: Path):
    rest = b'"loss": 0.69314718, "grad_norm": 0.12345, "margin": 0.0123, "accuracy": 0.5, "pull": 0.9, "policy_real": 0.1}\n'
    places = [(k, u) for k in range(1, 11) for u in range(1, 10_001)]
    begin = [b'{"event": "update", "time": 1.5, "round": %d, "update": %d, ' % place for place in places]
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(each + rest for each in begin))
    follower, start = Follower(tmp_path), time.process_time()
    follower.refresh()
    curves = follower.curves()
    assert follower.updates == 100_000 and time.process_time() - start < 2
    assert all(len(curve.points) <= 300 for curve in curves)
    with path.open("ab") as file:
        file.write(update(10, 10_001))
    start = time.process_time()
    assert follower.refresh() and follower.curves()
    assert follower.updates == 100_001 and time.process_time() - start < 0.2


def test_the_best_round_is_that_of_the_run(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_bytes(b"".join([*BEGUN, judge(2), judge(-1)]))
    follower = Follower(tmp_path)
    follower.refresh()
    assert follower.best == 2
