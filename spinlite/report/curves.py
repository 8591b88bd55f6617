"""The figures of a run that are drawn, each with one sentence on how to read it. Nothing here needs torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinlite.config.rounds import learning_rate
from spinlite.config.settings import Learn

POINTS = 300  # of a curve: more can't be told apart on a screen
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A figure over the course of a run. x is in rounds: 1.5 is the middle of round 2."""

    title: str
    meaning: str  # one sentence: how to read it
    points: Sequence[Point]
    base: float | None = None  # the same figure of the base


# (event, key in it) -> (title, how to read it): a chart for each
CURVES = {
    ("judge", "distance"): (
        "Distance of samples",
        "How far its samples, taken together, are from your pictures: 0 means alike. It chooses the best round.",
    ),
    ("judge", "policy_real"): (
        "Error on unseen pictures",
        "Lower is better. The dashed line is the base. If the curve rises, the model is learning your pictures by heart.",
    ),
    ("judge", "accuracy"): (
        "Prefers your picture to its own",
        "At which share of unseen captions the model, compared with its opponent, gained more on your picture than on its own.",
    ),
    ("judge", "away_deviation"): (
        "Distance of contrast",
        "How far the contrast of its samples is from that of your pictures. It should fall.",
    ),
    ("judge", "drift_mean"): (
        "Drift of colours",
        "How far the colours of its samples have moved from the base's. It should rise, then level off.",
    ),
    ("judge", "motion"): (
        "Motion",
        "How much its clips move, as a share of yours. Near 1 is right. If it falls, it learns to stand still.",
    ),
    ("update", "margin"): (
        "Margin",
        "How much more your pictures gain than its own. It starts at 0 in every round and should rise.",
    ),
    ("update", "accuracy"): (
        "Pairs won",
        "The share of pairs in a step in which your picture gained more than the model's own. Half is chance.",
    ),
    ("update", "pull"): ("Pull", "What a round has left to teach: 1 at its start, 0 when all pairs are won."),
    ("update", "loss"): ("Loss", "What the optimizer lowers. Compare it within a round alone."),
    ("update", "gate_rate"): (
        "Gate rate",
        "In which share of pairs the model is worse on your picture than its opponent. SePPO does not push those fakes away.",
    ),
    ("update", "lr"): ("Learning rate", "How far a step may go: it warms up and falls to 0 in every round (cosine)."),
    ("update", "grad_norm"): ("Gradient norm", "If it jumps to its ceiling again and again, the learning rate is too high."),
}


class Rate:
    """The learning rate of each update. The journal has it not, but the settings that it follows from."""

    def __init__(self) -> None:
        self._learn: Learn | None = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take a `begin` event, or a `settings` event that changes what it said."""
        if event["event"] == "begin" and "learn" in (settings := event.get("settings", {})):
            known = {key: value for key, value in settings["learn"].items() if key in Learn.model_fields}
            self._learn = Learn.model_construct(**known | {"updates": settings.get("updates", known.get("updates"))})
        elif event["event"] == "settings" and self._learn:
            changed = {at.removeprefix("learn."): new for at, new in event["changes"].items() if at.startswith("learn.")}
            self._learn = self._learn.model_copy(update=changed)

    def at(self, update: int) -> float:
        """The rate of an update, counted from 1; nan if nobody knows."""
        return learning_rate(self._learn, update - 1) if self._learn and self._learn.updates else math.nan


def curves(points: Mapping[tuple[str, str], Sequence[Point]], judged: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves that there is something to draw for, from the points of each of CURVES and the judge events."""
    base = judged[0]["base_real"] if judged else None
    found = []
    for (event, key), (title, meaning) in CURVES.items():
        line = points.get((event, key), [])
        if len({value for _, value in line}) > 1 or (event == "judge" and line):
            found.append(Curve(title, meaning, thin(line), base if key == "policy_real" else None))
    return found


def is_figure(value: Any) -> bool:
    """Whether a value of the journal can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points: means of neighbours."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
