"""A run folder, read for people: what state it is in, its rounds, its curves, its sheets."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from spinlite.config.settings import Settings
from spinlite.progress import describe_duration
from spinlite.runs.run import Run
from spinlite.runs.trees import flatten

KINDS = ("begin", "update", "judge", "guard", "won", "lowered", "coarse", "export")  # of the journal's events
POINTS = 300  # of a curve: more can't be told apart on a screen
SHEETS = 11  # of the last rounds, and that of the first: a page of hundreds could not be opened
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A figure over the course of a run. x is in rounds: 1.5 is the middle of round 2."""

    title: str
    meaning: str  # one sentence: how to read it
    points: list[Point]
    base: float | None = None  # the same figure of the base


@dataclass(frozen=True)
class Story:
    """Everything that the page shows of one run."""

    name: str
    state: str
    settings: Settings
    facts: dict[str, str]
    rounds: list[dict[str, Any]]  # judge events
    best: int
    curves: list[Curve]
    sheets: list[tuple[int, Path]]  # (round, picture), the last first: those of the last rounds, and of the first
    log: list[str]
    exports: list[dict[str, Any]]  # export events, the last of each file

    @property
    def text(self) -> str:
        """Every setting, as a preset."""
        return tomli_w.dumps(self.settings.model_dump(exclude_none=True)).rstrip()


# (event, key in it) -> (title, how to read it): a chart for each
CURVES = {
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
    ("update", "margin"): (
        "Margin",
        "How much more your pictures gain than its own. It starts at 0 in every round and should rise.",
    ),
    ("update", "pull"): ("Pull", "What a round has left to teach: 1 at its start, 0 when all pairs are won."),
    ("update", "loss"): ("Loss", "What the optimizer lowers. Compare it within a round alone."),
    ("update", "gate_rate"): ("Gate rate", "SePPO: the share of pairs in which the fake is not pushed away."),
    ("update", "grad_norm"): ("Gradient norm", "If it jumps to its ceiling again and again, the learning rate is too high."),
}


def read_story(folder: Path) -> Story:
    """Read a run folder. Raises SpinliteError if it is not a run."""
    run = Run.open_existing(folder)
    events = sorted((event for kind in KINDS for event in run.events(kind)), key=lambda event: event["time"])
    judged = [event for event in events if event["event"] == "judge"]
    sheets = [(event["round"], run.sheet_path(event["round"])) for event in reversed(judged)]
    sheets = [(k, path) for k, path in sheets if path.exists()]
    exports = {event["file"]: event for event in events if event["event"] == "export"}
    return Story(
        run.name, _state(run, judged), run.settings, _facts(run, events), judged, run.best, _curves(events, judged),
        sheets[:SHEETS] + sheets[SHEETS:][-1:], _log(events), list(exports.values()),
    )  # fmt: skip


def differences(stories: list[Story]) -> dict[str, list[str]]:
    """Settings in which the runs differ: name -> their values, in order."""
    flat = [flatten(story.settings.model_dump())[1] for story in stories]
    names = sorted({name for each in flat for name in each})
    rows = {name: [json.dumps(each.get(name), ensure_ascii=False) for each in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _state(run: Run, judged: list[dict[str, Any]]) -> str:
    if why := run.state.get("stopped"):
        return f"stopped after round {len(judged)}: {why}"
    if run.state.get("exported") and len(judged) >= run.settings.run.rounds:
        return f"done: {len(judged)} rounds"
    return f"round {run.state.get('round', 1)} of {run.settings.run.rounds}, update {run.state.get('update', 0)}, as last saved"


def _facts(run: Run, events: list[dict[str, Any]]) -> dict[str, str]:
    settings = run.settings
    facts = {
        "base": settings.model.base, "method": settings.method["name"],
        "LoRA": f"rank {settings.model.rank} on {settings.model.targets} layers",
        "rounds": f"{settings.run.rounds}, batch {settings.learn.batch}",
        "learning rate": f"{settings.learn.rate:g}",
    }  # fmt: skip
    begin = next((event for event in events if event["event"] == "begin"), None)
    if begin:
        counts = begin["settings"]
        facts["rounds"] = f"{settings.run.rounds} of {counts['updates']} steps, batch {settings.learn.batch}"
        facts |= {"pictures": f"{counts['train']} to learn from, {counts['heldout']} unseen", "device": begin["device"]}
        facts["took"] = f"{describe_duration(events[-1]['time'] - begin['time'])} from its first to its last event"
    return facts


def _curves(events: list[dict[str, Any]], judged: list[dict[str, Any]]) -> list[Curve]:
    base = judged[0]["base_real"] if judged else None
    updates = max((e["update"] for e in events if e["event"] == "update"), default=1)
    curves = []
    for (event, key), (title, meaning) in CURVES.items():
        found = [e for e in events if e["event"] == event and isinstance(e.get(key), int | float) and math.isfinite(e[key])]
        points = [(_place(e, updates), float(e[key])) for e in found]
        if len({value for _, value in points}) > 1 or (event == "judge" and points):
            curves.append(Curve(title, meaning, thin(points), base if key == "policy_real" else None))
    return curves


def _place(event: dict[str, Any], updates: int) -> float:
    """Where an event lies, in rounds of so many updates."""
    return event["round"] - 1 + event["update"] / updates if "update" in event else float(event["round"])


def thin(points: list[Point]) -> list[Point]:
    """At most POINTS points: means of neighbours."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _log(events: list[dict[str, Any]]) -> list[str]:
    """What happened beside the rounds: guards, memory settings that were lowered, rounds that were won early."""
    lines = []
    for event in events:
        match event["event"]:
            case "guard":
                lines.append(
                    f"round {event['round']}, update {event['update']}: {event['why']}; back to update {event['back']}"
                )
            case "won":
                lines.append(f"round {event['round']} was won after {event['update']} updates")
            case "lowered":
                change = f"{event['lever']} {event['was']} -> {event['to']}"
                lines.append(f"memory ran out in {event['phase']}, so the run took a cheaper setting: {change}")
            case "coarse":
                lines.append(f"twice the sampling steps would change the fakes by {event['apart']:.0%}")
    return lines
