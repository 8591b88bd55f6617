import json
from pathlib import Path

import pytest

from spinlite.errors import SpinliteError
from spinlite.runs.journal import Journal

TAILS = {
    "torn": b'{"event": "update", "time": 1.0, "rou',
    "zeroed": bytes(64),
    "blank": b"\n",
    "blank, with CRLF": b"\r\n",
    "not UTF-8": b'{"event": "n\xffte"}\n',
    "no event": b"[1]\n",
    "a bare number": b"7\n",
    "a round of no number": b'{"event": "judge", "round": "x"}\n',
    "no round": b'{"event": "judge", "policy_real": 0.1}\n',
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal.jsonl")
    made.log("begin", settings={})
    for k in (1, 2):
        made.log("probe", round=k, loss=0.5)
        for update in (1, 2, 3):
            made.log("update", round=k, update=update, loss=0.1)
        made.log("judge", round=k, policy_real=0.5 - 0.1 * k)
    return made


def again(journal: Journal, size: int | None = None) -> Journal:
    fresh = Journal(journal.path)
    fresh.read(size)
    return fresh


def test_what_was_logged_is_read_back(journal: Journal):
    fresh = again(journal)
    for kind, count in {"begin": 1, "probe": 2, "update": 6, "judge": 2, "guard": 0}.items():
        assert fresh.events(kind) == journal.events(kind) and len(fresh.events(kind)) == count
    assert (fresh.size, fresh.crc) == (journal.size, journal.crc) == (journal.path.stat().st_size, journal.crc_of(journal.size))


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_tail_that_is_no_line_is_left_out_and_cut_off(tail: bytes, journal: Journal):
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + tail)
    fresh = again(journal)
    assert fresh.events("judge") == journal.events("judge") and fresh.size == len(whole) and fresh.torn()
    fresh.cut()
    assert journal.path.read_bytes() == whole and not again(journal).torn()
    fresh.log("export", round=2)
    assert again(journal).events("export") == fresh.events("export") != []


def test_whole_lines_after_the_last_save_are_cut_off_without_a_word(journal: Journal):
    size = journal.size
    journal.log("update", round=3, update=1)
    fresh = again(journal, size)
    assert not fresh.torn()
    fresh.cut()
    assert journal.path.stat().st_size == size


def test_a_journal_is_never_made_longer(journal: Journal):
    size = journal.size
    journal.path.write_bytes(journal.path.read_bytes()[:100])
    with pytest.raises(SpinliteError, match="is damaged after its first"):
        again(journal, size)
    fresh = again(journal)
    fresh.cut()
    assert journal.path.stat().st_size <= 100


def test_what_a_guard_undid_has_another_name_and_the_file_only_grows(journal: Journal):
    for update in (1, 2, 3, 4):
        journal.log("update", round=3, update=update)
    before = journal.path.read_bytes()
    journal.log("guard", round=3, update=4, back=2, why="it went wrong")
    journal.log("judge", round=3, policy_real=0.3)
    assert journal.path.read_bytes().startswith(before)
    for each in (journal, again(journal)):
        assert [e["update"] for e in each.events("update") if e["round"] == 3] == [1, 2]
        assert [e["update"] for e in each.events("discarded update")] == [3, 4]
    journal.log("probe", round=4)
    journal.log("update", round=4, update=1)
    journal.log("guard", round=4, update=1, back=0, why="again")
    journal.log("probe", round=4)
    journal.log("update", round=4, update=1)
    for each in (journal, again(journal)):
        assert len(each.events("discarded probe")) == 1 and len([e for e in each.events("probe") if e["round"] == 4]) == 1
        assert [e["round"] for e in each.events("update")].count(4) == 1


def test_a_journal_of_an_older_version_is_read_as_it_was(journal: Journal):
    """It renamed what a guard undid in the file itself."""
    line = json.dumps({"event": "discarded update", "time": 1.0, "round": 3, "update": 1})
    guard = json.dumps({"event": "guard", "time": 1.0, "round": 3, "back": 0, "why": "x"})
    journal.path.write_text(journal.path.read_text(encoding="utf-8") + f"{line}\n{guard}\n", encoding="utf-8")
    fresh = again(journal)
    assert len(fresh.events("discarded update")) == 1 and len(fresh.events("update")) == 6


def test_a_round_begins_at_its_first_line_that_counts(journal: Journal):
    size = journal.size
    assert again(journal).start_of(3) == size
    journal.log("probe", round=3)
    journal.log("guard", round=3, update=1, back=0, why="x")
    second = journal.size
    journal.log("probe", round=3)
    assert journal.start_of(3) == second
    assert again(journal, journal.start_of(2)).events("judge") == journal.events("judge")[:1]


def test_reading_does_not_grow_with_the_square_of_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """10,000 rounds: what is logged is read once, not at every question."""
    journal = Journal(tmp_path / "journal.jsonl")
    lines = [json.dumps({"event": "judge", "time": 1.0, "round": k, "policy_real": 1.0}) for k in range(10000)]
    journal.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = []
    whole = Journal._lines
    monkeypatch.setattr(Journal, "_lines", lambda self, size: (read.append(line) or line for line in whole(self, size)))
    journal.read()
    for k in range(10000, 10050):
        journal.log("judge", round=k, policy_real=1.0)
        assert len(journal.events("judge")) == k + 1 and not journal.events("begin")
    assert len(read) == 10000
