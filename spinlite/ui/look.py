"""What the page knows of a run now, read from its folder."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from spinlite.progress import describe_duration, describe_size
from spinlite.runs.listing import planned_rounds, state_of
from spinlite.runs.live import read_log, read_now
from spinlite.runs.names import JOURNAL, STOP
from spinlite.runs.votes import Vote, read_votes
from spinlite.ui import commands
from spinlite.ui.follow import Follower

_followers: dict[Path, Follower] = {}  # shared by all tabs


@dataclass(frozen=True)
class Look:
    """One look at a run."""

    state: str  # as `spinlite runs` says it; "starting" or "did not start" before there is a journal; "" if there is nothing
    rounds: int = 0  # that it is to have
    done: int = 0  # rounds that are finished
    best: int = 0  # the best of them; 0 is the start
    about: dict[str, str] = field(default_factory=dict)
    phase: str = ""
    share: float = 0.0  # of the phase that is done
    lines: list[str] = field(default_factory=list)  # how far it is, in words
    stopping: bool = False
    failure: str = ""
    log: list[str] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    version: int = 0  # of the journal

    @property
    def running(self) -> bool:
        return self.state in ("running", "starting")


def follower_of(folder: Path) -> Follower:
    """Who follows the journal of a run."""
    return _followers.setdefault(folder, Follower(folder))


def look(folder: Path) -> Look:
    """Read what is new of a run. It may take a second the first time."""
    starting, failure = commands.is_starting(folder), commands.failure(folder)
    now = read_now(folder)
    if not (folder / JOURNAL).is_file():
        state = "starting" if starting else "did not start" if failure else ""
        return Look(state, failure=failure, **_progress(now if starting else {}))
    follower = follower_of(folder)
    follower.refresh()
    rounds, judged = planned_rounds(follower.events), follower.events("judge")
    state = "running" if starting else state_of(folder, rounds)
    running = state == "running"
    where = _progress(now if running else {})
    if running and where:
        where["lines"] += _whole(follower, rounds, now)
    return Look(
        state, rounds, judged[-1]["round"] if judged else 0, follower.best, _about(follower), **where,
        stopping=running and (folder / STOP).exists(), failure="" if running else failure, log=read_log(folder),
        votes=read_votes(folder), version=follower.version,
    )  # fmt: skip


def _progress(now: dict[str, Any]) -> dict[str, Any]:
    """The phase under way, from `now.json`."""
    if not now:
        return {}
    done, of, left = now["done"], now["of"], now.get("left")
    many = f"{done} of {of}" if of > 1 else ""
    time_left = f"{describe_duration(left)} left" if left is not None and done < of else ""
    return {"phase": now["phase"], "share": done / of if of else 0.0, "lines": [", ".join(filter(None, (many, time_left)))]}


def _whole(follower: Follower, rounds: int, now: dict[str, Any]) -> list[str]:
    """How long the whole run will take, and its memory."""
    facts, memory = now.get("facts", {}), now.get("memory", {})
    lines = []
    if (left := _left(follower, rounds)) is not None:
        lines.append(f"about {describe_duration(left)} left for the run")
    elif "time" in facts:
        lines.append(facts["time"])
    if memory:
        words = f"memory {describe_size(memory['now'])} now, {describe_size(memory['peak'])} at the most so far"
        lines.append(words + (f"; planned {facts['peak']}" if "peak" in facts else ""))
    return lines


def _left(follower: Follower, rounds: int) -> float | None:
    """Seconds that are left for the run, by how long its rounds took; None before the first is finished."""
    judged = follower.events("judge")
    times = [event["time"] for event in (follower.events("begin")[:1] + judged)]
    if not judged or len(judged) >= rounds or len(times) < 2:
        return None
    usual = median(later - earlier for earlier, later in itertools.pairwise(times))
    return max(0.0, (rounds - len(judged)) * usual - min(usual, time.time() - times[-1]))


def _about(follower: Follower) -> dict[str, str]:
    """What the run is, in a few facts."""
    begun = follower.events("begin")
    if not begun:
        return {}
    settings = begun[0]["settings"]
    model, learn = settings["model"], settings["learn"]
    return {
        "base": model["base"],
        "method": settings["method"]["name"],
        "pictures": f"{settings['train']} to learn from, {settings['heldout']} unseen",
        "LoRA": f"rank {model['rank']} on {model['targets']} layers",
        "rounds": f"{settings.get('updates') or learn['updates']} steps each, batch {learn['batch']}",
        "device": begun[0]["device"],
    }
