"""The form shows a value as it is typed."""

from typing import Any

import pytest

pytest.importorskip("nicegui")

from spinlite.config.load import load_settings
from spinlite.ui.form import written


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("report.trackers", ["wandb", "tensorboard"]), ("judge.prompts", ["a cat, red"]), ("judge.prompts", ["a, “b”", "c"]),
        ("learn.lr", 2e-5), ("judge.stop", False), ("run.rounds", 7), ("data.trigger", "sks"),
    ],
)  # fmt: skip
def test_what_it_shows_can_be_typed(place: str, value: Any):
    section, _, key = place.partition(".")
    assert getattr(getattr(load_settings("demo", [f"{place}={written(value)}"]), section), key) == value


def test_what_is_empty_is_shown_empty():
    assert [written(value) for value in ([], None, "")] == ["", "", ""]
