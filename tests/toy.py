"""Small runs on the toy family: its preset, a watch that remembers, and what tests compare of a run's folder."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from spinlite.config.load import validate_settings
from spinlite.config.settings import Settings
from spinlite.runs.journal import Journal
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train

TOY = str(Path(__file__).with_name("toy.toml"))


class Quiet:
    """A watch that remembers, and can pull the plug."""

    def __init__(self, interrupt: Callable[[str, int], bool] = lambda title, done: False) -> None:
        self.said: list[str] = []
        self.phases: list[str] = []
        self.interrupt = interrupt

    def say(self, text: str) -> None:
        self.said.append(text)

    def show_facts(self, facts: dict[str, str]) -> None:
        self.said += [f"{name}: {fact}" for name, fact in facts.items()]

    @contextlib.contextmanager
    def phase(self, title: str, total: int):
        self.phases.append(title)

        def progress(done: int, of: int, **found: float) -> None:
            if self.interrupt(title, done):
                raise KeyboardInterrupt

        yield progress

    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
        self.said.append(f"judged {round_}")


def changed(settings: Settings, **values: Any) -> Settings:
    tree = settings.model_dump(exclude_none=True)
    for place, value in values.items():
        section, key = place.split("__")
        if place == "method__name":
            tree["method"] = {}
        tree[section][key] = value
    return validate_settings(tree)


def train_with_cuts(settings: Settings, folder: Path, cuts: int, calls: int, seed: int | str) -> None:
    """A run to its end that is cut off so many times, each at one of so many calls of its watch, in a random phase."""
    chance = random.Random(seed)
    for _ in range(cuts):
        countdown = iter(range(chance.randint(1, calls) - 1, -1, -1))
        with contextlib.suppress(KeyboardInterrupt):
            train(settings, folder, Quiet(lambda title, done, left=countdown: next(left, None) == 0))
    train(settings, folder, Quiet())


def made(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times."""
    journal = Journal(folder / "journal.jsonl")
    journal.read()
    assert journal.size == journal.path.stat().st_size
    events = list(journal.every())
    for event in events:
        event.pop("time")
    written = [*folder.glob("snapshots/*"), *folder.glob("samples/**/*.png")]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in written}
    exported = {p.name: {k: v.tolist() for k, v in read_tensors(p)[0].items()} for p in folder.glob("export/*.safetensors")}
    return {"events": events, "export": exported, **files}


def paired(swatches: Path, colour: tuple[int, int, int]) -> Path:
    """The swatches as a folder of pairs, each preferred to a picture of one colour."""
    pairs = swatches.parent / "pairs"
    for side in ("win", "lose"):
        (pairs / side).mkdir(parents=True)
    for path in swatches.glob("*.png"):
        path.rename(pairs / "win" / path.name)
        path.with_suffix(".txt").rename(pairs / "win" / f"{path.stem}.txt")
        Image.new("RGB", (16, 16), colour).save(pairs / "lose" / path.name)
    return pairs
