"""What a run tells those who watch it from outside, and that they can ask it to stop."""

import json
from pathlib import Path

import pytest

from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.progress import Stopped
from spinlite.runs import live
from spinlite.runs.live import LiveWatch, ask_to_stop, read_log, read_now
from spinlite.runs.lock import hold
from spinlite.selfplay import train
from tests.toy import Quiet, changed, made


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SECONDS", 0.0)


@pytest.mark.usefixtures("always")
def test_it_says_where_it_is_what_it_said_and_what_memory_it_takes(tmp_path: Path):
    used = iter([5, 9, 7])
    watch = LiveWatch(Quiet(), tmp_path, lambda: next(used))
    watch.say("two\nlines")
    watch.show_facts({"peak": "3 GB"})
    with watch.phase("learn", 4) as progress:
        progress(1, 4)
        progress(2, 4)
    now = read_now(tmp_path)
    assert (now["phase"], now["done"], now["of"]) == ("learn", 2, 4) and now["left"] is not None
    assert now["memory"] == {"now": 7, "peak": 9} and now["facts"] == {"peak": "3 GB"}
    said, took = read_log(tmp_path)
    assert said.endswith("  two lines") and took.endswith("  learn: took 1 s")


def test_it_writes_at_most_once_a_second(tmp_path: Path):
    watch, looks = LiveWatch(Quiet(), tmp_path, lambda: looks.append(1) or 0), list[int]()
    with watch.phase("learn", 1000) as progress:
        for done in range(1000):
            progress(done, 1000)
    assert len(looks) <= 3


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_what_is_half_written_says_nothing(text: str, tmp_path: Path):
    (tmp_path / "now.json").write_text(text, encoding="utf-8")
    assert read_now(tmp_path) == {} and read_log(tmp_path) == []


def test_a_long_log_is_read_from_its_end(tmp_path: Path):
    (tmp_path / "log.txt").write_text("".join(f"{i:09}\n" for i in range(50_000)), encoding="utf-8")
    assert read_log(tmp_path)[-1] == "000049999" and len(read_log(tmp_path)) < 25_000


@pytest.mark.usefixtures("always")
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_it_never_had(small: Settings, tmp_path: Path):
    """In round 2, after its second update: the file is made by someone else while it learns."""
    settings, folder = changed(small, run__rounds=2), tmp_path / "a" / "r"

    def ask(title: str, done: int) -> bool:
        if title.startswith("round 2/2 · learn") and done == 2:
            ask_to_stop(folder)
        return False

    with pytest.raises(Stopped):
        train(settings, folder, Quiet(ask))
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[-1]["event"] == "update" and (events[-1]["round"], events[-1]["update"]) == (2, 2)
    assert not (folder / "stop").exists()
    ask_to_stop(folder)  # too late: it was meant for the process that has ended
    train(settings, folder, Quiet())
    train(settings, tmp_path / "b" / "r", Quiet())
    assert made(folder) == made(tmp_path / "b" / "r")


def test_a_run_that_does_not_begin_leaves_no_folder(small: Settings, tmp_path: Path):
    with pytest.raises(SpinliteError):
        train(changed(small, data__folder=str(tmp_path / "nowhere")), tmp_path / "r", Quiet())
    assert not (tmp_path / "r").exists()
    with hold(tmp_path / "other"):
        (tmp_path / "other" / "mine.txt").touch()
    assert (tmp_path / "other" / "mine.txt").exists()
