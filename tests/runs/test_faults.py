"""Every kind of fault, at some places of a small run. `python -m tests.runs.endurance` tries all places."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.runs.run import Run
from spinlite.selfplay import train
from tests.runs import faults
from tests.runs.faults import Lora, flip, lora_of
from tests.toy import Quiet


class Made(NamedTuple):
    """A run that was cut off in its second round, its settings, and the LoRA of the same run when nothing happened."""

    settings: Settings
    cut: Path
    lora: Lora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("faults")
    settings = faults.settings_for(faults.pictures(root / "pictures"))
    with pytest.MonkeyPatch.context() as patch:
        faults.save_at_every_step(patch)
        train(settings, root / "whole" / "r", Quiet())
        faults.cut_off(settings, root / "cut" / "r")
    return Made(settings, root / "cut", lora_of(root / "whole" / "r"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    path.unlink()


def flip_early(path: Path) -> None:
    flip(path, 0.3)


def flip_late(path: Path) -> None:
    flip(path, 0.98)


Damage = Callable[[Path], None]
MENDED: list[tuple[str, Damage]] = [  # the run goes on to the same LoRA
    ("r/state.safetensors", flip_late), ("r/state.safetensors", delete), ("r/state-before.safetensors", flip_early),
    ("r/good/*", flip_late), ("r/good/*", delete), ("r/opponent_errors/*", flip_late), ("r/opponent_errors/*", halve),
    ("r/snapshots/0.safetensors", flip_late), ("r/snapshots/0.safetensors", delete), ("r/settings.toml", delete),
    ("r/settings.toml", halve), ("r/pictures.json", halve), ("r/caches.txt", delete), ("r/samples/*", halve),
    ("cache/real/*/*", flip_late), ("cache/prompt/*/*", flip_early), ("cache/fake/*/*", flip_late),
    ("cache/fake/*/*", halve), ("cache/looks/*", flip_early),
]  # fmt: skip
NAMED: list[tuple[str, Damage, str, str]] = [  # the run says what is wrong, and what to type
    ("r/journal.jsonl", flip_early, "journal.jsonl, or that is damaged", "runs rewind"),
    ("r/journal.jsonl", halve, "names more of journal.jsonl than there is", "runs rewind"),
    ("r/journal.jsonl", delete, "journal.jsonl has no beginning", "--name"),
    ("r/snapshots/1.safetensors", flip_late, "1.safetensors is damaged", "--to 0"),
    ("r/snapshots/1.safetensors", delete, "1.safetensors is missing", "--to 0"),
    ("r/snapshots/1-3.safetensors", delete, "1-3.safetensors is missing", "--to 0"),
    ("r/snapshots/2-3.safetensors", delete, "2-3.safetensors is missing", "--to 1"),
]


def called(case: Any) -> str:
    return case if isinstance(case, str) else case.__name__ if callable(case) else ""


def damaged(made: Made, place: str, damage: Damage, tmp_path: Path) -> Any:
    found = [path.relative_to(made.cut) for path in sorted(made.cut.glob(place)) if path.is_file()]
    assert found, place

    def spoil(work: Path) -> None:
        for path in found:
            if not path.name.startswith("."):
                damage(work / path)

    return faults.outcome_of(made.settings, made.cut, tmp_path / "work", spoil)


@pytest.mark.parametrize(("place", "damage"), MENDED, ids=called)
def test_what_can_be_made_again_is_and_the_lora_is_the_same(place: str, damage: Damage, made: Made, tmp_path: Path):
    assert damaged(made, place, damage, tmp_path) == made.lora


@pytest.mark.parametrize(("place", "damage", "problem", "fix"), NAMED, ids=called)
def test_what_can_not_is_named_with_what_to_type(
    place: str, damage: Damage, problem: str, fix: str, made: Made, tmp_path: Path
):
    said = damaged(made, place, damage, tmp_path)
    assert isinstance(said, str) and problem in said.partition(" / ")[0] and fix in said.partition(" / ")[2]


def test_a_snapshot_put_in_the_place_of_another_is_noticed(made: Made, tmp_path: Path):
    def swap(work: Path) -> None:
        shutil.copy(work / "r/snapshots/0.safetensors", work / "r/snapshots/1.safetensors")

    said = faults.outcome_of(made.settings, made.cut, tmp_path / "work", swap)
    assert isinstance(said, str) and "1.safetensors is not snapshot 1: its header says 0" in said


def test_what_was_damaged_is_said_by_name(made: Made, tmp_path: Path):
    shutil.copytree(made.cut, tmp_path / "work")
    work = tmp_path / "work"
    for place in ("r/state.safetensors", "r/good/4.safetensors"):
        flip(work / place, 0.9)
    for shard in [*work.glob("cache/real/*/*.safetensors"), *work.glob("r/opponent_errors/*.safetensors")]:
        flip(shard, 0.9)
    watch = Quiet()
    train(made.settings, work / "r", watch)
    said = "\n".join(watch.said)
    for words in ("state.safetensors is damaged (its checksum does not match): the run goes on from the save before",
                  "good is missing or damaged: round 2 begins anew", "encoded again: ", "; it is measured again"):  # fmt: skip
        assert words in said, said
    assert lora_of(work / "r") == made.lora


def test_after_a_power_cut_the_save_before_counts(made: Made, tmp_path: Path):
    """The newest save is there, but what it names of the journal is not: the end of the file came back as zeros."""
    shutil.copytree(made.cut, tmp_path / "work")
    journal = tmp_path / "work" / "r" / "journal.jsonl"
    size, newest = (faults.journal_size(journal.with_name(f"{name}.safetensors")) for name in ("state-before", "state"))
    whole = journal.read_bytes()
    for tail in (b"", bytes(newest - size), whole[size : newest - 9]):
        journal.write_bytes(whole[:size] + tail)
        watch = Quiet()
        train(made.settings, tmp_path / "work" / "r", watch)
        assert any("the run goes on from the save before, round 2, update" in line for line in watch.said)
        assert lora_of(tmp_path / "work" / "r") == made.lora
        shutil.rmtree(tmp_path / "work")
        shutil.copytree(made.cut, tmp_path / "work")


SOME = [  # changes of the disk, of some 500, and the fault that the run meets there: -1 kills it
    (3, -1), (25, errno.ENOSPC), (77, -1), (130, errno.EIO), (150, -1), (190, -1), (240, errno.EACCES),
]  # fmt: skip


@pytest.mark.parametrize(("number", "error"), SOME)
def test_a_run_that_is_killed_or_whose_disk_fails_goes_on_to_the_same_lora(number: int, error: int, made: Made, tmp_path: Path):
    said = faults.with_fault_at(number, error, made.settings, tmp_path)
    assert error < 0 or "is full" in said or os.strerror(error) in said
    train(made.settings, tmp_path / "r", Quiet())
    assert lora_of(tmp_path / "r") == made.lora


def test_a_run_without_room_stops_before_it_learns_and_goes_on_when_there_is_some(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for free, what in ((100, "items in "), (10_000, "what round 1 learns in ")):
        with monkeypatch.context() as patch, pytest.raises(SpinliteError, match=f"no room for .*{what}") as caught:
            patch.setattr(
                "spinlite.runs.disk.shutil.disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(0, 0, free)
            )
            train(made.settings, tmp_path / "r", Quiet())
        assert "`spinlite runs`" in caught.value.fix and not list(tmp_path.rglob("*.part"))
    assert not Run.open_existing(tmp_path / "r").events("update")
    train(made.settings, tmp_path / "r", Quiet())
    assert lora_of(tmp_path / "r") == made.lora
