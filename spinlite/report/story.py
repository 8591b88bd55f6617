"""A run folder, read for people: what state it is in, its rounds, its curves, its sheets."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from spinlite.config.settings import Settings
from spinlite.progress import describe_duration
from spinlite.report.curves import CURVES, Curve, Rate, curves, is_figure
from spinlite.report.pictures import Pair, Row, pairs, read_rows
from spinlite.runs.run import Run
from spinlite.runs.trees import flatten
from spinlite.runs.votes import read_votes, standing

KINDS = ("begin", "update", "judge", "guard", "won", "lowered", "coarse", "export", "settings")  # of the journal's events
PRIVATE: Any = {"report": {"on_end"}}  # settings that are nobody else's business: a command may hold a password
PAIRS = 12  # to choose from
SHEETS = 11  # of the last rounds, and that of the first: a page of hundreds could not be opened


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
    prompts: list[Row]  # the user's own
    captions: list[Row]  # of held-out pictures
    pairs: list[tuple[str, list[tuple[str, Path]]]]  # (caption, [("start" or "round", picture)]), both in random order
    shown: int  # the round of these pairs
    choices: list[str]  # what someone preferred so far, in words
    log: list[str]
    exports: list[dict[str, Any]]  # export events, the last of each file

    @property
    def text(self) -> str:
        """Every setting, as a preset."""
        return tomli_w.dumps(self.settings.model_dump(exclude=PRIVATE, exclude_none=True)).rstrip()


def read_story(folder: Path) -> Story:
    """Read a run folder. Raises SpinliteError if it is not a run."""
    run = Run.open_existing(folder)
    events = sorted((event for kind in KINDS for event in run.events(kind)), key=lambda event: event["time"])
    judged = [event for event in events if event["event"] == "judge"]
    sheets = [(event["round"], run.sheet_path(event["round"])) for event in reversed(judged)]
    sheets = [(k, path) for k, path in sheets if path.exists()]
    cells = [run.cells_path(k) for k in range(len(judged) + 1)]
    prompts, captions, shown = read_rows(cells, "prompt"), read_rows(cells, "heldout"), run.best or len(judged)
    exports = {event["file"]: event for event in events if event["event"] == "export"}
    return Story(
        run.name, _state(run, judged), run.settings, _facts(run, events), judged, run.best, _curves(events, judged),
        [(k, path) for k, path in sheets[:SHEETS] + sheets[SHEETS:][-1:] if path.exists()],
        prompts, captions, _shuffled(run.name, pairs(captions + prompts, shown)), shown,
        list(standing(read_votes(folder)).values()), _log(events), list(exports.values()),
    )  # fmt: skip


def _shuffled(name: str, found: list[Pair]) -> list[tuple[str, list[tuple[str, Path]]]]:
    """At most PAIRS pairs, in an order that tells nothing and stays the same."""
    order = random.Random(name)
    some = order.sample(found, min(PAIRS, len(found)))
    return [(pair.caption, order.sample([("start", pair.start), ("round", pair.picture)], 2)) for pair in some]


def differences(stories: list[Story]) -> dict[str, list[str]]:
    """Settings in which the runs differ: name -> their values, in order."""
    flat = [flatten(story.settings.model_dump(exclude=PRIVATE))[1] for story in stories]
    names = sorted({name for each in flat for name in each})
    rows = {name: [json.dumps(each.get(name), ensure_ascii=False) for each in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def figures(stories: list[Story]) -> dict[str, list[str]]:
    """What the runs came to: name -> each run's, in order. Of the best round, where there is one."""
    rows = [{"state": story.state} | _result(story) for story in stories]
    return {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _result(story: Story) -> dict[str, str]:
    best = next((event for event in story.rounds if event["round"] == story.best), None)
    if not best:
        return {}
    return {
        "best round": str(story.best), "error on unseen pictures": f"{best['policy_real']:.4f}",
        "against base": f"{100 * (best['policy_real'] / best['base_real'] - 1):+.1f} %",
        "margin": f"{best['margin']:+.1e}", "prefers yours to its own": f"{100 * best['accuracy']:.0f} %",
    }  # fmt: skip


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
    updates = max((e["update"] for e in events if e["event"] == "update"), default=1)
    rate = Rate()
    for event in events:
        rate.hear(event)
        if event["event"] == "update":
            event["lr"] = rate.at(event["update"])
    points = {
        (event, key): [(_place(e, updates), e[key]) for e in events if e["event"] == event and is_figure(e.get(key))]
        for event, key in CURVES
    }  # fmt: skip
    return curves(points, judged)


def _place(event: dict[str, Any], updates: int) -> float:
    """Where an event lies, in rounds of so many updates."""
    return event["round"] - 1 + event["update"] / updates if "update" in event else float(event["round"])


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
