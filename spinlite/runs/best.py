"""Which round of a run is the best, by what the run itself measured. docs/study.md says how well that works."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SLACK = 0.005  # of an error: how far above the start's it may be (docs/internals.md says why)
Judged = Mapping[str, Any]  # the figures of a judge event


def best_round(rounds: Sequence[Judged]) -> int:
    """The best round, by the energy distance of its samples from the pictures; 0, the start, if no round is better.

    It must be nearer than the start, and its error on held-out pictures hardly larger. A round that the judge stopped the run
    after is left out. Where held-out pictures are too few to notice that pictures are learned by heart, it is the last round.
    Where distances were not measured, the lowest error on held-out pictures decides.
    """
    going = [event for event in rounds if not event.get("stopped")]
    if any(event.get("enough") is False for event in rounds):
        return max((event["round"] for event in going), default=0)
    start = rounds[0]["previous_real"] if rounds else 0.0
    if not all("distance" in event for event in rounds):
        errors = {0: start} | {event["round"]: event["policy_real"] for event in going}
        return min(errors, key=errors.__getitem__)
    better = [
        event for event in going if event["distance"] < event["start_distance"] and event["policy_real"] <= (1 + SLACK) * start
    ]
    return latest_near(better)["round"] if better else 0


def latest_near(rounds: Sequence[Judged]) -> Judged:
    """The latest of some rounds whose distance chance, of one standard error, may have put above the lowest."""
    nearest = min(rounds, key=lambda event: event["distance"])

    def near(event: Judged) -> bool:
        return event["distance"] - nearest["distance"] <= math.hypot(event["distance_error"], nearest["distance_error"])

    return [event for event in rounds if near(event)][-1]
