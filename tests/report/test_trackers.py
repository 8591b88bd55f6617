"""Trackers: what they are told is what the journal says, and none of them can end a run."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spinlite.config.load import load_settings
from spinlite.errors import SpinliteError
from spinlite.report import trackers
from spinlite.report.trackers import numbers
from spinlite.runs.run import Run
from spinlite.selfplay import train
from tests.conftest import small_settings, write_swatches
from tests.toy import TOY, Quiet, changed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf and tensorboard


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quiet]:
    """A run that was cut off in round 2 and goes on, told to TensorBoard and to trackers that fail."""
    root, watch = tmp_path_factory.mktemp("told"), Quiet()
    asked = changed(small_settings(write_swatches(root)), report__trackers=["tensorboard", "wandb"], judge__prompts=["red"])
    with pytest.raises(KeyboardInterrupt):
        train(asked, root / "r", Quiet(lambda title, done: "2/2" in title and "learn" in title and done == 2))
    train(asked, root / "r", watch)
    return root / "r", watch


def test_tensorboard_holds_the_journals_figures_and_the_sheets(told: tuple[Path, Quiet]):
    folder, _ = told
    read = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    read.Reload()
    run = Run.open_existing(folder)
    for event, key, step in (
        ("update", "margin", lambda e: (e["round"] - 1) * 4 + e["update"]),
        ("judge", "policy_real", lambda e: e["round"] * 4),
    ):
        found = {scalar.step: scalar.value for scalar in read.Scalars(f"{event}/{key}")}
        assert found == pytest.approx({step(each): each[key] for each in run.events(event)})
    assert {f"judge/{key}" for key in ("accuracy", "base_real", "drift_mean")} | {"fakes/real_mean_0"} <= {
        *read.Tags()["scalars"]
    }
    assert [image.step for image in read.Images("held-out captions")] == [4, 8] == [i.step for i in read.Images("your prompts")]


def test_a_tracker_that_is_not_there_is_said_once(told: tuple[Path, Quiet]):
    _, watch = told
    assert [text for text in watch.said if "without" in text] == [
        "the run goes on without wandb: it is not installed: pip install wandb"
    ]


class Failing:
    def __init__(self, **_: Any) -> None: ...
    def start(self) -> None: ...
    def log(self, values: Any, step: int) -> None:
        raise RuntimeError("the server\nis gone")

    def store_init_configuration(self, values: Any) -> None: ...


def test_a_tracker_that_fails_on_the_way_does_not_end_a_run(
    told: tuple[Path, Quiet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Failing)
    watch, settings = Quiet(), small_settings(told[0].parent / "swatches")
    outcome = train(changed(settings, report__trackers=["mlflow"], run__rounds=1), tmp_path / "r", watch)
    assert outcome.rounds and not outcome.run.journal.listeners
    assert [text for text in watch.said if "mlflow" in text] == ["the run goes on without mlflow: the server is gone"]


def test_numbers_are_those_of_an_event_and_of_its_lists():
    event = {"event": "x", "time": 1.0, "round": 2, "update": 3, "a": 0.5, "b": [1, 2.5], "why": "…", "on": True, "none": None}
    assert numbers(event) == {"x/a": 0.5, "x/b_0": 1, "x/b_1": 2.5}


def test_names_are_checked_before_the_run():
    assert load_settings(TOY, ["report.trackers=wandb, tensorboard"]).report.trackers == ["wandb", "tensorboard"]
    with pytest.raises(SpinliteError, match="holds 'wand': the trackers are tensorboard"):
        load_settings(TOY, ["report.trackers=wand"])


def test_nothing_listens_where_nobody_asked_for_trackers(told: tuple[Path, Quiet], monkeypatch: pytest.MonkeyPatch):
    run = Run.open_existing(told[0])
    run.settings = changed(run.settings, report__trackers=[])
    monkeypatch.delattr(trackers, "Trackers")
    with trackers.tracked(run, Quiet()):
        assert not run.journal.listeners
