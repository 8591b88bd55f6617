"""Few pictures: enough of them are held out to judge by, or it is said that they are not."""

from pathlib import Path

import pytest

from spinlite.data.records import Record, count_pictures
from spinlite.data.split import enough_to_judge, explain_few, split


def records(*captions: str) -> list[Record]:
    return [Record(Path(f"{i}.png"), caption, f"key {i} {caption}") for i, caption in enumerate(captions)]


SETS = {
    "own captions": lambda count, trial: records(*(f"{trial} caption {i}" for i in range(count))),
    "one trigger": lambda count, trial: records(*[f"trigger {trial}"] * count),
    "many captions each": lambda count, trial: [
        Record(Path(f"{i // 3}.png"), f"{trial} caption {i}", f"key {i // 3}") for i in range(3 * count)
    ],
    "captions in twos": lambda count, trial: records(*(f"{trial} caption {i // 2 if i < 4 else i}" for i in range(count))),
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.2])
@pytest.mark.parametrize("count", [12, 13, 15, 20, 24, 50])
def test_from_12_pictures_on_4_are_held_out_and_never_more_than_a_third_for_that(kind: str, share: float, count: int):
    for trial in range(10):
        some = SETS[kind](count, trial)
        train, heldout = split(some, share)
        assert enough_to_judge(heldout) and not explain_few(heldout) and len(train) + len(heldout) == len(some)
        assert 4 <= count_pictures(heldout) <= max(count / 3, 2 * share * count + 5)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("count", [2, 3, 5, 8, 11])
def test_of_fewer_pictures_at_most_a_third_is_held_out_and_that_they_are_few_is_said(kind: str, count: int):
    for trial in range(10):
        train, heldout = split(SETS[kind](count, trial), 0.01)
        assert train and count_pictures(heldout) <= max(count / 3, 2 if kind == "captions in twos" else 1)
        assert not enough_to_judge(heldout) and f"validation has {count_pictures(heldout)} pic" in explain_few(heldout)


@pytest.mark.parametrize("captions", [1, 3, 20])
def test_the_share_of_pictures_is_the_same_however_many_captions_each_has(captions: int):
    some = [Record(Path("a.png"), f"caption {i}", f"key {i // captions}") for i in range(1000 * captions)]
    assert 150 < count_pictures(split(some, 0.2)[1]) < 250


def test_what_was_asked_for_stays_where_it_is_more():
    some = records(*(f"caption {i}" for i in range(20)))
    assert len(split(some, 0.6)[1]) > 20 / 3
    few, many = ({r.caption for r in split(some, share)[1]} for share in (0.01, 0.6))
    assert len(few) == 4 and few < many, "the same hashes decide"


def test_a_picture_with_several_captions_counts_once():
    some = [Record(Path("a.png"), f"caption {i}", "key") for i in range(9)]
    assert not enough_to_judge(some) and enough_to_judge(records(*"abcd"))
