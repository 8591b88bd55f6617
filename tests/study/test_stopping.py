"""Which round a rule chooses, and whether chance explains how much better the best one is: by hand."""

from typing import Any

from spinlite.study.results import BASE
from spinlite.study.stopping import RULES, choices, stopping_table

OWN, LATEST, DISTANCE, HELDOUT, _, LAST = RULES


def line(round_: int, kid: list[float], distance: float, error: float, arm: str = "spin") -> dict[str, Any]:
    signals = {
        "distance": distance,
        "distance_error": 0.1,
        "policy_real": error,
        "away_deviation": 0.0,
        "base_real": 0.25,
        "start_distance": 0.5,
    }
    measures = {"kid": {"value": sum(kid) / len(kid), "resamples": kid}}
    return {"arm": arm, "seed": 0, "round": round_, "signals": signals, "measures": measures}


def test_each_rule_chooses_its_round_and_is_judged_against_the_best():
    lines = [line(1, [10.0, 12.0], 0.4, 0.1), line(2, [5.0, 7.0], 0.2, 0.3), line(3, [4.0, 10.0], 0.3, 0.2)]
    found = choices(lines)
    assert found[LATEST] == found[LAST] == found[OWN]
    assert choices([*lines, line(4, [5.0, 7.0], 0.36, 0.4)])[LATEST] == [(1.0, True)], "round 4 is too far"
    assert found[DISTANCE] == [(0.0, True)]  # round 2
    assert choices([*lines, line(4, [9.0, 9.0], 0.3, 0.26)])[OWN] == [(1.0, True)], "round 4 has a larger error than the base"
    assert found[HELDOUT] == [(5.0, False)]  # round 1, worse in every resample
    assert found[LAST] == [(1.0, True)]  # round 3, better in one of the two resamples


def test_the_base_may_be_the_best_and_a_cell_of_one_round_has_no_choice():
    base = {"arm": BASE, "seed": 0, "round": 0, "measures": {"kid": {"value": 1.0, "resamples": [1.0, 1.0]}}}
    lines = [base, line(1, [4.0, 4.0], 0.1, 0.1), line(2, [3.0, 3.0], 0.2, 0.2), line(3, [0.0, 0.0], 0, 0, arm="sft")]
    assert choices(lines)[DISTANCE] == [(3.0, False)] and choices(lines)[LAST] == [(2.0, False)]
    assert stopping_table(lines)[3][1:] == ["1", "0", "3", "3"]
    assert len(stopping_table([base])) == 1
