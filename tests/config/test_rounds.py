"""How long a round is, and how often an unseen picture is measured: both follow from how many pictures there are."""

import pytest

from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.rounds import EPOCHS, MEASURED, describe_round, draws_for, updates_for, with_pictures
from spinlite.config.settings import Judge, Learn
from spinlite.errors import SpinliteError
from tests.toy import TOY


@pytest.mark.parametrize(
    ("pictures", "updates", "seen"),
    [(8, 30, "120"), (17, 30, "56"), (100, 100, "32"), (1000, 1000, "32"), (10000, 2000, "6.4")],
)
def test_a_round_of_the_sd15_preset_is_as_long_as_its_pictures_ask_within_bounds(pictures: int, updates: int, seen: str):
    learn = with_pictures(load_settings("sd15-12gb"), pictures, 4).learn
    assert learn.length == updates
    assert describe_round(learn, pictures) == (
        f"{updates} steps (updates), batch 32: each picture is seen {seen} times a round on average"
    )


def test_the_presets_of_one_model_make_as_many_steps_of_100_pictures_on_every_card():
    for name in shipped_presets():
        learn = load_settings(name).learn
        assert (learn.epochs is None) == name.startswith(("demo", "paper"))
        assert updates_for(learn, 100) == 100 or learn.updates


def test_what_is_set_decides():
    assert updates_for(Learn(updates=7), 1000) == 7
    assert updates_for(Learn(epochs=4, batch=8), 1000) == 500
    assert updates_for(Learn(batch=16), 1000) == 1000 * EPOCHS / 16
    assert updates_for(Learn(epochs=4, batch=64), 1000) == 63, "rounded up: every picture is seen as often as it should"


def test_a_picture_is_measured_more_often_where_there_are_few():
    assert [draws_for(Judge(), n) for n in (1, 2, 4, 10, 16, 64)] == [MEASURED, 64, 32, 13, 8, 8]
    assert draws_for(Judge(draws=2), 20) == 2 and draws_for(Judge(draws=200), 1) == 200


@pytest.mark.parametrize(
    ("overrides", "updates", "epochs"),
    [((), 20, None), (("learn.epochs=5",), None, 5), (("learn.updates=7",), 7, None)], ids=["preset", "epochs", "updates"],
)  # fmt: skip
def test_the_length_that_is_set_last_replaces_that_of_the_preset(
    overrides: tuple[str, ...], updates: int | None, epochs: float | None
):
    learn = load_settings(TOY, list(overrides)).learn
    assert (learn.updates, learn.epochs) == (updates, epochs)


def test_two_lengths_at_once_are_refused():
    with pytest.raises(SpinliteError, match=r"learn.updates = 7 and learn.epochs = 5 both say") as caught:
        load_settings(TOY, ["learn.epochs=5", "learn.updates=7"])
    assert caught.value.fix == "type --set learn.updates=none, or remove one of them"
